"""Captions of generated scenes that leave things open: "a red thing and a circle at the
top left".

    a [COLOUR] SHAPE-or-thing [at the PLACE] [and a ...]

Three captions in ten name every shape, colour and place; of the others each is named
with probability 1/2. Many pictures are right for such a caption, so that a flow from it
to pictures is far from straight, and steps matter.
"""

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from flowtok_jax.data.scenes import COLOURS, PLACES, SHAPES, Object, Scene

WHOLE = 0.3  # share of captions that name all
NAMED = 0.5  # probability of a name in the others
THING = "thing"
OBJECT = re.compile(
    rf"a (?:({'|'.join(COLOURS)}) )?({'|'.join(SHAPES)}|{THING})"
    rf"(?: at the ({'|'.join(PLACES)}))?"
)


class Wanted(NamedTuple):
    """Names of an object in a caption; None is left open."""

    shape: str | None = None
    colour: str | None = None
    place: str | None = None


def draw_wanted(scene: Scene, rng: np.random.Generator) -> tuple[Wanted, ...]:
    """Draws what a caption names of each object of a scene."""
    named = rng.random((len(scene), 3)) < NAMED
    named |= rng.random() < WHOLE
    return tuple(
        Wanted(*(name if kept else None for name, kept in zip(o, row, strict=True)))
        for o, row in zip(scene, named, strict=True)
    )


def write_caption(wanted: Sequence[Wanted]) -> str:
    """Writes the caption that names this and no more."""
    phrases = []
    for one in wanted:
        colour = f"{one.colour} " if one.colour else ""
        place = f" at the {one.place}" if one.place else ""
        phrases.append(f"a {colour}{one.shape or THING}{place}")
    return " and ".join(phrases)


def read_caption(caption: str) -> tuple[Wanted, ...] | None:
    """Returns what a caption names; None of one that `write_caption` cannot write."""
    found = [OBJECT.fullmatch(phrase) for phrase in caption.split(" and ")]
    if not all(found):
        return None
    return tuple(
        Wanted(shape if shape != THING else None, colour, place)
        for colour, shape, place in (match.groups() for match in found)
    )


def match_objects(scene: Scene | None, wanted: Sequence[Wanted]) -> Scene | None:
    """Returns the scene's objects in the caption's order; None if it is another scene.

    Of several orders that agree the first one, in reading order of the scene.
    """
    if scene is None or len(scene) != len(wanted):
        return None
    for objects in itertools.permutations(scene):
        if all(map(_agrees, objects, wanted)):
            return objects
    return None


def is_true_of(caption: str, scene: Scene) -> bool:
    """Tells whether a scene has all that a caption names; no, if it cannot be read."""
    wanted = read_caption(caption)
    return wanted is not None and match_objects(scene, wanted) is not None


def _agrees(has: Object, wanted: Wanted) -> bool:
    return all(name in (None, own) for own, name in zip(has, wanted, strict=True))


def open_colours(objects: Scene | None, wanted: Sequence[Wanted]) -> list[int]:
    """Returns the colours, as numbers, of matched objects where none was named."""
    names = tuple(COLOURS)
    pairs = zip(objects or (), wanted, strict=False)
    return [names.index(o.colour) for o, w in pairs if w.colour is None]


def evenness(colours: ArrayLike) -> float:
    """Returns the entropy of colours over that of all alike: 1 even, 0 one colour."""
    counts = np.bincount(np.asarray(colours, int), minlength=len(COLOURS))
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-(shares * np.log(shares)).sum() / np.log(len(COLOURS)))
