"""Generated captioned images of one or two coloured shapes, each in a quadrant.

A scene is a tuple of objects in reading order. A quarter of all (shape, colour, place)
triples are held out of training, so that a score on them measures composition:

    place = (shape + colour) mod 4                              (1)

Each pair of a shape and a colour, a shape and a place, or a colour and a place still
occurs in training.
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
OPEN = "open"  # the split whose captions are those of data/open_captions.py
SPLITS = ("train", "seen", "held_out", OPEN)

# Sizes are for a canvas of 32 px and grow with it.
CANVAS = 32
RADIUS = (6.0, 7.0)
JITTER = 0.75
BACKGROUND = (0.04, 0.16)
TWO_OBJECTS = 0.8  # share of scenes; scenes of one object are few and easy

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
    """One shape of a scene, by names from SHAPES, COLOURS and PLACES."""

    shape: str
    colour: str
    place: str


Scene = tuple[Object, ...]


def is_held_out(scene: Scene) -> bool:
    """Returns whether training never shows one of the scene's objects."""
    colours = tuple(COLOURS)
    return any(  # (1)
        (SHAPES.index(o.shape) + colours.index(o.colour)) % 4 == PLACES.index(o.place)
        for o in scene
    )


def all_objects() -> list[Object]:
    """Returns every combination of shape, colour and place."""
    return [Object(*o) for o in itertools.product(SHAPES, COLOURS, PLACES)]


def draw_scene(rng: np.random.Generator, held_out: bool) -> Scene:
    """Draws a random scene of one or two objects, on its side of the split."""
    colours = tuple(COLOURS)
    while True:  # a scene of the other side is drawn again
        count = 1 + int(rng.random() < TWO_OBJECTS)
        places = sorted(rng.permutation(4)[:count])
        shapes = rng.integers(3, size=count)
        tints = rng.integers(6, size=count)
        scene = tuple(
            Object(SHAPES[s], colours[c], PLACES[p])
            for s, c, p in zip(shapes, tints, places, strict=True)
        )
        if is_held_out(scene) == held_out:
            return scene


def captions_of(scene: Scene) -> list[str]:
    """Returns every phrasing of a scene."""
    names = {}
    for o, i in zip(scene, ("", "2"), strict=False):
        names |= {f"o{i}": f"{o.colour} {o.shape}", f"p{i}": o.place}
    return [t.format(**names) for t in (SINGLE if len(scene) == 1 else DOUBLE)]


def parse_caption(caption: str) -> Scene | None:
    """Returns the scene that a caption names; None if its attributes do not pair up."""
    # A model's caption need not follow a template: names are paired by their order.
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
    """Returns the share of each pixel of a quadrant [side, side] that a shape covers.

    Args:
        radius: radius of the circle, and of circles about the corners of the other
            shapes, in canvas pixels.
        dx, dy: offset of the shape's centre from the quadrant's, in canvas pixels.
        scale: image pixels per canvas pixel.
    """
    axis = (np.arange(side) + 0.5 - side / 2) / scale
    x = axis[None, :] - dx
    y = axis[:, None] - dy
    # `outside` is the signed distance to the shape's edge, negative within.
    if shape == "circle":
        outside = np.sqrt(x * x + y * y) - radius
    elif shape == "square":
        outside = np.maximum(abs(x), abs(y)) - 0.8 * radius
    else:  # triangle, point up
        slant = (np.sqrt(3) * abs(x) - y) / 2
        outside = np.maximum(slant, y) - 0.5 * radius
    # Antialiasing: the edge is a ramp one image pixel wide.
    return np.clip(0.5 - outside * scale, 0, 1)


def render(scene: Scene, rng: np.random.Generator, size: int) -> np.ndarray:
    """Renders a scene as [size, size, 3], uint8, with random radii and offsets."""
    side = size // 2
    scale = size / CANVAS
    image = np.full((size, size, 3), rng.uniform(*BACKGROUND), np.float32)
    for o in scene:
        radius = rng.uniform(*RADIUS)
        dx, dy = rng.uniform(-JITTER, JITTER, 2)
        row, column = divmod(PLACES.index(o.place), 2)
        part = image[row * side :, column * side :][:side, :side]  # a view
        alpha = coverage(o.shape, radius, dx, dy, side, scale)[..., None]
        part += alpha * (np.asarray(COLOURS[o.colour], np.float32) - part)
    return np.round(255 * image).astype(np.uint8)
