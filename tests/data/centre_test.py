"""The centre of an image, whatever its shape and its mode."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from flowtok_jax.data.centre import CentreReader, file_record, open_images
from flowtok_jax.data.records import BadRecord
from flowtok_jax.data.transforms import Filters
from flowtok_jax.runtime.errors import UserError


def read(path: pathlib.Path, side: int, **options) -> np.ndarray:
    return CentreReader(side, **options)(file_record(path))


def test_the_shorter_side_is_resized_and_the_centre_cut(tmp_path):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = [10, 200, 30]
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    Image.fromarray(pixels.swapaxes(0, 1)).save(tmp_path / "tall.png")
    for name in ("wide.png", "tall.png"):
        image = read(tmp_path / name, 8)
        assert image.shape == (8, 8, 3)
        np.testing.assert_array_equal(image[2:6, 2:6], [[[10, 200, 30]] * 4] * 4)
    np.testing.assert_array_equal(read(tmp_path / "wide.png", 40), pixels[:, 20:60])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "I", "CMYK"])
def test_pixels_of_every_mode_are_read_as_they_look(tmp_path, mode):
    grey = np.linspace(0, 255, 256).astype(np.uint8).reshape(16, 16)
    image = Image.fromarray(grey)
    if mode == "1":
        image = image.point(lambda v: 255 * (v > 99), "1")
        grey = 255 * (grey > 99)
    elif mode.startswith("I"):  # 16 bits a pixel
        image = Image.fromarray(grey.astype(np.uint16) * 257)
        image = image if mode == "I;16" else image.convert("I")
    elif mode == "CMYK":
        image = image.convert("RGB").convert("CMYK")
    elif mode != "L":
        image = image.convert(mode)
    path = tmp_path / ("image.tiff" if mode in ("CMYK", "I") else "image.png")
    image.save(path)
    found = read(path, 16)
    assert found.shape == (16, 16, 3)
    np.testing.assert_allclose(found.astype(int), np.stack([grey] * 3, -1), atol=1)


def test_what_is_no_image_or_unwanted_is_refused_with_its_reason(tmp_path):
    (tmp_path / "text.png").write_text("no image")
    Image.new("RGB", (40, 10)).save(tmp_path / "wide.png")
    square = Filters(aspect=(0.5, 2.0))
    for name, options, reason in (
        ("text.png", {}, "not_an_image"),
        ("none.png", {}, "unreadable_file"),
        ("wide.png", {"filters": square}, "filtered_aspect"),
        ("wide.png", {"max_pixels": 399}, "too_large"),
    ):
        with pytest.raises(BadRecord) as caught:
            read(tmp_path / name, 8, **options)
        assert (caught.value.reason, caught.value.name) == (
            reason,
            str(tmp_path / name),
        )


def test_images_are_opened_one_source_after_the_other():
    options = dict(key="data.eval", image_size=16, seed=0)
    one = open_images("shapes:held_out", **options)
    both = open_images("shapes:held_out,shapes:seen", **options)
    assert both[0] == one[0]
    assert both[len(one)].name == "shapes:seen:0"
    for spec in ("shapes@2", "latents:x/*.tar"):
        with pytest.raises(UserError, match=f"data.eval={spec[:6]}.* has latents or"):
            open_images(spec, **options)
