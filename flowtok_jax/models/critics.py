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
from flowtok_jax.models.convolution import convolve
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
    features are zero. Weights are published for the default layers only. With `remat`
    a backward pass keeps what enters and leaves each layer; it computes the rest again.
    """

    layers: tuple[tuple[int, ...], ...] = VGG_WIDTHS
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    def setup(self):
        for layer, widths in enumerate(self.layers):
            for i, width in enumerate(widths):
                conv = nn.Conv(
                    width,
                    (3, 3),
                    dtype=self.dtype,
                    kernel_init=nn.initializers.he_normal(),
                    conv_general_dilated=convolve,
                )
                setattr(self, f"conv{layer}_{i}", conv)
            weights = self.param(f"weights{layer}", nn.initializers.ones, widths[-1:])
            setattr(self, f"weights{layer}", weights)

    def __call__(self, a: Image, b: Image) -> Float[Array, " b"]:
        # Each image goes through VGG16 by itself: a side without gradient then costs
        # no backward pass.
        one, two = (self._normalise(image) for image in (a, b))
        layer_of = LPIPS._vgg_layer
        compare = _compare
        if self.remat:
            layer_of = nn.remat(layer_of, static_argnums=(2,))
            compare = jax.checkpoint(compare)
        distance = 0.0
        with jax.default_matmul_precision("highest"):
            for layer in range(len(self.layers)):
                one, two = (layer_of(self, x, layer) for x in (one, two))
                distance += compare(one, two) @ getattr(self, f"weights{layer}")
        return distance

    def _normalise(self, image: Image) -> Image:
        x = 2 * image.astype(jnp.float32) - 1  # in [-1, 1], as in the release
        shift, scale = (np.float32(v)[None, None, None] for v in (SHIFT, SCALE))
        return ((x - shift) / scale).astype(self.dtype)

    def _vgg_layer(self, x: Maps, layer: int) -> Maps:
        if layer:  # VGG16 pools after each layer; LPIPS reads what comes before
            x = nn.max_pool(x, (2, 2), (2, 2))
        for i in range(len(self.layers[layer])):
            x = nn.relu(getattr(self, f"conv{layer}_{i}")(x))
        return x


def _compare(one: Maps, two: Maps) -> Float[Array, "b c"]:
    """Computes what (1) sums over channels; its mean over places commutes with that."""
    return jnp.square(_unit(one) - _unit(two)).mean((1, 2))


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
        conv = functools.partial(
            nn.Conv, dtype=self.dtype, conv_general_dilated=convolve
        )
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
