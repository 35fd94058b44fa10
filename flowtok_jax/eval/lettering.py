"""Text of pictures: lines that fit, in a font that has their characters.

Pillow's own font has ASCII and little more. For other characters fonts of the machine
are looked for, and where none has one, a box is drawn and said so.
"""

import contextlib
import functools
import importlib.util
import logging
import pathlib
import textwrap
import unicodedata
from typing import NamedTuple

from PIL import ImageFont

SIZE = 13  # pixels
MAX_LINES = 40
MIN_CHARS = 8
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


class Lettering(NamedTuple):
    """Lines of a text, and the font to draw them in."""

    lines: list[str]
    font: ImageFont.FreeTypeFont


@functools.cache
def default_font() -> ImageFont.FreeTypeFont:
    """Returns the font that comes with Pillow."""
    return ImageFont.load_default(SIZE)


@functools.cache
def _fonts() -> tuple[ImageFont.FreeTypeFont, ...]:
    """Returns Pillow's font, and those of FONTS that this machine has."""
    found = [default_font()]
    names = list(FONTS)
    # Matplotlib, where it is installed, brings the first one along.
    if spec := importlib.util.find_spec("matplotlib"):
        names.append(
            f"{pathlib.Path(spec.origin).parent}/mpl-data/fonts/ttf/{names[0]}"
        )
    for name in names:
        with contextlib.suppress(OSError):
            found.append(ImageFont.truetype(name, SIZE))
    return tuple(found)


@functools.cache
def _has(font: ImageFont.FreeTypeFont, character: str) -> bool:
    """Says whether a font has a character."""
    # Pillow does not tell; but what a font lacks looks as what no font can have.
    missing = font.getmask("\U0010fffe")
    mask = font.getmask(character)
    return (mask.size, bytes(mask)) != (missing.size, bytes(missing))


@functools.cache
def _report_missing(characters: str) -> None:
    """Says, once for the same characters, that they are drawn as boxes."""
    named = [f"{c} (U+{ord(c):04X})" for c in characters[:SAID]]
    more = f" and {len(characters) - SAID} more" if len(characters) > SAID else ""
    logging.warning(
        "no font of this machine has %s%s: a picture's captions have boxes there; "
        "install one that has, such as Noto Sans CJK",
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
    return "".join(c for c in spaced if unicodedata.category(c) not in UNDRAWN)


def fit_text(text: str, chars: int) -> Lettering:
    """Wraps a text and chooses the first font that has most of its characters.

    Args:
        chars: letters of a line; Chinese and its like take the room of two.
    """
    text = _drawable(text)
    font = default_font()
    if not text.isascii():
        used = sorted({c for c in text if not c.isascii()})
        lacking = {f: [c for c in used if not _has(f, c)] for f in _fonts()}
        font = min(lacking, key=lambda f: len(lacking[f]))
        if lacking[font]:
            _report_missing("".join(lacking[font]))
    # Letters of another font may be wider than those that `chars` counts.
    chars = int(chars * default_font().getlength(LETTERS) / font.getlength(LETTERS))
    if any(unicodedata.east_asian_width(c) in "WF" for c in text):
        chars //= 2
    chars = max(chars, MIN_CHARS)
    lines = textwrap.wrap(text, chars, max_lines=MAX_LINES, placeholder=" ...")
    return Lettering(lines, font)
