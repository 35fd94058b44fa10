"""Distances of decoded images from the encoded ones, and statistics of latents.

    PSNR   -10 log10 of the mean squared error of an image in [0, 1]
    SSIM   Wang et al. 2004: Gaussian window of 11 pixels, sigma 1.5, K1 0.01, K2 0.03,
           data range 1, where the window is whole, mean over channels (the defaults of
           torchmetrics; scikit-image's window is uniform, its numbers are others)
    LPIPS  Zhang et al. 2018, of the network given

All are of one image; their mean over images is what tokenizers are compared by. The
latent scale is defined as in latent diffusion (Rombach et al. 2022, appendix G): one
number by which raw tokens get the standard deviation 1, over all tokens and channels.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

from flowtok_jax.array_types import Image, Params
from flowtok_jax.runtime.batches import filled, run_rows
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.weights.nets import MetricNet

WINDOW = 11  # pixels
SIGMA = 1.5  # pixels
K1 = 0.01
K2 = 0.03
BATCH = 32  # images that LPIPS and SSIM take at a time

Values = Float64[np.ndarray, " b"]


def psnr_db(
    images: Float[np.ndarray, "b h w 3"], targets: Float[np.ndarray, "b h w 3"]
) -> Values:
    """Computes each image's peak signal-to-noise ratio; infinite of equal images."""
    # One by one: float64 of all of a chunk's images would fill the memory.
    errors = [
        np.mean(np.square(np.subtract(a, b, dtype=np.float64)))
        for a, b in zip(images, targets, strict=True)
    ]
    with np.errstate(divide="ignore"):
        return -10 * np.log10(np.array(errors, np.float64))


def ssim(
    images: Float[np.ndarray, "b h w 3"], targets: Float[np.ndarray, "b h w 3"]
) -> Values:
    """Computes the structural similarity of each image in [0, 1]; 1 of equal ones.

    Raises:
        UserError: if the window does not fit into the images.
    """
    if min(images.shape[1:3]) < WINDOW:
        raise UserError(
            f"SSIM got images of {images.shape[2]} x {images.shape[1]} pixels; "
            f"expected at least {WINDOW} x {WINDOW}, its window"
        )
    return _in_batches(_ssim, images, targets)


def lpips(
    net: MetricNet,
    images: Float[np.ndarray, "b h w 3"],
    targets: Float[np.ndarray, "b h w 3"],
) -> Values:
    """Computes the perceptual distance of each image in [0, 1]."""
    params = jax.device_put(net.params)
    distance = functools.partial(_lpips, net.module, params)
    return _in_batches(distance, images, targets)


def measure_images(
    images: Float[np.ndarray, "b h w 3"],
    targets: Float[np.ndarray, "b h w 3"],
    net: MetricNet | None = None,
) -> dict[str, Values]:
    """Computes psnr_db, ssim and, if a network is given, lpips of each image."""
    found = {"psnr_db": psnr_db(images, targets), "ssim": ssim(images, targets)}
    return found if net is None else found | {"lpips": lpips(net, images, targets)}


def _in_batches(function, images: np.ndarray, targets: np.ndarray) -> Values:
    """Computes the values of all images through one program."""
    if not len(images):
        return np.zeros(0)

    def start(rows: np.ndarray) -> jax.Array:
        kept = slice(rows[0], rows[-1] + 1)
        pair = (x[kept].astype(np.float32) for x in (images, targets))
        return function(*(filled(x, BATCH) for x in pair))

    return run_rows(start, len(images), BATCH).astype(np.float64)


@functools.partial(jax.jit, static_argnums=0)
def _lpips(
    module: nn.Module, params: Params, images: Image, targets: Image
) -> Float[Array, " b"]:
    return module.apply({"params": params}, images, targets)


@jax.jit
def _ssim(
    images: Float[Array, "b h w 3"], targets: Float[Array, "b h w 3"]
) -> Float[Array, " b"]:
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-0.5 * np.square(offsets / SIGMA))
    weights = (weights / weights.sum()).astype(np.float32).tolist()

    def smooth(x):
        for axis in (1, 2):
            length = x.shape[axis] - WINDOW + 1
            x = sum(
                weight * jax.lax.slice_in_dim(x, i, i + length, axis=axis)
                for i, weight in enumerate(weights)
            )
        return x

    # Of values around 0 fewer digits cancel below; variances do not change.
    level_a = jnp.mean(images, (1, 2), keepdims=True)
    level_b = jnp.mean(targets, (1, 2), keepdims=True)
    a = images - level_a
    b = targets - level_b
    mean_a = smooth(a)
    mean_b = smooth(b)
    var_a = smooth(a * a) - mean_a**2
    var_b = smooth(b * b) - mean_b**2
    covariance = smooth(a * b) - mean_a * mean_b
    mean_a = mean_a + level_a
    mean_b = mean_b + level_b
    c1 = K1**2
    c2 = K2**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return jnp.mean(luminance * structure, (1, 2, 3))


class LatentStatistics(NamedTuple):
    """Sums over images and tokens of what the tokenizer encodes to, by channel.

    The sums are of a sample z ~ N(mean, exp(logvar)), in expectation: no noise is
    drawn. `LatentStatistics()` is that of no images.

    Attributes:
        images, tokens: how many.
        total: E[z].
        square: E[z^2].
        kl: to N(0, I), in nats.
    """

    images: int = 0
    tokens: int = 0
    total: np.ndarray = np.zeros(())
    square: np.ndarray = np.zeros(())
    kl: np.ndarray = np.zeros(())

    @classmethod
    def of(
        cls, mean: Float[np.ndarray, "b n c"], logvar: Float[np.ndarray, "b n c"]
    ) -> "LatentStatistics":
        """Sums the posterior of some images."""
        mean = np.float64(mean)
        logvar = np.float64(logvar)
        square = np.square(mean) + np.exp(logvar)
        kl = 0.5 * (square - 1 - logvar)
        sums = (np.sum(x, (0, 1)) for x in (mean, square, kl))
        return cls(len(mean), mean.shape[0] * mean.shape[1], *sums)

    def merge(self, other: "LatentStatistics") -> "LatentStatistics":
        """Joins the sums of two sets of images."""
        return LatentStatistics(*(a + b for a, b in zip(self, other, strict=True)))

    def channels(self) -> dict[str, list[float]]:
        """Returns mean, standard deviation and KL (nats a token) of each channel."""
        mean = self.total / self.tokens
        std = np.sqrt(self.square / self.tokens - mean**2)
        found = {"mean": mean, "std": std, "kl": self.kl / self.tokens}
        return {name: values.tolist() for name, values in found.items()}

    def summary(self) -> dict[str, float]:
        """Returns KL in nats a token and an image, and the latent scale implied."""
        mean = np.mean(self.total) / self.tokens
        std = np.sqrt(np.mean(self.square) / self.tokens - mean**2)
        return {
            "latent_kl_per_token": float(self.kl.sum() / self.tokens),
            "latent_kl_per_image": float(self.kl.sum() / self.images),
            "latent_std": float(std),
            "implied_latent_scale": float(1 / std),
        }
