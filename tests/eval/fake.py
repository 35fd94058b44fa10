"""Networks that cost nothing, in place of Inception and LPIPS; and no CLIP."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from flowtok_jax.runtime.errors import UserError
from flowtok_jax.weights.nets import MetricNet

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


class Difference(nn.Module):
    """Mean absolute difference of two images."""

    @nn.compact
    def __call__(self, images, targets):
        return jnp.abs(images - targets).mean((1, 2, 3))


def load_metric_net(name: str, place: str) -> MetricNet:
    """Stands in for the function of weights/nets.py, whatever the place."""
    sha256 = "random" if place == "random" else SHA256
    if name == "lpips":
        return MetricNet(Difference(), {}, sha256)
    if name == "clip":
        raise UserError("no weights of clip")
    return inception(sha256)
