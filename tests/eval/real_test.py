import numpy as np
import pytest
from PIL import Image

from flowtok_jax.data.centre import CentreReader
from flowtok_jax.data.records import Side
from flowtok_jax.data.sources import Shapes
from flowtok_jax.eval.real import RealImages
from flowtok_jax.runtime.errors import UserError


def write(folder, count=6):
    """Images twice as wide as high: black, with a white square in the middle."""
    folder.mkdir()
    for i in range(count):
        pixels = np.zeros((20, 40, 3), np.uint8)
        pixels[:, 10:30] = 255
        Image.fromarray(pixels).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture {i}")
    return folder


def open_real(spec, count=6, **options):
    centre = CentreReader(20)
    given = dict(seed=0, threads=2, max_rejected=0.3) | options
    return RealImages(spec, centre, count=count, **given)


def test_images_are_the_centre_whatever_training_does(tmp_path):
    real = open_real(f"folder:{write(tmp_path / 'set')}")
    items = real.read(range(2, 5))
    assert [item.number for item in items] == [2, 3, 4]
    assert (real.rejected, real.left_out) == ({}, "")
    for item in items:
        np.testing.assert_array_equal(item.image, real.pixels(item.number))
        assert item.image[:, 2:-2].min() > 250
        assert item.record.captions == (f"picture {item.number}",)
    assert [p.caption for p in real.prompts] == [f"picture {i}" for i in range(6)]
    assert not real.are_scenes


def test_scenes_are_known_to_be_what_they_show():
    real = open_real("shapes:held_out", 9)
    assert real.are_scenes
    assert (real.count, len(real.prompts)) == (9, 9)
    assert real.scene(3)


def test_fewer_than_two_images_are_refused(tmp_path):
    with pytest.raises(UserError, match="has 1 images; expected at least 2"):
        open_real(f"folder:{write(tmp_path / 'set', 1)}")


def test_fewer_than_all_are_drawn_by_seed_over_the_whole_source(tmp_path):
    spec = f"folder:{write(tmp_path / 'set', 30)}"

    def drawn(count, seed):
        real = open_real(spec, count, drawn_by=seed)
        items = real.read(range(count))
        return [item.record.captions[0] for item in items]

    first = [f"picture {i}" for i in range(4)]
    assert len(set(drawn(4, 0))) == 4
    assert drawn(4, 0) == drawn(4, 0) != first
    assert drawn(4, 0) != drawn(4, 1)
    assert drawn(30, 0) == drawn(30, 1)


def test_held_out_images_are_named_in_what_the_numbers_depend_on(tmp_path):
    spec = f"folder:{write(tmp_path / 'set', 30)}"
    side = Side(0.3, True)
    real = open_real(spec, 30, side=side)
    assert 2 <= real.count < 20
    assert real.choice == {"held_out": 0.3}
    assert open_real(spec, 30).choice == {}
    assert open_real(spec, 2, side=side).choice == {"held_out": 0.3, "drawn_by": 0}
    scenes = open_real("shapes", 5, side=side)
    whole = Shapes("train", 20, 0)
    numbers = whole.on_side(side).indices[:5]
    assert [scenes.scene(i) for i in range(5)] == [whole.scene(n) for n in numbers]
