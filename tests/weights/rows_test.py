"""Rows of networks under another vocabulary: kept, averaged, or new."""

import json

import jax
import numpy as np
import pytest

from flowtok_jax.data.vocabulary import END, PAD_ID, START, Vocabulary
from flowtok_jax.models.build import make_nets
from flowtok_jax.tasks import init_group
from flowtok_jax.weights.place import open_weights
from flowtok_jax.weights.rows import (
    ROWS,
    describe_match,
    match_tokens,
    move_rows,
    read_moved,
    store_moved_clip,
)
from flowtok_jax.weights.workdir import steps_of

OLD = ["a red fox", "the end"]
NEW = ["a red duck", "the snow"]


def ids(vocabulary, *tokens):
    return tuple(map(vocabulary.tokenizer.token_to_id, tokens))


@pytest.fixture
def words():
    return Vocabulary.train(OLD, 64, 8), Vocabulary.train(NEW, 64, 8)


@pytest.fixture
def pairs(tmp_path):
    """A vocabulary of byte pairs, in which "red" is one token and "dog" three."""
    letters = "adegioruht"
    tokens = ["!", *letters, *(f"{c}</w>" for c in letters), "re", "red</w>"]
    tokens += [START, END]
    vocab = {token: i for i, token in enumerate(tokens)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    return Vocabulary.read_clip(tmp_path, 8)


def test_a_word_is_found_in_the_other_vocabulary_whatever_its_id(words):
    old, new = words
    match = match_tokens(old, new)
    assert len(match) == len(new)
    for word in ("a", "red", "the"):
        assert match[ids(new, word)[0]] == ids(old, word)
    assert match[ids(new, "duck")[0]] == match[ids(new, "snow")[0]] == ()
    for name in ("end_id", "unknown_id"):
        assert match[getattr(new, name)] == (getattr(old, name),)
    assert match[PAD_ID] == (PAD_ID,)
    assert describe_match(old, match) == "kept 6 of 8 rows, 2 new"


def test_a_word_of_byte_pairs_keeps_its_row_or_gets_the_mean_of_its_parts(pairs):
    new = Vocabulary.train(["a red dog", "dog 7"], 64, 8, has_start=True)
    match = match_tokens(pairs, new)
    assert match[ids(new, "red")[0]] == ids(pairs, "red</w>")
    assert match[ids(new, "dog")[0]] == ids(pairs, "d", "o", "g</w>")
    assert match[ids(new, "7")[0]] == ()
    assert match[new.start_id] == (pairs.start_id,)
    assert match[new.unknown_id] == ()
    assert describe_match(pairs, match) == (
        f"kept 5 of {len(pairs)} rows, 1 as the mean of their parts' rows, 2 new"
    )


def test_a_byte_pair_finds_the_word_that_it_ends(pairs):
    old = Vocabulary.train(["a red dog re"], 64, 8)
    match = match_tokens(old, pairs)
    assert match[ids(pairs, "red</w>")[0]] == ids(old, "red")
    assert match[ids(pairs, "re")[0]] == ()  # inside of a word
    assert match_tokens(pairs, pairs) == [(i,) for i in range(len(pairs))]


def test_captions_of_a_vocabulary_with_a_start_survive():
    new = Vocabulary.train(NEW, 64, 8, has_start=True)
    encoded = new.encode(NEW)
    assert (encoded[:, 0] == new.start_id).all()
    assert new.decode(encoded) == NEW
    row = np.array([[new.start_id, 0, *ids(new, "red"), 0]])
    assert new.decode(row) == ["red"]
    new.check(len(new) + 3, "here")  # words may be fewer than rows


@pytest.mark.parametrize("group", ROWS)
def test_rows_are_bitwise_those_of_before_or_fresh(group):
    rng = np.random.default_rng(0)

    def draw(count):
        tree = {}
        for path, axis in ROWS[group].items():
            shape = (count,) if path.endswith("bias") else (count, 5)
            name, layer, leaf = path.split("/")
            array = np.moveaxis(rng.standard_normal(shape, np.float32), 0, axis)
            tree.setdefault(name, {}).setdefault(layer, {})[leaf] = array
        return tree | {"other": {"layer": {"leaf": rng.standard_normal(3)}}}

    old, fresh = draw(7), draw(4)
    moved = move_rows(group, old, fresh, [(6,), (), (1, 2), (0,)])
    for path, axis in ROWS[group].items():
        name, layer, leaf = path.split("/")
        before, drawn, after = (
            np.moveaxis(tree[name][layer][leaf], axis, 0)
            for tree in (old, fresh, moved)
        )
        expected = [before[6], drawn[1], (before[1] + before[2]) / 2, before[0]]
        np.testing.assert_array_equal(after, np.stack(expected))
    assert moved["other"]["layer"]["leaf"] is old["other"]["layer"]["leaf"]


# A run of the demo has no tower of t2i's own, and does not train both.
@pytest.mark.parametrize("group", sorted(set(ROWS) - {"t2i", "both"}))
def test_weights_are_read_under_another_vocabulary(demo, flowtok, config, group):
    old = flowtok.vocabulary
    new = Vocabulary.train(["a red duck"], 64, old.context)
    config.clip.vocab_size = len(new)
    nets = make_nets(config)
    fresh = init_group(nets, group, jax.random.key(3))
    wanted = jax.eval_shape(lambda: fresh)
    weights = open_weights(demo.workdir)
    moved = read_moved(weights, group, wanted, nets, new, lambda: fresh)
    assert jax.tree.map(np.shape, moved) == jax.tree.map(np.shape, fresh)
    (path, axis), *_ = ROWS[group].items()
    name, layer, leaf = path.split("/")
    there, drawn, here = (
        np.moveaxis(np.asarray(tree[name][layer][leaf]), axis, 0)
        for tree in (flowtok.params[group], fresh, moved)
    )
    np.testing.assert_array_equal(here[ids(new, "red")], there[ids(old, "red")])
    np.testing.assert_array_equal(here[ids(new, "duck")], drawn[ids(new, "duck")])
    blocks = (tree[name]["blocks"] for tree in (flowtok.params[group], moved))
    jax.tree.map(np.testing.assert_array_equal, *blocks)


def test_a_tower_is_stored_once(demo, flowtok, config, tmp_path):
    nets = make_nets(config)
    drawn = []

    def init():
        drawn.append(1)
        return init_group(nets, "clip", jax.random.key(0))

    starts = [open_weights(demo.workdir)]
    for _ in range(2):
        store_moved_clip(tmp_path, starts, nets, flowtok.vocabulary, init)
        assert steps_of(tmp_path, "clip") == [0]
    assert len(drawn) == 2  # its shapes, and its values
    store_moved_clip(tmp_path / "none", [], nets, flowtok.vocabulary, init)
    assert steps_of(tmp_path / "none", "clip") == []
