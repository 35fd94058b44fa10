import numpy as np
import pytest

from flowtok_jax.eval.features import FeatureMetrics
from flowtok_jax.eval.fid import Gaussian, Reference
from flowtok_jax.eval.protocols import Prompt
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
