import html
import json
import logging
import pickle
import socket

import ftfy
import huggingface_hub
import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowtok_jax.data import vocabulary as vocabulary_file
from flowtok_jax.data.clean import clean_caption
from flowtok_jax.data.vocabulary import END, START, UNKNOWN, Vocabulary
from flowtok_jax.data.words import LEAST_USES
from flowtok_jax.runtime.errors import UserError
from tests import tiny

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


@pytest.mark.parametrize(
    "caption",
    [
        "woman farmer medium-light skin tone",
        "rescue worker's helmet",
        "a button (blood type)",
        "sky, clouds; rain. and/or snow!",
        "keycap #",
        "keycap *",
    ],
)
def test_punctuation_is_joined_as_it_was(caption):
    vocabulary = Vocabulary.train([caption], 64, 24)
    assert vocabulary.decode(vocabulary.encode([caption])) == [caption]


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


@pytest.fixture(scope="session")
def real_clip(tmp_path_factory):
    """CLIP's real vocabulary, and the captions with the ids that open_clip gives."""
    directory = tmp_path_factory.mktemp("clip_vocabulary")
    tiny.write_clip_vocabulary(directory)
    captions, ids = tiny.golden_captions()
    return Vocabulary.load(str(directory), 77), captions, ids.tolist()


@pytest.mark.parametrize("warns", [False, True])
def test_captions_get_the_ids_of_the_release_s_tokenizer(real_clip, tmp_path, warns):
    clip, captions, ids = real_clip
    clip.save(tmp_path)
    # As trained, as loaded, and as a worker process gets the vocabulary.
    stored = Vocabulary.load(str(tmp_path), 77)
    for vocabulary in (clip, stored, pickle.loads(pickle.dumps(stored))):
        got = vocabulary.encode(captions, warns=warns).tolist()
        assert [c for c, a, b in zip(captions, got, ids, strict=True) if a != b] == []


def test_the_files_of_the_hub_in_either_form_are_one_vocabulary(real_clip, tmp_path):
    clip, captions, ids = real_clip
    (tmp_path / "tokenizer.json").write_text(clip.tokenizer.to_str())
    whole = Vocabulary.load(str(tmp_path), 77)
    assert whole.sha256() == clip.sha256() == vocabulary_file.CLIP_SHA256
    assert whole.encode(captions, warns=False).tolist() == ids


def test_clip_s_ids_decode_to_words(real_clip):
    clip, _, _ = real_clip
    assert clip.decode(clip.encode(["A café’s  door!"])) == ["a café 's door !"]


def test_a_vocabulary_of_an_older_version_keeps_its_meaning(tmp_path, clip_directory):
    directory, _ = clip_directory
    old = transformers.CLIPTokenizer.from_pretrained(directory).backend_tokenizer
    (tmp_path / "vocabulary.json").write_text(old.to_str())
    captions = ["red &amp; Red", "a <|endoftext|> red"]
    expected = [e.ids for e in old.encode_batch(captions, add_special_tokens=False)]
    vocabulary = Vocabulary.load(str(tmp_path), 40)
    for row, ids in zip(vocabulary.encode(captions), expected, strict=True):
        assert row[1 : len(ids) + 1].tolist() == ids
    vocabulary.save(tmp_path / "again")  # without a cleaning that it never had
    again = Vocabulary.load(str(tmp_path / "again"), 40)
    np.testing.assert_array_equal(again.encode(captions), vocabulary.encode(captions))


@pytest.mark.parametrize("text", ["<|endoftext|>", "<pad>", "<unk>", "<|startoftext|>"])
def test_the_texts_of_special_tokens_are_plain_text(real_clip, text):
    words = Vocabulary.train([*CAPTIONS, "pad unk < >"], 64, 12)
    for vocabulary in (words, real_clip[0]):
        ids = vocabulary.encode([f"a {text} circle", "a circle"])
        ends = (ids == vocabulary.end_id).sum(axis=1)
        assert ends.tolist() == [1, 1]
        assert (ids != 0).sum(axis=1)[0] > (ids != 0).sum(axis=1)[1]


def test_words_are_cleaned_before_they_are_learned_and_before_they_are_read():
    vocabulary = Vocabulary.train(["a dog’s &amp; a cat&#39;s ＢＯＷＬ"], 64, 12)
    ids = vocabulary.encode(["A dog's & a  cat's bowl", "a dog’s &amp; a cat’s bowl"])
    assert vocabulary.unknown_id not in ids
    np.testing.assert_array_equal(ids[0], ids[1])


def test_compounds_that_are_used_often_are_words_and_others_their_parts(tmp_path):
    captions = ["medium-dark hat", "dark medium-dark-blue hat"] * LEAST_USES
    Vocabulary.train([*captions, "a t-rex"], 64, 12).save(tmp_path)
    vocabulary = Vocabulary.load(str(tmp_path), 12)

    def split(caption):
        return vocabulary.tokenizer.encode(caption).tokens

    assert split("medium-dark hat") == ["medium-dark", "hat"]
    assert split("a dark t-rex") == ["a", "dark", "t", "-", "rex"]
    assert split("medium-dark-blue") == ["medium-dark-blue"]
    whole = "medium-dark hat medium-dark-blue t-rex"
    assert vocabulary.decode(vocabulary.encode([whole])) == [whole]


