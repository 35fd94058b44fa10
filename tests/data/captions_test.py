import logging
import math

import pytest

from configs import default
from flowtok_jax.data import captions
from flowtok_jax.data.captions import CaptionOptions, log_once
from flowtok_jax.data.folder import open_folder
from flowtok_jax.data.loader import caption_options
from flowtok_jax.data.records import BadRecord
from flowtok_jax.data.sources import make_source
from flowtok_jax.runtime.errors import UserError
from tests.data import made

USUAL = CaptionOptions()
FIRST = CaptionOptions("first_line")


def reason_of(function, *arguments) -> str:
    with pytest.raises(BadRecord) as found:
        function(*arguments)
    return found.value.reason


@pytest.mark.parametrize(
    ("value", "expected"),
    [("a ", ("a",)), (["a", " ", "b"], ("a", "b"))],
)
def test_captions_of_json(value, expected):
    assert USUAL.texts(value, "it") == expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "missing_caption"),
        (7, "missing_caption"),
        ([], "missing_caption"),
        (["a", 7], "missing_caption"),
        ("", "empty_caption"),
        ([" "], "empty_caption"),
        (["a", "\ud800"], "bad_text_encoding"),
    ],
)
def test_what_is_no_caption(value, reason):
    assert reason_of(USUAL.texts, value, "it") == reason


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xef\xbb\xbfa fox\r\n", "a fox"),
        ("a café".encode("utf-16"), "a café"),
        ("a café".encode("utf-16-be"), None),  # without its mark
        (b"\xfe\xff" + "a café".encode("utf-16-be"), "a café"),
        ("a café".encode("utf-32"), "a café"),
        ("a fox".encode("utf-16-le"), "a fox"),  # without a mark, but ASCII
        (b"a\0 fox\0\0", "a fox"),
        (b"\xef\xbb\xbf \n\t", ""),
        (b"\0\0\0", ""),
        ("\u200b\ufeff\u200d\u00a0\u3164".encode(), ""),
        ("\u2060a fox\u200e".encode(), "\u2060a fox\u200e"),
        ("voilÃ\xa0".encode(), "voilÃ\xa0"),  # whose letter ftfy restores
        ("â€œmojibakeâ€\x9d".encode(), "â€œmojibakeâ€\x9d"),  # is mended later
        ("👩\u200d🌾 in a field".encode(), "👩\u200d🌾 in a field"),
        ("نامه\u200cای".encode(), "نامه\u200cای"),  # the non-joiner has a meaning
        (b"caf\xe9", None),
        (b"\xff\xfea", None),  # cut short
    ],
)
def test_bytes_of_a_caption(data, expected):
    if expected is None:
        assert reason_of(USUAL.decode, data, "it") == "bad_text_encoding"
    else:
        assert USUAL.decode(data, "it") == expected


def test_a_caption_of_megabytes_is_none():
    assert reason_of(USUAL.decode, b"a" * (captions.MAX_BYTES + 1), "x") == "too_large"


LINES = "a red fox\r\nfr.utf8=un renard roux\nde.utf8=ein Fuchs\n"


def test_several_lines_are_one_caption_or_the_first_of_them():
    assert USUAL.clean(LINES) == LINES.strip()
    assert FIRST.clean(LINES) == "a red fox"
    assert FIRST.clean("\ufeff\n \u200b\n a fox \n two") == "a fox"
    assert FIRST.clean("a\u2028b") == "a\u2028b"  # no end of a line in a file
    assert FIRST.texts(["a\nb", "c"], "it") == ("a", "c")


def test_several_lines_are_said_once(caplog, monkeypatch):
    monkeypatch.setattr(captions, "_told", set())
    for name in ("x/1", "x/2"):
        USUAL.decode(LINES.encode(), name)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith("x/1 has a caption of several lines")
    assert "data.captions=first_line" in said[0]


def test_keys_are_tried_in_their_order():
    assert USUAL.pick({"prompt": "p", "text": "t"}) == "t"
    assert USUAL.pick({"caption": "", "prompt": "p"}) == "p"
    assert USUAL.pick({"caption": None}) == ""
    assert USUAL.pick({"tags": "t"}) is None
    assert CaptionOptions(keys=("tags",)).pick({"tags": "t", "text": "x"}) == "t"


