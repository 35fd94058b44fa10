"""Networks that judge images: LPIPS and the tokenizer's discriminator.

    LPIPS(a, b) = sum over 5 layers of VGG16 of the mean over places of
                  sum_c w_c (a_c / |a| - b_c / |b|)^2

(Zhang et al. 2018, section 3; TA-TiTok's release, `modeling/modules/lpips.py`.)

The discriminator judges patches: a convolutional network with anti-aliased downsampling
(Zhang 2019) and 16 x 16 logits (the same release, `modeling/modules/discriminator.py`).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flowtok_jax.array_types import Image
from flowtok_jax.runtime.errors import UserError

# Convolutions of each layer of VGG16 whose last activations LPIPS compares.
VGG = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# ImageNet's mean and deviation, of images in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
BLUR = np.outer([1, 3, 3, 1], [1, 3, 3, 1]).astype(np.float32) / 64

Maps = Float[Array, "b _ _ _"]  # [b h w c]; all but the batch change


class LPIPS(nn.Module):
    """Perceptual distance of images in [0, 1]: one value a pair.

    float32 is float32 on every device. Gradients are finite where features are zero.
    Weights are published for the default layers only.
    """

    layers: tuple[tuple[int, ...], ...] = VGG
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, a: Image, b: Image) -> Float[Array, " b"]:
        x = 2 * jnp.concatenate([a, b]).astype(jnp.float32) - 1
        shift, scale = (np.float32(v)[None, None, None] for v in (SHIFT, SCALE))
        x, distance = ((x - shift) / scale).astype(self.dtype), 0.0
        with jax.default_matmul_precision("highest"):
            for layer, widths in enumerate(self.layers):
                x = self._vgg_layer(x, layer, widths)
                one, two = jnp.split(_unit(x), 2)
                squares = jnp.square(one - two).mean((1, 2))  # [b c]
                ones = nn.initializers.ones
                distance += squares @ self.param(f"weights{layer}", ones, widths[-1:])
        return distance

    def _vgg_layer(self, x: Maps, layer: int, widths: tuple[int, ...]) -> Maps:
        if layer:
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
    """Features of length 1 at every place, float32; zeros stay zeros."""
    x = x.astype(jnp.float32)
    square = jnp.square(x).sum(-1, keepdims=True)
    # Without the floor the root's gradient at 0 is not finite.
    return x / (jnp.sqrt(jnp.maximum(square, 1e-30)) + 1e-10)


def blur_pool(x: Maps) -> Maps:
    """Halves both sides after a binomial filter (1, 3, 3, 1) of each channel."""
    kernel, channels = jnp.asarray(BLUR, x.dtype)[:, :, None, None], x.shape[-1]
    return jax.lax.conv_general_dilated(
        x,
        jnp.broadcast_to(kernel, (4, 4, 1, channels)),
        window_strides=(2, 2),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
    )


class Discriminator(nn.Module):
    """Logits [b, grid, grid] of images in [0, 1]: high for real ones.

    The defaults are the release's; an image's side is a multiple of grid * 2^stages.
    """

    width: int = 128
    stages: int = 3
    grid: int = 16
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Image) -> Float[Array, "b g g"]:
        unit = self.grid * 2**self.stages
        if images.shape[1] % unit:
            raise UserError(
                f"the discriminator got images of {images.shape[1]} px; wanted a "
                f"multiple of {unit}"
            )
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
        side = x.shape[1] // self.grid
        x = nn.max_pool(x, (side, side), (side, side))
        x = leaky(conv(x.shape[-1], (1, 1), name="fc")(x))
        logits = conv(1, (5, 5), name="conv_out")(x)
        return logits[..., 0].astype(jnp.float32)
