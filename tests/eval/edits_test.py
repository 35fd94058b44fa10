"""Edits of scenes, and the oracle that judges them."""

import collections

import numpy as np
import pytest

from flowtok_jax.data import scenes
from flowtok_jax.data.scenes import Object
from flowtok_jax.eval.edits import draw_edits, judge_edit, judge_edits

RNG = np.random.default_rng(0)


def shown(*objects):
    return scenes.render(objects, np.random.default_rng(0), 32) / np.float32(255)


def rendered(edit):
    return shown(*edit.kept, edit.new)


@pytest.fixture(scope="module")
def drawn():
    return draw_edits(60, 32, 1)


def test_edits_ask_for_one_attribute_and_say_so(drawn):
    images, edits = drawn
    assert images.shape == (60, 32, 32, 3)
    assert collections.Counter(e.attribute for e in edits) == {
        "shape": 20,
        "colour": 20,
        "place": 20,
    }
    for edit in edits:
        before, after = map(scenes.parse_caption, (edit.before, edit.after))
        assert set(before) == {*edit.kept, edit.old}
        assert set(after) == {*edit.kept, edit.new}
        differing = [
            f for f in Object._fields if getattr(edit.old, f) != getattr(edit.new, f)
        ]
        assert differing == [edit.attribute]
        assert edit.new.place not in {o.place for o in edit.kept}


def test_edits_are_drawn_by_their_seed(drawn):
    images, edits = draw_edits(60, 32, 1)
    np.testing.assert_array_equal(images, drawn[0])
    assert edits == drawn[1]
    assert draw_edits(60, 32, 2)[1] != edits


def test_done_as_asked_is_right_and_not_done_is_unchanged(drawn):
    images, edits = drawn
    done = judge_edits(np.stack([rendered(e) for e in edits]), edits)
    assert done["asked"].mean() > 0.95
    assert done["unchanged"].mean() > 0.95
    not_done = judge_edits(images, edits)
    assert not not_done["asked"].any()
    assert not_done["unchanged"].mean() > 0.95


def test_what_else_changed_is_noticed():
    edit = draw_edits(1, 32, 0)[1][0]._replace(
        attribute="colour",
        old=Object("circle", "red", "top left"),
        new=Object("circle", "blue", "top left"),
        kept=(Object("square", "green", "top right"),),
    )
    other, new = edit.kept[0], edit.new
    cases = {
        (new, other): (True, True),
        (edit.old, other): (False, True),
        (new._replace(colour="white"), other): (False, True),
        (new._replace(shape="square"), other): (True, False),
        (new, other._replace(colour="red")): (True, False),
        (new,): (True, False),
        (new, other, Object("circle", "red", "bottom left")): (True, False),
        (new._replace(place="bottom left"), other): (False, False),
    }
    for objects, expected in cases.items():
        assert judge_edit(shown(*objects), edit) == expected, objects
    moved = edit._replace(
        attribute="place", new=edit.old._replace(place="bottom right")
    )
    assert judge_edit(shown(moved.new, other), moved) == (True, True)
    assert judge_edit(shown(moved.old, other), moved) == (False, True)
    assert judge_edit(shown(moved.old, moved.new, other), moved) == (False, False)
    nearby = moved.new._replace(place="bottom left")
    assert judge_edit(shown(nearby, other), moved) == (False, True)
    assert judge_edit(RNG.random((32, 32, 3)), moved) == (False, False)
