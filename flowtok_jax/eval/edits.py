"""Edits of generated scenes: what is asked, and what an oracle reads off the result."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flowtok_jax.data.oracle import read_scene
from flowtok_jax.data.scenes import (
    COLOURS,
    PLACES,
    SHAPES,
    Object,
    Scene,
    captions_of,
    draw_scene,
    render,
)

# Values of each attribute of an object.
VALUES = {"shape": SHAPES, "colour": tuple(COLOURS), "place": PLACES}


class SceneEdit(NamedTuple):
    """A change of one attribute of one object of a scene.

    Attributes:
        attribute: shape, colour or place.
        old, new: the object before and after.
        before, after: captions, of one phrasing.
        kept: the other objects.
    """

    attribute: str
    old: Object
    new: Object
    before: str
    after: str
    kept: Scene


def draw_edit(scene: Scene, attribute: str, rng: np.random.Generator) -> SceneEdit:
    """Draws an object of a scene and another value of its attribute.

    A new place is one where nothing is.
    """
    old = scene[rng.integers(len(scene))]
    taken = {getattr(old, attribute)}
    if attribute == "place":
        taken = {o.place for o in scene}
    free = [value for value in VALUES[attribute] if value not in taken]
    new = old._replace(**{attribute: free[rng.integers(len(free))]})
    kept = tuple(o for o in scene if o != old)
    # Captions name objects in reading order.
    after = tuple(sorted((*kept, new), key=lambda o: PLACES.index(o.place)))
    phrasings = list(zip(captions_of(scene), captions_of(after), strict=True))
    captions = phrasings[rng.integers(len(phrasings))]
    return SceneEdit(attribute, old, new, *captions, kept)


def draw_edits(
    count: int, size: int, seed: int, *, held_out: bool = True
) -> tuple[np.ndarray, list[SceneEdit]]:
    """Draws scenes as images [b, size, size, 3] in [0, 1], and an edit of each.

    Args:
        held_out: whether the scenes are those that training never shows.
    """
    rng = np.random.default_rng(seed)
    images = []
    edits = []
    for i in range(count):
        scene = draw_scene(rng, held_out)
        images.append(render(scene, rng, size))
        # As many of each attribute.
        edits.append(draw_edit(scene, tuple(VALUES)[i % len(VALUES)], rng))
    return np.stack(images).astype(np.float32) / 255, edits


def judge_edit(image: np.ndarray, edit: SceneEdit) -> tuple[bool, bool]:
    """Tells whether the asked attribute is right, and every other one unchanged."""
    scene = read_scene(image)
    if scene is None:  # unreadable, so that nothing is known of any attribute
        return False, False
    rest = [o for o in scene if o not in edit.kept]
    # Where the object is, whatever became of it; one that moved may be anywhere.
    if edit.attribute == "place":
        places = {o.place for o in scene}
        asked = edit.new.place in places and edit.old.place not in places
    else:
        found = [o for o in scene if o.place == edit.old.place]
        wanted = getattr(edit.new, edit.attribute)
        asked = any(getattr(o, edit.attribute) == wanted for o in found)
    others = [
        o._replace(**{edit.attribute: getattr(edit.new, edit.attribute)}) for o in rest
    ]
    unchanged = set(edit.kept) <= set(scene) and others == [edit.new]
    return asked, unchanged


def judge_edits(
    images: np.ndarray, edits: Sequence[SceneEdit]
) -> dict[str, np.ndarray]:
    """Judges images in [0, 1], one for each edit."""
    pairs = zip(images, edits, strict=True)
    asked, unchanged = np.array([judge_edit(*pair) for pair in pairs]).T
    return {"asked": asked, "unchanged": unchanged}
