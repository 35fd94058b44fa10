import json
import logging

import numpy as np
import pytest

from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.runtime.errors import UserError

CAPTIONS = ["a red circle at the top left", "a blue square", "the top of a circle"]


@pytest.fixture
def vocabulary():
    return Vocabulary.train(CAPTIONS, 32, 8)


@pytest.fixture
def clip_directory(tmp_path):
    """A tokenizer directory as CLIP's, with few merges."""
    letters = "adeghiorstu"
    tokens = [*letters, *(f"{c}</w>" for c in letters), "re", "red</w>"]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(["!", *tokens])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 77}')
    return tmp_path, vocab


def test_captions_survive_encoding_and_decoding(vocabulary):
    ids = vocabulary.encode(CAPTIONS)
    assert ids.shape == (3, 8)
    assert ids.dtype == np.int32
    assert vocabulary.decode(ids) == CAPTIONS
    row = ids[1].tolist()
    assert row.index(vocabulary.end_id) == 3
    assert row[4:] == [0] * 4


def test_long_captions_are_cut_keeping_the_end_token_and_named(vocabulary, caplog):
    long = "a red circle at the top left of a blue square"
    with caplog.at_level(logging.WARNING):
        ids = vocabulary.encode([long])
    assert ids[0, -1] == vocabulary.end_id
    assert "11 tokens" in caplog.text
    assert long in caplog.text


def test_unknown_words_are_named(vocabulary, caplog):
    with caplog.at_level(logging.WARNING):
        vocabulary.encode(["a green circle"])
    assert "green" in caplog.text


def test_decoding_stops_at_the_first_end_token(vocabulary):
    ids = vocabulary.encode(["a red circle"])[0]
    ids[5] = ids[1]  # after the end
    assert vocabulary.decode(ids[None]) == ["a red circle"]
    ids[3] = 0  # padding instead of the end token
    assert vocabulary.decode(ids[None, :5]) == ["a red circle"]


def test_a_vocabulary_is_the_same_after_saving(vocabulary, tmp_path):
    vocabulary.save(tmp_path)
    loaded = Vocabulary.load(str(tmp_path), 8)
    np.testing.assert_array_equal(loaded.encode(CAPTIONS), vocabulary.encode(CAPTIONS))


def test_clip_ids_have_start_end_and_zero_padding(clip_directory):
    directory, vocab = clip_directory
    clip = Vocabulary.load(str(directory), 8)
    ids = clip.encode(["Red"])[0].tolist()
    start, end = vocab["<|startoftext|>"], vocab["<|endoftext|>"]
    assert ids == [start, vocab["red</w>"], end, 0, 0, 0, 0, 0]
    assert clip.decode(np.array([ids])) == ["red"]


def test_a_vocabulary_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="nowhere"):
        Vocabulary.load(str(tmp_path / "nowhere"), 8)


def test_without_warnings_ids_are_the_same_and_nothing_is_said(vocabulary, caplog):
    captions = [*CAPTIONS, "a green circle", "a red circle at the top left of a square"]
    quiet = vocabulary.encode(captions, warns=False)
    assert caplog.text == ""
    np.testing.assert_array_equal(quiet, vocabulary.encode(captions))
    assert caplog.text != ""
