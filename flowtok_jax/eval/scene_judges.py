"""Judges of drawn scenes: an oracle reads each image, and no network is asked."""

from collections.abc import Sequence

import numpy as np

from flowtok_jax.data.open_captions import Wanted, evenness, match_objects, open_colours
from flowtok_jax.data.oracle import read_scene
from flowtok_jax.data.scenes import Scene
from flowtok_jax.eval.evaluate import Arrays


class WholeSceneJudge:
    """Judge of captions that each decide one scene."""

    def __init__(self, scenes: Sequence[Scene]):
        self._scenes = scenes

    def see(self, drawn: np.ndarray, rows: range) -> Arrays:
        """Tells which images in [0, 1], one for each row, show exactly its scene."""
        pairs = zip(drawn, rows, strict=True)
        right = [read_scene(image) == self._scenes[i] for image, i in pairs]
        return {"right": np.array(right)}

    def measure(self, arrays: Arrays) -> dict[str, float]:
        """Returns the share of images that show their scene."""
        return {"attribute_accuracy": float(arrays["right"].mean())}


class OpenCaptionJudge:
    """Judge of captions that leave things open (data/open_captions.py)."""

    def __init__(self, wanted: Sequence[Sequence[Wanted]]):
        self._wanted = wanted

    def see(self, drawn: np.ndarray, rows: range) -> Arrays:
        """Tells which images show a scene, which one that agrees, and the colours of
        what was left open, up to two an image and -1 for none.
        """
        scenes = [read_scene(image) for image in drawn]
        wanted = [self._wanted[i] for i in rows]
        pairs = zip(scenes, wanted, strict=True)
        matched = [match_objects(*pair) for pair in pairs]
        # As many for each image, so that chunks of images can be joined.
        colours = np.full((len(rows), 2), -1)
        for row, objects, names in zip(colours, matched, wanted, strict=True):
            found = open_colours(objects, names)
            row[: len(found)] = found
        return {
            "readable": np.array([scene is not None for scene in scenes]),
            "right": np.array([objects is not None for objects in matched]),
            "colours": colours,
        }

    def measure(self, arrays: Arrays) -> dict[str, float]:
        """Returns shares of readable and right images, and evenness of open colours."""
        colours = arrays["colours"]
        return {
            "readable": float(arrays["readable"].mean()),
            "right": float(arrays["right"].mean()),
            "open_colour_evenness": evenness(colours[colours >= 0]),
        }


SceneJudge = WholeSceneJudge | OpenCaptionJudge
