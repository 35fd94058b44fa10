"""A metric network that costs nothing, in Inception's place."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from flowtok_jax.eval.nets import MetricNet

GRID, FEATURES, CLASSES = 6, 24, 10
SHA256 = "f" * 64


class Patches(nn.Module):
    """Random projections of a coarse grid of pixels."""

    @nn.compact
    def __call__(self, images):
        step = images.shape[1] // GRID
        pixels = images[:, step // 2 :: step, step // 2 :: step][:, :GRID, :GRID] / 255
        kernel = self.param("kernel", nn.initializers.ones, (GRID**2 * 3, FEATURES))
        features = jnp.maximum(pixels.reshape(len(images), -1) @ kernel, 0)
        return features, features[:, :CLASSES]


def inception(sha256: str = SHA256) -> MetricNet:
    shape = GRID**2 * 3, FEATURES
    kernel = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return MetricNet(Patches(), {"kernel": kernel}, sha256)


def load_metric_net(name: str, place: str) -> MetricNet:
    """Stands in for the function of eval/nets.py, whatever the place."""
    assert name == "inception"
    return inception("random" if place == "random" else SHA256)
