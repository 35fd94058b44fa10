"""Grids of captioned images, as arrays and PNG files."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from flowtok_jax.eval.lettering import (
    MAX_LINES,
    Lettering,
    default_font,
    draw_line,
    fit_text,
)
from flowtok_jax.runtime.files import save_png as save_png  # for those who draw

SIDE = 128  # pixels of an image in a grid
WIDE = 2048  # pixels of a row of images at full size
MARGIN = 8  # pixels
LINE = 16
CHAR = 7  # about a character's width
INK = "#202020"
FAINT = "#707070"
PAPER = "#ffffff"
RIGHT = "#1a7f37"
WRONG = "#c62828"


def in_rows(items: Sequence[Any] | np.ndarray, columns: int) -> list[list[Any]]:
    """Splits items into rows of a grid, the last one shorter if need be."""
    starts = range(0, len(items), columns)
    return [list(items[start : start + columns]) for start in starts]


def pairs(
    images: Sequence[np.ndarray] | np.ndarray, copies: Sequence[np.ndarray] | np.ndarray
) -> np.ndarray:
    """Draws copies below the images that they should equal, none of them shrunk.

    Small images grow by whole pixels; of large ones as many are shown as fit into a
    row.
    """
    size = images[0].shape[0]
    side = size * max(1, SIDE // size)
    shown = max(1, WIDE // side)
    rows = [list(images[:shown]), list(copies[:shown])]
    return grid(rows, side=side, labels=["image", "decoded"])


def compared(
    real: Sequence[np.ndarray] | np.ndarray,
    drawn: Sequence[np.ndarray] | np.ndarray,
    captions: Sequence[str],
    columns: int,
) -> np.ndarray:
    """Draws real images above those drawn from their captions."""
    rows = []
    below = []
    parts = (in_rows(items, columns) for items in (real, drawn, captions))
    for above, under, texts in zip(*parts, strict=True):
        rows += [above, under]
        below += [[""] * len(above), texts]
    labels = ["real", "drawn"] * (len(rows) // 2)
    return grid(rows, below, labels=labels)


def _scaled(image: np.ndarray, side: int) -> Image.Image:
    tile = Image.fromarray(image)
    # Small images are shown pixel by pixel: a smooth one would flatter.
    scaling = Image.NEAREST if side >= tile.width else Image.LANCZOS
    return tile.resize((side, side), scaling)


def _draw_lines(
    picture: Image.Image, place: tuple[int, int], text: Lettering, ink: str
) -> None:
    left, top = place
    for i, line in enumerate(text.lines):
        draw_line(picture, (left, top + i * LINE), line, ink, text.font)


def grid(
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[Sequence[str]] | None = None,
    *,
    side: int = SIDE,
    labels: Sequence[str] | None = None,
    right: Sequence[Sequence[bool]] | None = None,
    footer: str = "",
    max_lines: int = MAX_LINES,
) -> np.ndarray:
    """Draws a picture [h, w, 3], uint8, of rows of uint8 images.

    Args:
        captions: one below each image; an empty one takes no ink.
        side: pixels of an image's side in the grid.
        labels: one to the left of each row.
        right: colours each caption green or red.
        footer: a line below everything.
        max_lines: lines of a caption, after which it is cut short.
    """
    font = default_font()
    # By characters of average width: near enough for a preview.
    texts = [
        [fit_text(c, side // CHAR, max_lines) for c in row] for row in captions or []
    ]
    heights = [max((len(t.lines) for t in row), default=0) * LINE for row in texts]
    # Without captions the rows stand one below the other.
    heights = heights or [0] * len(rows)
    left = max((font.getlength(label) for label in labels or [""]), default=0)
    left = int(left) + (2 * MARGIN if labels else MARGIN)
    width = left + max(len(row) for row in rows) * (side + MARGIN)
    height = MARGIN + sum(side + h + MARGIN for h in heights)
    below = fit_text(footer, width // CHAR)
    height += len(below.lines) * LINE + (MARGIN if below.lines else 0)
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    top = MARGIN
    for r, row in enumerate(rows):
        if labels:
            draw.text((MARGIN, top + side // 2 - LINE // 2), labels[r], INK, font)
        for c, image in enumerate(row):
            x = left + c * (side + MARGIN)
            picture.paste(_scaled(image, side), (x, top))
            ink = INK if right is None else (RIGHT if right[r][c] else WRONG)
            if texts:
                _draw_lines(picture, (x, top + side + 2), texts[r][c], ink)
        top += side + heights[r] + MARGIN
    _draw_lines(picture, (MARGIN, top), below, FAINT)
    return np.asarray(picture)
