"""Generated captioned images: one or two coloured shapes, each in a quadrant.

A scene is a tuple of objects in reading order. Some (shape, colour, place) triples are
held out of training, so that a score on them measures composition: the triple whose
place is (shape + colour) mod 4, a quarter of all. Each pair of a shape and a colour,
a shape and a place, or a colour and a place still occurs in training.
"""

import itertools
import re
from typing import NamedTuple

import numpy as np

SHAPES = ("circle", "square", "triangle")
COLOURS = {
    "red": (0.95, 0.15, 0.15),
    "green": (0.15, 0.80, 0.20),
    "blue": (0.20, 0.35, 1.00),
    "yellow": (1.00, 0.90, 0.15),
    "purple": (0.75, 0.20, 0.95),
    "white": (0.97, 0.97, 0.97),
}
PLACES = ("top left", "top right", "bottom left", "bottom right")
SPLITS = ("train", "seen", "held_out")

# Sizes are for a canvas of 32 px and grow with it.
CANVAS = 32
RADIUS = (6.0, 7.0)
JITTER = 0.75
BACKGROUND = (0.04, 0.16)
TWO_OBJECTS = 0.8  # share of scenes; those of one object are few and easy

SINGLE = (
    "a {o} at the {p}",
    "there is a {o} in the {p}",
    "in the {p} we see a {o}",
)
DOUBLE = (
    "a {o} at the {p} and a {o2} at the {p2}",
    "there is a {o} {p} and a {o2} {p2}",
    "{p} is a {o} while {p2} is a {o2}",
)


class Object(NamedTuple):
    """One shape of a scene; the fields are names from the tables above."""

    shape: str
    colour: str
    place: str


Scene = tuple[Object, ...]


def is_held_out(scene: Scene) -> bool:
    """Whether training never shows one of the scene's objects."""
    colours = tuple(COLOURS)
    return any(
        (SHAPES.index(o.shape) + colours.index(o.colour)) % 4 == PLACES.index(o.place)
        for o in scene
    )


def all_objects() -> list[Object]:
    """Every combination of shape, colour and place."""
    return [Object(*o) for o in itertools.product(SHAPES, COLOURS, PLACES)]


def draw_scene(rng: np.random.Generator, held_out: bool) -> Scene:
    """A random scene of one or two objects, on its side of the split."""
    colours = tuple(COLOURS)
    while True:
        count = 1 + int(rng.random() < TWO_OBJECTS)
        places = sorted(rng.permutation(4)[:count])
        shapes, tints = rng.integers(3, size=count), rng.integers(6, size=count)
        scene = tuple(
            Object(SHAPES[s], colours[c], PLACES[p])
            for s, c, p in zip(shapes, tints, places, strict=True)
        )
        if is_held_out(scene) == held_out:
            return scene


def captions_of(scene: Scene) -> list[str]:
    """Every phrasing of a scene."""
    names = {}
    for o, i in zip(scene, ("", "2"), strict=False):
        names |= {f"o{i}": f"{o.colour} {o.shape}", f"p{i}": o.place}
    return [t.format(**names) for t in (SINGLE if len(scene) == 1 else DOUBLE)]


def parse_caption(caption: str) -> Scene | None:
    """The scene that a caption names, or None where its attributes do not pair up."""
    found = [
        re.findall(rf"\b({'|'.join(names)})\b", caption.lower())
        for names in (SHAPES, COLOURS, PLACES)
    ]
    if len({len(names) for names in found}) != 1 or not found[0]:
        return None
    return tuple(Object(*names) for names in zip(*found, strict=True))


def coverage(
    shape: str, radius: float, dx: float, dy: float, side: int, scale: float = 1.0
) -> np.ndarray:
    """How much of each pixel of a quadrant [side, side] a shape covers, in [0, 1].

    Args:
        radius: of the circle, and of circles about the other shapes' corners, in canvas
            pixels, as are the offsets of its centre from the quadrant's.
        scale: image pixels a canvas pixel.
    """
    axis = (np.arange(side) + 0.5 - side / 2) / scale
    x, y = axis[None, :] - dx, axis[:, None] - dy
    if shape == "circle":
        outside = np.sqrt(x * x + y * y) - radius
    elif shape == "square":
        outside = np.maximum(abs(x), abs(y)) - 0.8 * radius
    else:  # triangle, point up
        slant = (np.sqrt(3) * abs(x) - y) / 2
        outside = np.maximum(slant, y) - 0.5 * radius
    return np.clip(0.5 - outside * scale, 0, 1)


def render(scene: Scene, rng: np.random.Generator, size: int) -> np.ndarray:
    """An RGB image [size, size, 3], uint8: random size and place within a quadrant."""
    side, scale = size // 2, size / CANVAS
    image = np.full((size, size, 3), rng.uniform(*BACKGROUND), np.float32)
    for o in scene:
        radius = rng.uniform(*RADIUS)
        dx, dy = rng.uniform(-JITTER, JITTER, 2)
        row, column = divmod(PLACES.index(o.place), 2)
        part = image[row * side :, column * side :][:side, :side]
        alpha = coverage(o.shape, radius, dx, dy, side, scale)[..., None]
        part += alpha * (np.asarray(COLOURS[o.colour], np.float32) - part)
    return np.round(255 * image).astype(np.uint8)