def test_a_compound_without_room_is_split():
    captions = ["a dark hat"] * 2 * LEAST_USES + ["dark-hat"] * LEAST_USES
    vocabulary = Vocabulary.train(captions, 6, 12)
    assert vocabulary.tokenizer.encode("dark-hat").tokens == ["dark", UNKNOWN, "hat"]


@settings(derandomize=True, deadline=None)
@given(st.text(max_size=60))
@example("plain ascii  with  spaces ")
@example("AT&amp;T &amp;amp;lt; &#x2764; &notanentity;")
@example("\x1b[31mred\x1b[0m\x00 \x7f")
@example("\ud83d half a pair")
def test_the_fast_way_of_cleaning_is_open_clip_s(caption):
    text = html.unescape(html.unescape(ftfy.fix_text(caption))).strip()
    assert clean_caption(caption) == " ".join(text.split()).lower()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no vocabulary, or damaged"),
        ("[1, 2]", "list instead of an object"),
        ('{"a": 1}', "is no vocabulary, or damaged"),
        ('{"cleaning": "better", "tokenizer": {}}', "made by a newer version"),
    ],
)
def test_a_damaged_vocabulary_is_named(tmp_path, content, message):
    (tmp_path / "vocabulary.json").write_text(content)
    with pytest.raises(UserError, match=message):
        Vocabulary.load(str(tmp_path), 8)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "has no vocabulary; expected vocab.json and merges.txt"),
        ({"vocab.json": "{}"}, "has no vocabulary; expected vocab.json and merges.txt"),
        ({"vocab.json": "{}", "merges.txt": ""}, "is not CLIP's: 0 tokens, start None"),
        (
            {"vocab.json": json.dumps({START: 0, END: 1}), "merges.txt": ""},
            "is not CLIP's: 2 tokens, start 0, end 1",
        ),
        ({"vocab.json": '{"a": 0}', "merges.txt": "a b\n"}, "vocab.json is no vocab"),
        ({"vocab.json": "{}", "merges.txt": "a b c\n"}, "no byte pairs as CLIP's"),
        ({"tokenizer.json": '{"model": {"type": "Unigram"}}'}, "no byte pairs"),
        ({"tokenizer.json": '{"model": 3}'}, "no byte pairs"),
    ],
)
def test_files_that_are_no_vocabulary_of_clip_are_refused(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        Vocabulary.load(str(tmp_path), 8)


def test_a_vocabulary_of_other_tokens_than_the_tower_s_is_refused(real_clip, tmp_path):
    clip, _, _ = real_clip
    clip.check(49408, "here")
    for size in (49407, 49409):
        with pytest.raises(UserError, match=r"49408 tokens \(start 49406, end 49407\)"):
            clip.check(size, "here")
    content = json.loads(clip.tokenizer.to_str())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    other = Vocabulary(tokenizers.Tokenizer.from_str(json.dumps(content)), 77)
    with pytest.raises(
        UserError, match="here is not OpenAI's, although it has as many"
    ):
        other.check(49408, "here")
    words = Vocabulary.train(CAPTIONS, 32, 8)
    words.check(32, "captions")  # captions had fewer words
    with pytest.raises(UserError, match=r"tokens \(no start, end 1\)"):
        words.check(3, "captions")


def test_the_hub_is_asked_once_and_its_cache_alone_where_the_user_says_so(
    clip_directory, monkeypatch
):
    directory, _ = clip_directory
    asked = []

    def snapshot_download(repo, **options):
        asked.append((repo, options["local_files_only"]))
        return str(directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    Vocabulary.load("some/clip", 8)
    Vocabulary.load("some/clip", 8, local_files_only=True)
    assert asked == [("some/clip", False), ("some/clip", True)]


def test_without_the_hub_a_vocabulary_is_refused_in_one_line(monkeypatch):
    attempts = []

    def refuse(*args, **kwargs):
        attempts.append(args)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(UserError, match="no/such-thing does not exist here") as raised:
        Vocabulary.load("no/such-thing", 77)
    assert "\n" not in str(raised.value)
    assert len(attempts) <= 2


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


def test_what_is_lost_of_captions_is_said_once_and_in_one_line_a_call(
    vocabulary, caplog
):
    long = " ".join(["a red circle"] * 9)
    captions = ["a red lobster", "a blue violin", "a red circle", long, f"a {long}"]
    for _ in range(2):
        vocabulary.encode(captions)
    room = vocabulary.context - 1 - (vocabulary.start_id is not None)
    assert caplog.messages == [
        f"2 captions have up to 28 tokens and were cut to {room}: {long!r}",
        "2 captions have words that the vocabulary lacks, lobster, violin: "
        "'a red lobster'",
    ]
    vocabulary.encode([*captions, "a red cello"])
    assert caplog.messages[2:] == [
        "caption has words that the vocabulary lacks, cello: 'a red cello'"
    ]


def test_a_quiet_vocabulary_says_nothing(vocabulary, caplog):
    captions = ["a purple circle"]
    quiet = vocabulary.quiet()
    np.testing.assert_array_equal(quiet.encode(captions), vocabulary.encode(captions))
    told = caplog.text
    assert "purple" in told
    quiet.encode(["a mauve circle"])
    assert caplog.text == told
