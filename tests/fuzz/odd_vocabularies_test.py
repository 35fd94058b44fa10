"""Captions of any letters through a vocabulary, and vocabularies that are none."""

import functools
import json

import numpy as np
import pytest
from hypothesis import strategies as st

from flowtok_jax.data.vocabulary import Vocabulary
from tests.fuzz.bounds import fresh, odd, opened
from tests.fuzz.odd_tables_test import damaged
from tests.fuzz.strategies import typed_names, words

CONTEXT = 12
MARKS = (
    "<|endoftext|>",
    "<|startoftext|>",
    "<unk>",
    "<pad>",
    "’",
    "&amp;",
    "\x00",
    "￿",
)
texts = st.one_of(
    words,
    st.lists(st.sampled_from((*MARKS, "a", "red", "Fox ", " ", "é"))).map("".join),
    st.integers(1, 3000).map(lambda times: "red fox " * times),
)


@functools.cache
def vocabulary() -> Vocabulary:
    return Vocabulary.train(["a red fox", "a blue fox in snow"], 32, CONTEXT)


@odd(200, captions=st.lists(texts, max_size=4))
def test_captions_of_any_letters_become_ids(captions):
    known = vocabulary()
    ids = known.encode(captions, warns=False)
    assert ids.shape == (len(captions), CONTEXT)
    assert ids.dtype == np.int32
    assert ((ids >= 0) & (ids < len(known))).all()
    for row in ids.tolist():
        # One end, whatever the caption says of ends, and nothing behind it.
        at = row.index(known.end_id)
        assert set(row[at + 1 :]) <= {0}
    np.testing.assert_array_equal(ids, known.encode(captions))
    decoded = known.decode(ids)
    assert len(decoded) == len(captions)


@odd(60, ids=st.lists(st.lists(st.integers(-1, 40), min_size=3, max_size=3)))
def test_ids_of_any_value_become_texts(ids):
    rows = np.array(ids, np.int32).reshape(len(ids), 3)
    found = vocabulary().decode(np.clip(rows, 0, 2**31 - 1))
    assert all(isinstance(text, str) for text in found)


@odd(40, captions=st.lists(texts, max_size=5), size=st.integers(3, 50))
def test_a_vocabulary_of_any_captions_can_be_kept(captions, size):
    made = Vocabulary.train(captions, size, CONTEXT)
    with fresh() as root:
        made.save(root)
        again = Vocabulary.load(str(root), CONTEXT)
    assert len(again) == len(made)
    np.testing.assert_array_equal(again.encode(captions), made.encode(captions))


files = st.one_of(
    st.binary(max_size=60),
    st.sampled_from((b"{}", b"[]", b"null", b"", b'{"version": "1.0"}')),
    st.just(None).flatmap(lambda _: damaged(_whole())),
)


@functools.cache
def _whole() -> bytes:
    return vocabulary().tokenizer.to_str().encode()


@odd(100, data=files)
def test_a_file_that_is_no_vocabulary_is_refused(data):
    with fresh() as root:
        (root / "vocabulary.json").write_bytes(data)
        for place in (root, root / "vocabulary.json"):
            found = opened(Vocabulary.load, str(place), CONTEXT)
            if found is not None:
                assert found.encode(["a red fox"]).shape == (1, CONTEXT)


@pytest.fixture
def offline(monkeypatch):
    """Answers of the hub: none."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


hub_names = st.lists(typed_names, min_size=1, max_size=3).map("/".join)


@pytest.mark.usefixtures("offline")
@odd(30, name=hub_names | st.text(min_size=1, max_size=9))
def test_a_name_that_is_no_vocabulary_is_refused_at_once(name):
    if "://" not in name and "\n" not in name and "\r" not in name:
        assert opened(Vocabulary.load, f"no-such-{name}", CONTEXT) is None


def test_a_folder_without_tokenizer_files_is_refused():
    with fresh() as root:
        (root / "config.json").write_text(json.dumps({"model_type": "clip"}))
        assert opened(Vocabulary.load, str(root), CONTEXT) is None
