"""The picture that a file shows a person is the picture that every mode sees."""

import types

import jax
import numpy as np
import pytest
from PIL import ExifTags, Image

from configs import demo
from flowtok_jax.data.centre import CentreReader, file_record
from flowtok_jax.data.folder import open_folder
from flowtok_jax.data.inputs import load_images
from flowtok_jax.data.loader import open_source
from flowtok_jax.data.shard_folder import ShardWriter
from flowtok_jax.data.sources import make_source
from flowtok_jax.eval.features import resize_clean
from flowtok_jax.eval.previews import load_examples
from flowtok_jax.eval.real import RealImages
from flowtok_jax.eval.reference import ImageReader, find_images
from flowtok_jax.modes.caption import caption
from flowtok_jax.pipeline import FlowTok, SampleOptions
from tests import memory
from tests.data import made

SIDE = 32


def rotated() -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return made.encode(made.picture(60, 40), "JPEG", exif=exif)


def transparent() -> bytes:
    image = made.picture(60, 40).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((60, 40)))
    return made.encode(image)


def palette() -> bytes:
    image = made.picture(60, 40).quantize(16)
    return made.encode(image, transparency=3)


def deep() -> bytes:
    grey = np.linspace(0, 65535, 60 * 40).astype(np.uint16).reshape(40, 60)
    return made.encode(Image.fromarray(grey))


KINDS = {
    "upright.jpg": made.jpeg,
    "rotated.jpg": rotated,
    "transparent.png": transparent,
    "palette.png": palette,
    "cmyk.tiff": lambda: made.encode(made.picture(60, 40).convert("CMYK"), "TIFF"),
    "deep.png": deep,
    "grey.png": lambda: made.encode(made.picture(60, 40).convert("L")),
    "sliver.png": lambda: made.encode(made.picture(2, 20_000)),
}
SLIVERS = ((2, 20_000), (20_000, 2), (1, 60_000), (60_000, 1))


def write_pair(folder, name, data):
    """Two files of the same bytes with captions."""
    for i in range(2):
        (folder / f"{i}_{name}").write_bytes(data)
        (folder / f"{i}_{name}").with_suffix(".txt").write_text(f"a {i}")
    return folder


@pytest.fixture(params=KINDS)
def folder(request, tmp_path):
    return write_pair(tmp_path, request.param, KINDS[request.param]())


class Seen(FlowTok):
    """Stands in for a trained one, and keeps the images that it should caption."""

    def __init__(self):
        self.nets = types.SimpleNamespace(
            tokenizer=types.SimpleNamespace(image_size=SIDE)
        )
        self.caption = SampleOptions()

    def image_to_text(self, images, seed, first_row):
        self.images = images
        return [""] * len(images)


def by_training(folder):
    return make_source(f"folder:{folder}", image_size=SIDE, seed=0)[0]["image"]


def by_preview(folder):
    """Whatever training draws."""
    config = demo.get_config()
    config.tokenizer.image_size = SIDE
    config.data.transform.crop = "random"
    config.data.transform.flip = True
    source = open_source(config, f"folder:{folder}", centre=True)
    return load_examples(source, 2).images[1]


def by_pretokenizing(folder):
    options = dict(kind="arrayrecord", shard_records=2, max_rejected=0.0)
    records = open_folder(str(folder))
    out = folder / "out"
    seen = []

    def encode(pixels):
        seen.extend(pixels)
        return jax.numpy.zeros((len(pixels), 77, 32), np.float16)

    writer = ShardWriter(out, records, CentreReader(SIDE), **options)
    writer.write(lambda: encode, batch_size=2, threads=1, ahead=1)
    return seen[0]


def by_evaluation(folder):
    centre = CentreReader(SIDE)
    given = dict(count=2, seed=0, threads=1, max_rejected=0.0)
    found = RealImages(f"folder:{folder}", centre, **given).read(range(2))
    return found[0].image


def by_reference(folder):
    return ImageReader(find_images(str(folder), SIDE), SIDE)(0)


def by_pictures(folder):
    """As Python is given them, a path and an open image."""
    (path, _) = (p for p in sorted(folder.iterdir()) if p.suffix != ".txt")
    with Image.open(path) as opened:
        first, second = load_images([path, opened], SIDE)
    np.testing.assert_array_equal(first, second)
    return np.rint(first * 255).astype(np.uint8)


def by_reference_of_whole_images(folder):
    return resize_clean(ImageReader(find_images(str(folder), SIDE), 0)(0))


def by_captioning(folder):
    seen = Seen()
    (path, _) = (p for p in sorted(folder.iterdir()) if p.suffix != ".txt")
    assert caption(seen, [str(path)], 0, False, lambda line: None) == 0
    return np.rint(seen.images[0] * 255).astype(np.uint8)


MODES = (
    by_preview,
    by_pretokenizing,
    by_evaluation,
    by_reference,
    by_captioning,
    by_pictures,
)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_sees_the_pixels_that_training_sees(folder, mode):
    wanted = by_training(folder)
    assert wanted.shape == (SIDE, SIDE, 3)
    assert len(np.unique(wanted)) > 8  # no blank page
    np.testing.assert_array_equal(mode(folder), wanted)


@pytest.mark.parametrize("size", SLIVERS, ids=str)
@pytest.mark.parametrize("mode", [by_training, *MODES, by_reference_of_whole_images])
def test_a_sliver_costs_no_mode_more_than_its_crop(tmp_path, mode, size):
    """Resized whole, 60,000 x 1 takes 250 MB even at 32 px, and 16 GB at 256 px."""
    (tmp_path / "small").mkdir()
    (tmp_path / "sliver").mkdir()
    mode(write_pair(tmp_path / "small", "a.png", made.encode(made.picture())))
    folder = write_pair(tmp_path / "sliver", "a.png", made.encode(made.picture(*size)))
    with memory.at_most(100 if mode is by_reference_of_whole_images else 20):
        found = mode(folder)
    assert found.shape[2] == 3


def test_a_rotated_file_is_seen_upright(tmp_path):
    (tmp_path / "a.jpg").write_bytes(rotated())
    found = CentreReader(40)(file_record(tmp_path / "a.jpg"))
    upright = made.picture(60, 40).rotate(-90, expand=True)
    wanted = np.asarray(upright.crop((0, 10, 40, 50)), int)
    assert np.abs(found - wanted).mean() < 4


def test_paper_is_white_behind_transparency(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert (CentreReader(8)(file_record(tmp_path / "a.png")) == 255).all()