def test_a_list_of_further_captions_is_added():
    assert USUAL.pick({"text": "a", "texts": ["b", "c"]}) == ["a", "b", "c"]
    assert USUAL.pick({"text": "", "texts": ["b"]}) == ["b"]
    assert USUAL.pick({"text": "a", "texts": []}) == ["a"]
    for foreign in ("b", [1], {"b": 1}, None):
        assert USUAL.pick({"text": "a", "texts": foreign}) == "a"


def test_a_key_is_no_rival_of_itself():
    assert USUAL.rivals({"caption": math.nan}) == []
    assert USUAL.rivals({"caption": "a", "text": "a", "prompt": ""}) == []
    assert USUAL.rivals({"caption": "a", "text": ["a"]}) == ["caption", "text"]


def test_options_come_as_texts_too():
    options = CaptionOptions(keys="tags, text", extensions=(".TXT,cap",))
    assert options.keys == ("tags", "text")
    assert options.extensions == ("txt", "cap")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"reading": "first"},
            "data.captions is 'first'; expected one of whole, f",
        ),
        (
            {"extensions": " ., .. "},
            "data.caption_extensions is ' ., .. '; expected names",
        ),
        ({"keys": ()}, r"data.caption_keys is \(\); expected names"),
        ({"extensions": ("txt", "json")}, "recap_txt and json are read by themselves"),
        ({"extensions": ("png",)}, "data.caption_extensions is png; .* are images"),
    ],
)
def test_options_that_cannot_be(options, said):
    with pytest.raises(UserError, match=said):
        CaptionOptions(**options)


def test_a_config_says_how_captions_are_read():
    config = default.get_config()
    assert caption_options(config) == USUAL
    config.data.captions = "first_line"
    config.data.caption_keys = ("tags",)
    config.data.caption_extensions = ("cap",)
    assert caption_options(config) == CaptionOptions("first_line", ("tags",), ("cap",))
    with config.unlocked():  # as runs of before the keys have it
        del config.data["captions"]
    assert caption_options(config) == USUAL


def test_a_run_says_at_the_start_how_captions_are_read(tmp_path, caplog):
    made.write_folder(tmp_path / "x", 2)
    log_once.cache_clear()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            make_source(f"folder:{tmp_path}/x", image_size=8, seed=0, captions=FIRST)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "captions: first_line (data.captions) of .txt, .caption, or keys caption, "
        "text, prompt"
    ]


def test_every_kind_of_source_reads_captions_the_same_way(tmp_path):
    members = [("0.jpg", made.jpeg()), ("0.txt", b"\xef\xbb\xbf" + LINES.encode())]
    made.write_tar(tmp_path / "x.tar", members)
    for name, data in members:
        (tmp_path / name).write_bytes(data)
    for spec in (f"folder:{tmp_path}", f"tars:{tmp_path}/x.tar"):
        options = {"image_size": 8, "seed": 0, "cache": str(tmp_path / "cache")}
        whole = make_source(spec, **options)
        first = make_source(spec, **options, captions=FIRST)
        assert whole[0]["caption"] == LINES.strip()
        assert first[0]["caption"] == "a red fox"


def test_captions_of_several_kinds_are_refused(tmp_path):
    for name in ("0.txt", "0.caption", "1.txt"):
        (tmp_path / name).write_text(f"from {name}")
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_bytes(made.jpeg(i))
    with pytest.raises(UserError, match=r"1 images have .*\(.txt, .caption\), .*/0 f"):
        open_folder(str(tmp_path))
    chosen = open_folder(str(tmp_path), CaptionOptions(extensions=("caption", "txt")))
    assert [record.captions[0] for record in chosen] == ["from 0.caption", "from 1.txt"]
    assert chosen.passed_over == {".txt": 1}
    chosen = open_folder(str(tmp_path), CaptionOptions(extensions=("txt",)))
    assert [record.captions[0] for record in chosen] == ["from 0.txt", "from 1.txt"]
    assert chosen.passed_over == {".caption": 1}
