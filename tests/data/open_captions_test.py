"""Captions that leave things open, and what is right for them."""

import collections

import numpy as np
import pytest

from flowtok_jax.data import scenes
from flowtok_jax.data.open_captions import (
    Wanted,
    draw_wanted,
    evenness,
    match_objects,
    open_colours,
    read_caption,
    write_caption,
)
from flowtok_jax.data.oracle import read_scene
from flowtok_jax.data.scenes import Object
from flowtok_jax.data.sources import make_source

RED = Object("circle", "red", "top left")
BLUE = Object("square", "blue", "bottom right")


@pytest.fixture(scope="module")
def source():
    return make_source("shapes:open", image_size=32, seed=0)


def test_a_caption_names_what_it_says():
    wanted = (Wanted(None, "red", None), Wanted("circle", None, "top left"))
    caption = "a red thing and a circle at the top left"
    assert write_caption(wanted) == caption
    assert read_caption(caption) == wanted
    assert write_caption([Wanted()]) == "a thing"


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a red",
        "red circle",
        "a circle red",
        "a pink circle",
        "a thing and",
        "a dog",
    ],
)
def test_other_captions_name_nothing(caption):
    assert read_caption(caption) is None


def test_every_caption_is_read_as_it_was_meant_and_fits_its_scene(source):
    for i in range(300):
        wanted = read_caption(source[i]["caption"])
        scene = source.scene(i)
        assert wanted is not None
        assert len(wanted) == len(scene)
        assert sorted(match_objects(scene, wanted)) == sorted(scene)
        assert read_scene(source[i]["image"] / np.float32(255)) == scene


def test_three_in_ten_are_whole_and_of_the_others_half_is_named():
    rng = np.random.default_rng(0)
    scene = (RED, BLUE)
    named = [
        [x is not None for w in draw_wanted(scene, rng) for x in w] for _ in range(4000)
    ]
    whole = np.mean([all(row) for row in named])
    assert whole == pytest.approx(0.3 + 0.7 / 64, abs=0.02)
    rest = [row for row in named if not all(row)]
    assert np.mean(rest) == pytest.approx(0.5 - 0.5 / 63, abs=0.02)


def test_objects_may_come_in_either_order():
    wanted = (Wanted(None, "blue", None), Wanted("circle"))
    assert match_objects((RED, BLUE), wanted) == (BLUE, RED)
    assert match_objects((RED, RED), wanted) is None
    assert match_objects((BLUE,), wanted) is None
    assert match_objects(None, wanted) is None


def test_an_object_cannot_be_both_of_two_that_are_named():
    wanted = (Wanted("circle"), Wanted(None, "red"))
    assert match_objects((RED, BLUE), wanted) is None
    assert match_objects((RED, BLUE._replace(colour="red")), wanted) is not None


def test_colours_are_counted_only_where_they_were_open_and_the_scene_is_right():
    colours = list(scenes.COLOURS)
    red = colours.index("red")
    blue = colours.index("blue")

    def found(*wanted: Wanted) -> list[int]:
        return open_colours(match_objects((RED, BLUE), wanted), wanted)

    assert found(Wanted("circle"), Wanted("square")) == [red, blue]
    assert found(Wanted(None, "red"), Wanted("square")) == [blue]
    assert found(Wanted("triangle"), Wanted()) == []


def test_evenness_goes_from_one_colour_to_all_alike():
    assert evenness([3] * 10) == 0
    assert evenness(list(range(6)) * 5) == pytest.approx(1)
    assert 0.3 < evenness([0, 1] * 5) < 0.5
    assert evenness([]) == 0


def test_what_a_model_should_draw_is_spread_evenly(source):
    """Real pictures: the ceiling of what eval/t2i.py measures."""
    colours = []
    for i in range(400):
        wanted = read_caption(source[i]["caption"])
        colours += open_colours(match_objects(source.scene(i), wanted), wanted)
    assert evenness(colours) > 0.98
    count = collections.Counter(len(source.scene(i)) for i in range(400))
    assert count[2] > count[1]
