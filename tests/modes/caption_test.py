import logging

import numpy as np
import pytest
from PIL import Image

from flowtok_jax.modes.caption import caption as caption_files
from flowtok_jax.modes.caption import read_image
from flowtok_jax.runtime.errors import UserError


@pytest.fixture
def caption(flowtok):
    """Captions the files of a pattern: how many failed, and the lines said."""

    def run(pattern):
        lines = []
        failed = caption_files(flowtok, str(pattern), 0, False, lines.append)
        return failed, lines

    return run


def test_the_shorter_side_is_resized_and_the_centre_cut(tmp_path):
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = [10, 200, 30]
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    Image.fromarray(pixels.swapaxes(0, 1)).save(tmp_path / "tall.png")
    for name in ("wide.png", "tall.png"):
        image = read_image(tmp_path / name, 8)
        assert image.shape == (8, 8, 3)
        np.testing.assert_allclose(image[2:6, 2:6] * 255, [[[10, 200, 30]] * 4] * 4)
    exact = read_image(tmp_path / "wide.png", 40)
    np.testing.assert_array_equal(exact * 255, pixels[:, 20:60])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "I", "CMYK"])
def test_pixels_of_every_mode_are_read_as_they_look(tmp_path, mode):
    grey = np.linspace(0, 255, 256).astype(np.uint8).reshape(16, 16)
    image = Image.fromarray(grey)
    if mode == "1":
        image, grey = image.point(lambda v: 255 * (v > 99), "1"), 255 * (grey > 99)
    elif mode.startswith("I"):  # 16 bits a pixel
        image = Image.fromarray(grey.astype(np.uint16) * 257)
        image = image if mode == "I;16" else image.convert("I")
    elif mode == "CMYK":
        image = image.convert("RGB").convert("CMYK")
    elif mode != "L":
        image = image.convert(mode)
    path = tmp_path / ("image.tiff" if mode in ("CMYK", "I") else "image.png")
    image.save(path)
    read = read_image(path, 16)
    assert read.shape == (16, 16, 3)
    np.testing.assert_allclose(read * 255, np.stack([grey] * 3, -1), atol=1)


def test_broken_files_are_named_and_the_rest_done(caption, tmp_path, caplog):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)).save(
        tmp_path / "a.png"
    )
    whole = (tmp_path / "a.png").read_bytes()
    broken = {
        "empty.png": b"",
        "half.png": whole[: len(whole) // 2],
        "text.png": b"no image",
        "values.ppm": b"P3 2 2 255 1 2 3 x y z",  # a ValueError in Pillow
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    with caplog.at_level(logging.ERROR):
        failed, lines = caption(f"{tmp_path}/*")
    assert failed == 4
    assert len(lines) == 1
    assert lines[0].startswith(f"{tmp_path / 'a.png'}: ")
    *named, counted = caplog.messages
    for name, message in zip(sorted(broken), named, strict=True):
        assert str(tmp_path / name) in message
    assert counted == "4 of 5 files could not be read"


def test_where_no_file_is_an_image_nothing_is_said(caption, tmp_path, caplog):
    (tmp_path / "a.txt").touch()
    assert caption(f"{tmp_path}/a.txt") == (1, [])
    assert "1 of 1" in caplog.text


@pytest.mark.parametrize("pattern", ["*.webp", "**.png/x", "", "folder", "a[", "\0"])
def test_a_pattern_that_matches_no_file_is_refused(caption, tmp_path, pattern):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="matches no file"):
        caption(f"{tmp_path}/{pattern}")


def test_a_path_with_brackets_names_itself_and_a_star_matches_once(caption, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a[1].png")
    for pattern in ("a[1].png", "*.png", "**/*.png"):
        failed, lines = caption(f"{tmp_path}/{pattern}")
        assert (failed, len(lines)) == (0, 1)
