import numpy as np
import pytest

from flowtok_jax.data import scenes
from flowtok_jax.data.open_captions import read_caption
from flowtok_jax.data.scenes import Object
from flowtok_jax.eval.features import FeatureMetrics
from flowtok_jax.eval.fid import Gaussian, Reference
from flowtok_jax.eval.protocols import Prompt
from flowtok_jax.eval.scene_judges import OpenCaptionJudge
from flowtok_jax.eval.t2i import TextToImage
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.errors import UserError
from tests.eval import fake
from tests.eval.features_test import extractor


class Drawer(FlowTok):
    """Stands in for one whose second image of each call is not finite."""

    def __init__(self):
        pass

    def text_to_image(self, prompts, seed, first_row):
        images = np.full((len(prompts), 8, 8, 3), 0.5, np.float32)
        images[1, 2, 3] = np.nan
        return images


def test_images_that_are_not_finite_are_not_measured_as_black():
    reference = Reference(Gaussian(np.zeros(fake.FEATURES), np.eye(fake.FEATURES)))
    part = TextToImage(
        Drawer(),
        [Prompt(str(i), "a dog") for i in range(9)],
        seed=0,
        protocol={},
        features=FeatureMetrics(extractor(), reference, 9, lambda *counts: ""),
        clip="no weights",
    )
    with pytest.raises(UserError, match="1 of the images 4 to 8 are not finite"):
        part.compute(range(4, 9))


class Painter(FlowTok):
    """Stands in for one that draws what it is told."""

    def __init__(self, images):
        self._images = images

    def text_to_image(self, prompts, seed, first_row):
        return self._images[first_row : first_row + len(prompts)]


def test_of_captions_that_leave_things_open_all_that_fits_is_right():
    captions = ["a red thing"] * 2 + ["a thing", "a circle and a thing", "a thing"]
    shown = [
        (Object("square", "red", "top left"),),
        (Object("square", "blue", "top left"),),
        (Object("circle", "green", "top right"),),
        (Object("square", "white", "top left"), Object("circle", "blue", "top right")),
        (),
    ]
    rng = np.random.default_rng(0)
    images = np.stack([scenes.render(s, rng, 32) for s in shown])
    part = TextToImage(
        Painter(images / np.float32(255)),
        [Prompt(str(i), caption) for i, caption in enumerate(captions)],
        seed=0,
        protocol={},
        features="no weights",
        clip="no weights",
        scene_judge=OpenCaptionJudge([read_caption(c) for c in captions]),
    )
    chunks = [part.compute(range(3)), part.compute(range(3, 5))]
    arrays = {k: np.concatenate([c[k] for c in chunks]) for k in chunks[0]}
    found = part.measure(arrays).metrics
    assert found["readable_n5"] == 0.8  # an empty picture is not
    assert found["right_n5"] == 0.6
    # Green of the third; blue of the fourth's circle, white of its square.
    assert found["open_colour_evenness_n5"] == pytest.approx(np.log(3) / np.log(6))
