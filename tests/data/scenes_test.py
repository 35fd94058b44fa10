import itertools

import numpy as np
import pytest

from flowtok_jax.data import oracle, scenes
from flowtok_jax.data.sources import Shapes, make_source
from flowtok_jax.runtime.errors import UserError


def test_the_same_index_gives_the_same_record_and_seeds_differ():
    source, again = Shapes("train", 32, 3), Shapes("train", 32, 3)
    for index in (0, 7, 1 << 19):
        np.testing.assert_array_equal(source[index]["image"], again[index]["image"])
        assert source[index]["caption"] == again[index]["caption"]
    other = Shapes("train", 32, 4)
    assert any(source[i]["caption"] != other[i]["caption"] for i in range(10))
    assert source[0]["image"].shape == (32, 32, 3)
    assert source[0]["image"].dtype == np.uint8


def test_training_never_shows_a_held_out_object_and_held_out_always_does():
    held_out = {o for o in scenes.all_objects() if scenes.is_held_out((o,))}
    assert len(held_out) == 18
    train, test = Shapes("train", 32, 0), Shapes("held_out", 32, 0)
    for index in range(300):
        assert not held_out & set(train.scene(index))
        assert held_out & set(test.scene(index))


def test_every_pair_of_attributes_occurs_in_training():
    allowed = [o for o in scenes.all_objects() if not scenes.is_held_out((o,))]
    for a, b in itertools.combinations(("shape", "colour", "place"), 2):
        everywhere = {(getattr(o, a), getattr(o, b)) for o in scenes.all_objects()}
        assert {(getattr(o, a), getattr(o, b)) for o in allowed} == everywhere


def test_captions_parse_back_to_their_scene_in_every_phrasing():
    source = Shapes("seen", 32, 1)
    phrasings = set()
    for index in range(200):
        scene = source.scene(index)
        for caption in scenes.captions_of(scene):
            assert scenes.parse_caption(caption) == scene
            assert len(caption.split()) <= 15  # fits 16 tokens with the end token
        phrasings.add(source[index]["caption"].split()[0])
    assert len(phrasings) > 3


@pytest.mark.parametrize(
    ("shape", "area"),
    [("circle", np.pi), ("square", 1.6**2), ("triangle", 3 * np.sqrt(3) / 4)],
)
def test_coverage_adds_up_to_the_area_of_the_shape(shape, area):
    covered = scenes.coverage(shape, 6.0, 0.3, -0.2, 64, 4.0).sum() / 4.0**2
    assert covered == pytest.approx(area * 6.0**2, rel=0.02)


@pytest.mark.parametrize(
    "caption", ["", "a dog", "a red circle", "red circle top left blue square"]
)
def test_captions_that_do_not_name_every_attribute_do_not_parse(caption):
    assert scenes.parse_caption(caption) is None


@pytest.mark.parametrize("size", [32, 64])
def test_the_oracle_reads_every_real_image(size):
    source = Shapes("held_out", size, 5)
    for index in range(200):
        image = source[index]["image"] / 255.0
        assert oracle.read_scene(image) == source.scene(index)


def test_the_oracle_stands_mild_noise_and_refuses_what_is_no_scene():
    source, rng = Shapes("train", 32, 6), np.random.default_rng(0)
    image = source[0]["image"] / 255.0
    noisy = np.clip(image + 0.04 * rng.standard_normal(image.shape), 0, 1)
    assert oracle.read_scene(noisy) == source.scene(0)
    assert oracle.read_scene(rng.random((32, 32, 3))) is None
    assert oracle.read_scene(np.full((32, 32, 3), 0.1)) is None
    grey = np.where(image.max(-1, keepdims=True) > 0.4, 0.5, 0.1) * np.ones(3)
    assert oracle.read_scene(grey) is None  # no such colour in the palette


def test_the_oracle_sees_a_changed_colour_a_moved_object_and_a_second_one():
    rng = np.random.default_rng(0)
    red = scenes.Object("circle", "red", "top left")
    for other in (
        (red._replace(colour="blue"),),
        (red._replace(shape="square"),),
        (red._replace(place="top right"),),
        (red, red._replace(place="bottom right")),
    ):
        found = oracle.read_scene(scenes.render(other, rng, 32) / 255.0)
        assert found == other != (red,)


def test_unknown_splits_are_refused_by_name():
    with pytest.raises(UserError, match="shapes:test.*train, seen, held_out"):
        make_source("shapes:test", image_size=32, seed=0)
