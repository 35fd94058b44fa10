"""InceptionV3 of `pt_inception-2015-12-05`, the network behind FID.

The graph is the one that TensorFlow published in 2015 (Szegedy et al. 2015; FID: Heusel
et al. 2017). It differs from later InceptionV3s: average pools leave padding out of the
mean, the last block pools the maximum, and there are 1008 logits. Images come in at
299 px. Published FIDs differ most in how images are resized, so the network leaves
resizing to its caller (`resize_legacy` is the graph's own way).
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flowtok_jax.models.layers import Maps

SIDE = 299  # pixels
LOGITS = 1008


def resize_legacy(images: Float[Array, "b h w 3"]) -> Float[Array, "b 299 299 3"]:
    """Resizes bilinearly as TensorFlow 1 does, without antialiasing or rounding.

    Output pixel i lies at i * (input side / 299) of the input: places are the corners
    of pixels, not their centres.
    """
    images = images.astype(jnp.float32)
    for axis in (1, 2):
        images = _interpolate(images, axis)
    return images


def _interpolate(images: Maps, axis: int) -> Maps:
    side = images.shape[axis]
    place = jnp.arange(SIDE, dtype=jnp.float32) * jnp.float32(side / SIDE)
    low = jnp.floor(place).astype(jnp.int32)
    weight = jnp.expand_dims(place - low, [i for i in range(4) if i != axis])
    # low + 1 may lie outside; its weight is not 0 there, so the edge is repeated.
    below, above = (
        jnp.take(images, jnp.minimum(index, side - 1), axis) for index in (low, low + 1)
    )
    return below + (above - below) * weight


def _average_pool(x: Maps) -> Maps:
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _max_pool(x: Maps) -> Maps:
    return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def _halve(x: Maps) -> Maps:
    return nn.max_pool(x, (3, 3), (2, 2), "VALID")


class ConvNorm(nn.Module):
    """Convolution without bias, batch normalisation by stored statistics, ReLU.

    The four vectors of the normalisation are not folded into the kernel: each array is
    one of the released file's, bit for bit, and XLA fuses scale and offset into the
    ReLU anyway.
    """

    features: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        x = nn.Conv(
            self.features,
            self.kernel,
            strides=self.stride,
            padding=self.padding,
            use_bias=False,
            dtype=self.dtype,
            # Keeps the scale of activations if the network is used untrained.
            kernel_init=nn.initializers.he_normal(),
            name="conv",
        )(x)
        ones = nn.initializers.ones
        zeros = nn.initializers.zeros
        inits = {"scale": ones, "bias": zeros, "mean": zeros, "var": ones}
        scale, bias, mean, var = (
            self.param(name, init, (self.features,))[None, None, None]
            for name, init in inits.items()
        )
        scale = scale * jax.lax.rsqrt(var + 1e-3)  # float32, whatever dtype
        return nn.relu(x * scale + (bias - mean * scale)).astype(self.dtype)


class _Block(nn.Module):
    """Base of the mixed blocks: branches over one input, joined along the channels."""

    dtype: DTypeLike = jnp.float32

    def conv(self, name: str, features: int, *kernel: int, **options) -> ConvNorm:
        """Makes a convolution; names are those of the released file."""
        return ConvNorm(features, kernel, dtype=self.dtype, name=name, **options)


def _chain(x: Maps, *layers: ConvNorm) -> Maps:
    for layer in layers:
        x = layer(x)
    return x


class MixedA(_Block):
    """Block at 35 x 35: branches of 1x1, 5x5, two 3x3, and a pool."""

    pool_features: int = 32

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        conv = self.conv
        five = conv("branch5x5_1", 48, 1, 1), conv("branch5x5_2", 64, 5, 5)
        three = (
            conv("branch3x3dbl_1", 64, 1, 1),
            conv("branch3x3dbl_2", 96, 3, 3),
            conv("branch3x3dbl_3", 96, 3, 3),
        )
        branches = (
            conv("branch1x1", 64, 1, 1)(x),
            _chain(x, *five),
            _chain(x, *three),
            conv("branch_pool", self.pool_features, 1, 1)(_average_pool(x)),
        )
        return jnp.concatenate(branches, -1)


class ReduceA(_Block):
    """Block from 35 x 35 to 17 x 17."""

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        conv = self.conv
        half = dict(stride=2, padding="VALID")
        three = (
            conv("branch3x3dbl_1", 64, 1, 1),
            conv("branch3x3dbl_2", 96, 3, 3),
            conv("branch3x3dbl_3", 96, 3, 3, **half),
        )
        branches = (
            conv("branch3x3", 384, 3, 3, **half)(x),
            _chain(x, *three),
            _halve(x),
        )
        return jnp.concatenate(branches, -1)


class MixedC(_Block):
    """Block at 17 x 17: 7x7 convolutions factored into 1x7 and 7x1."""

    width: int = 128

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        conv = self.conv
        width = self.width
        seven = (
            conv("branch7x7_1", width, 1, 1),
            conv("branch7x7_2", width, 1, 7),
            conv("branch7x7_3", 192, 7, 1),
        )
        twice = (
            conv("branch7x7dbl_1", width, 1, 1),
            conv("branch7x7dbl_2", width, 7, 1),
            conv("branch7x7dbl_3", width, 1, 7),
            conv("branch7x7dbl_4", width, 7, 1),
            conv("branch7x7dbl_5", 192, 1, 7),
        )
        branches = (
            conv("branch1x1", 192, 1, 1)(x),
            _chain(x, *seven),
            _chain(x, *twice),
            conv("branch_pool", 192, 1, 1)(_average_pool(x)),
        )
        return jnp.concatenate(branches, -1)


class ReduceC(_Block):
    """Block from 17 x 17 to 8 x 8."""

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        conv = self.conv
        half = dict(stride=2, padding="VALID")
        three = conv("branch3x3_1", 192, 1, 1), conv("branch3x3_2", 320, 3, 3, **half)
        seven = (
            conv("branch7x7x3_1", 192, 1, 1),
            conv("branch7x7x3_2", 192, 1, 7),
            conv("branch7x7x3_3", 192, 7, 1),
            conv("branch7x7x3_4", 192, 3, 3, **half),
        )
        branches = _chain(x, *three), _chain(x, *seven), _halve(x)
        return jnp.concatenate(branches, -1)


class MixedE(_Block):
    """Block at 8 x 8: 3x3 convolutions as 1x3 beside 3x1."""

    pools_maximum: bool = False  # the graph's last block

    @nn.compact
    def __call__(self, x: Maps) -> Maps:
        conv = self.conv
        three = conv("branch3x3_1", 384, 1, 1)(x)
        twice = conv("branch3x3dbl_1", 448, 1, 1), conv("branch3x3dbl_2", 384, 3, 3)
        twice = _chain(x, *twice)
        pooled = (_max_pool if self.pools_maximum else _average_pool)(x)
        branches = (
            conv("branch1x1", 320, 1, 1)(x),
            conv("branch3x3_2a", 384, 1, 3)(three),
            conv("branch3x3_2b", 384, 3, 1)(three),
            conv("branch3x3dbl_3a", 384, 1, 3)(twice),
            conv("branch3x3dbl_3b", 384, 3, 1)(twice),
            conv("branch_pool", 192, 1, 1)(pooled),
        )
        return jnp.concatenate(branches, -1)


class Inception(nn.Module):
    """Pooled features of images in [0, 255], and logits without their bias."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, images: Float[Array, "b 299 299 3"]
    ) -> tuple[Float[Array, "b 2048"], Float[Array, "b 1008"]]:
        # By default a TPU would round float32 products to bfloat16.
        with jax.default_matmul_precision("highest"):
            # The graph's own scaling; later InceptionV3s take (x - 127.5) / 127.5.
            x = ((images.astype(jnp.float32) - 128) / 128).astype(self.dtype)
            x = self._mix(self._stem(x))
            features = x.astype(jnp.float32).mean((1, 2))  # [b 2048]
            logits = nn.Dense(LOGITS, use_bias=False, name="fc")(features)
        return features, logits

    def _stem(self, x: Maps) -> Maps:
        """Applies the convolutions before the blocks: 299 x 299 to 35 x 35."""
        conv = functools.partial(ConvNorm, dtype=self.dtype)
        x = conv(32, (3, 3), 2, "VALID", name="Conv2d_1a_3x3")(x)
        x = conv(32, (3, 3), 1, "VALID", name="Conv2d_2a_3x3")(x)
        x = _halve(conv(64, (3, 3), name="Conv2d_2b_3x3")(x))
        x = conv(80, (1, 1), name="Conv2d_3b_1x1")(x)
        return _halve(conv(192, (3, 3), 1, "VALID", name="Conv2d_4a_3x3")(x))

    def _mix(self, x: Maps) -> Maps:
        """Applies the mixed blocks: 35 x 35 to 8 x 8."""
        dtype = dict(dtype=self.dtype)
        for name, features in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = MixedA(pool_features=features, name=f"Mixed_{name}", **dtype)(x)
        x = ReduceA(name="Mixed_6a", **dtype)(x)
        for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x = MixedC(width=width, name=f"Mixed_{name}", **dtype)(x)
        x = ReduceC(name="Mixed_7a", **dtype)(x)
        x = MixedE(name="Mixed_7b", **dtype)(x)
        return MixedE(pools_maximum=True, name="Mixed_7c", **dtype)(x)
