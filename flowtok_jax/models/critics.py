"""Networks that judge images: LPIPS and the tokenizer's discriminator.

    LPIPS(a, b) = sum over 5 layers of VGG16 of the mean over places of
                  sum_c w_c (a_c / |a| - b_c / |b|)^2                       (1)

(Zhang et al. 2018, section 3; TA-TiTok's release, `modeling/modules/lpips.py`.)

The discriminator is a convolutional network with anti-aliased downsampling (Zhang 2019)
and 16 x 16 logits, one per patch (TA-TiTok's `modeling/modules/discriminator.py`).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flowtok_jax.array_types import Image
from flowtok_jax.models.layers import Maps

# Widths of the convolutions of VGG16, by layer; LPIPS compares each layer's last.
VGG_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# ImageNet's mean and deviation, for images in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
BLUR = (0.125, 0.375, 0.375, 0.125)  # binomial filter


class LPIPS(nn.Module):
    """Perceptual distance of images in [0, 1], one value per pair.

    Products are float32 on every device if `dtype` is. Gradients are finite where
    features are zero. Weights are published for the default layers only.
    """

    layers: tuple[tuple[int, ...], ...] = VGG_WIDTHS
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, a: Image, b: Image) -> Float[Array, " b"]:
        # Both images go through VGG16 as one batch, in [-1, 1] as in the release.
        x = 2 * jnp.concatenate([a, b]).astype(jnp.float32) - 1  # [2b s s 3]
        shift, scale = (np.float32(v)[None, None, None] for v in (SHIFT, SCALE))
        x = ((x - shift) / scale).astype(self.dtype)
        distance = 0.0
        with jax.default_matmul_precision("highest"):
            for layer, widths in enumerate(self.layers):
                x = self._vgg_layer(x, layer, widths)
                one, two = jnp.split(_unit(x), 2)
                # The mean over places and the sum over channels of (1) commute.
                squares = jnp.square(one - two).mean((1, 2))  # [b c]
                ones = nn.initializers.ones
                distance += squares @ self.param(f"weights{layer}", ones, widths[-1:])
        return distance

    def _vgg_layer(self, x: Maps, layer: int, widths: tuple[int, ...]) -> Maps:
        if layer:  # VGG16 pools after each layer; LPIPS reads what comes before
            x = nn.max_pool(x, (2, 2), (2, 2))
        for i, width in enumerate(widths):
            conv = nn.Conv(
                width,
                (3, 3),
                dtype=self.dtype,
                kernel_init=nn.initializers.he_normal(),
                name=f"conv{layer}_{i}",
            )
            x = nn.relu(conv(x))
        return x


def _unit(x: Maps) -> Maps:
    """Scales the features of each place to length 1, in float32; zeros stay zeros."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(-1, keepdims=True)
    # Without the floor the root's gradient at 0 is not finite.
    return x / (jnp.sqrt(jnp.maximum(square, 1e-30)) + 1e-10)


def blur_pool(x: Maps) -> Maps:
    """Halves both sides after a binomial filter (1, 3, 3, 1) of each channel."""
    maps = x.astype(jnp.float32)
    # Sums of strided slices: the gradient of a convolution with a group for each
    # channel takes four times as long on a CPU.
    for axis in (1, 2):
        half = -(-x.shape[axis] // 2)
        padding = [(0, 0)] * 4
        padding[axis] = (1, 1 + x.shape[axis] % 2)
        padded = jnp.pad(maps, padding)
        slices = (
            jax.lax.slice_in_dim(padded, i, i + 2 * half - 1, 2, axis)
            for i in range(len(BLUR))
        )
        maps = sum(w * part for w, part in zip(BLUR, slices, strict=True))
    return maps.astype(x.dtype)


def pool_to_grid(x: Maps, grid: int) -> Float[Array, "b g g c"]:
    """Takes the largest value of each of grid x grid windows.

    The windows cover the maps, and overlap where the grid does not divide their side,
    as those of PyTorch's AdaptiveMaxPool2d do.
    """
    side = x.shape[1]
    if side % grid == 0:
        window = (side // grid, side // grid)
        return nn.max_pool(x, window, window)
    for axis in (1, 2):
        windows = [(i * side // grid, -(-(i + 1) * side // grid)) for i in range(grid)]
        parts = (jax.lax.slice_in_dim(x, *window, axis=axis) for window in windows)
        x = jnp.stack([part.max(axis) for part in parts], axis)
    return x


class Discriminator(nn.Module):
    """Patch discriminator of images in [0, 1]; logits are high for real patches.

    The defaults are the release's.
    """

    width: int = 128
    stages: int = 3
    grid: int = 16
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Image) -> Float[Array, "b g g"]:
        conv = functools.partial(nn.Conv, dtype=self.dtype)
        leaky = functools.partial(nn.leaky_relu, negative_slope=0.1)
        x = leaky(conv(self.width, (5, 5), name="conv_in")(images.astype(self.dtype)))
        for stage in range(self.stages):
            width = self.width * 2**stage
            x = blur_pool(conv(width, (3, 3), name=f"conv{stage}")(x))
            norm = nn.GroupNorm(
                min(32, width), epsilon=1e-5, dtype=jnp.float32, name=f"norm{stage}"
            )
            x = leaky(norm(x)).astype(self.dtype)
        x = pool_to_grid(x, self.grid)
        x = leaky(conv(x.shape[-1], (1, 1), name="fc")(x))
        logits = conv(1, (5, 5), name="conv_out")(x)
        return logits[..., 0].astype(jnp.float32)  # [b g g]
