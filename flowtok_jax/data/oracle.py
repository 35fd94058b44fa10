"""Oracle that reads a scene off an image by comparison with every shape; not learned.

In each quadrant: the pixels that differ from the background; their median colour, which
must be near a colour of the palette; their coverage, which must be near the coverage of
a shape at some size and offset. Anything else in a quadrant makes the image unreadable.
"""

import functools
import itertools

import numpy as np

from flowtok_jax.data import scenes

FEWEST_PIXELS = 12  # differing canvas pixels, below which a quadrant is empty
CONTRAST = 0.25  # a pixel differs from the background by more, in some channel
COLOUR_TOLERANCE = 0.3  # Euclidean distance in RGB
SHAPE_TOLERANCE = 0.15  # squared error of the coverage over its squared norm


@functools.cache
def _templates(side: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns coverages [m, side * side] at all sizes and offsets, and shapes [m]."""
    # A little beyond scenes.RADIUS and JITTER, as generated images are not exact.
    radii = np.arange(5.5, 7.6, 0.25)
    offsets = np.arange(-1.0, 1.1, 0.5)
    grid = list(itertools.product(scenes.SHAPES, radii, offsets, offsets))
    masks = [scenes.coverage(*g, side, scale).ravel() for g in grid]
    return np.stack(masks), np.array([scenes.SHAPES.index(g[0]) for g in grid])


def _read_quadrant(
    part: np.ndarray, background: np.ndarray, scale: float
) -> tuple[str, str] | None | bool:
    """Returns (shape, colour) of a quadrant; False if it is empty, None if unclear."""
    pixels = part.reshape(-1, 3)
    differs = np.abs(pixels - background).max(-1)
    mask = differs > CONTRAST
    if mask.sum() < FEWEST_PIXELS * scale**2:
        return False
    # Pixels of the edge are mixed with the background: they would shift the colour.
    inside = mask & (differs > 0.8 * np.quantile(differs[mask], 0.75))
    colour = np.median(pixels[inside], 0)
    palette = np.array(list(scenes.COLOURS.values()))
    distance = np.linalg.norm(palette - colour, axis=-1)
    if distance.min() > COLOUR_TOLERANCE:
        return None
    # Coverage of each pixel: its place on the way from the background to the colour.
    axis = colour - background
    alpha = np.clip((pixels - background) @ axis / (axis @ axis), 0, 1)
    masks, shapes = _templates(part.shape[0], scale)
    error = (
        (masks**2).sum(-1) + (alpha**2).sum() - 2 * masks @ alpha
    )  # |masks - alpha|^2
    best = error.argmin()
    if error[best] > SHAPE_TOLERANCE * (alpha**2).sum():
        return None
    name = tuple(scenes.COLOURS)[distance.argmin()]
    return scenes.SHAPES[shapes[best]], name


def read_scene(image: np.ndarray) -> scenes.Scene | None:
    """Reads the scene of an image [s, s, 3] in [0, 1]; None if unclear or empty."""
    size = image.shape[0]
    side = size // 2
    scale = size / scenes.CANVAS
    quadrants = image.reshape(2, side, 2, side, 3).swapaxes(1, 2)  # [2 2 side side 3]
    quadrants = quadrants.reshape(4, side, side, 3)
    # Shapes stay off the corners of their quadrants, which show the background.
    corners = quadrants[:, [0, 0, -1, -1], [0, -1, 0, -1]].reshape(-1, 3)
    background = np.median(corners, 0)
    objects = []
    for place, part in zip(scenes.PLACES, quadrants, strict=True):
        found = _read_quadrant(part, background, scale)
        if found is None:
            return None
        if found:
            objects.append(scenes.Object(*found, place))
    return tuple(objects) or None
