"""Edits as the service offers them: each is a batch of its own, of one request.

Their programs are compiled at the first request of a kind, not at the start.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from flowtok_jax.data.inputs import to_uint8
from flowtok_jax.pipeline import FlowTok

# Says what an image shows, [s, s, 3] in [0, 1].
Describe = Callable[[np.ndarray], str]


class EditedPicture(NamedTuple):
    """A picture of an edit, of uint8, with what it should show and its seed."""

    pixels: np.ndarray
    caption: str
    seed: int


def _interpolate(
    flowtok: FlowTok, describe: Describe, seed: int, *, prompts: list[str], columns: int
) -> list[EditedPicture]:
    strips = flowtok.interpolate(prompts, steps=columns, seed=seed)
    texts = strips.captions[0]
    pictures = to_uint8(strips.images[0])
    return [EditedPicture(*both, seed) for both in zip(pictures, texts, strict=True)]


def _vary(
    flowtok: FlowTok,
    describe: Describe,
    seed: int,
    *,
    image: np.ndarray,
    n: int,
    strength: float,
) -> list[EditedPicture]:
    # Read here, in a batch of a size that is compiled already.
    caption = describe(image)
    strips = flowtok.vary(
        image[None], [caption], seed=seed, num_images=n, strength=strength
    )
    drawn = to_uint8(strips.images[0, 1:])  # the first is the image itself
    return [EditedPicture(x, caption, seed + k) for k, x in enumerate(drawn)]


def _edit(
    flowtok: FlowTok,
    describe: Describe,
    seed: int,
    *,
    image: np.ndarray,
    before: str | None,
    prompt: str,
    strength: float,
) -> list[EditedPicture]:
    shown = describe(image) if before is None else before
    strips = flowtok.edit(image[None], [shown], [prompt], strength=strength)
    return [EditedPicture(to_uint8(strips.images[0, -1]), prompt, seed)]


# By the last part of the path.
EDITS: dict[str, Callable[..., list[EditedPicture]]] = {
    "interpolations": _interpolate,
    "variations": _vary,
    "edits": _edit,
}
