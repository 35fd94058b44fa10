"""ConvNeXt, the second judge of the tokenizer's reconstructions.

The tokenizer's perceptual term compares the 1000 ImageNet logits of image and
reconstruction (TA-TiTok's release, `modeling/modules/perceptual_loss.py`). ConvNeXt is
Liu et al. 2022, with the layers and weights of torchvision's ConvNeXt-Small.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flowtok_jax.array_types import Image
from flowtok_jax.models.layers import Maps, scan_blocks

SIDE = 224  # pixels of the images that its weights were trained on
# ImageNet's mean and deviation, for images in [0, 1].
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution and MLP, scaled by channel and added to their input."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Maps) -> tuple[Maps, None]:
        width = x.shape[-1]
        conv = nn.Conv(
            width, (7, 7), feature_group_count=width, dtype=self.dtype, name="conv"
        )
        y = _norm("norm")(conv(x)).astype(self.dtype)
        y = nn.Dense(4 * width, dtype=self.dtype, name="dense1")(y)
        y = nn.Dense(width, dtype=self.dtype, name="dense2")(
            nn.gelu(y, approximate=False)
        )
        start = nn.initializers.constant(1e-6)
        scale = self.param("scale", start, (width,))
        # (carry, output a block) of nn.scan
        return x + scale.astype(self.dtype)[None, None, None] * y, None


def _norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, dtype=jnp.float32, name=name)


class ConvNeXt(nn.Module):
    """Logits of images in [0, 1] of any size, resized to 224 px; float32.

    With `remat` a backward pass keeps what enters each block, and computes the rest
    again.
    """

    depths: tuple[int, ...] = (3, 3, 27, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    classes: int = 1000
    dtype: DTypeLike = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, images: Image) -> Float[Array, "b classes"]:
        x = resize_bilinear(images.astype(jnp.float32), SIDE)
        mean, std = (np.float32(v)[None, None, None] for v in (MEAN, STD))
        x = ((x - mean) / std).astype(self.dtype)
        policy = "full" if self.remat else "none"
        with jax.default_matmul_precision("highest"):
            for stage, depth in enumerate(self.depths):
                x = self._smaller(x, stage)
                blocks = scan_blocks(ConvNeXtBlock, depth, policy)
                x, _ = blocks(self.dtype, name=f"stage{stage}")(x)
            x = _norm("norm")(x.mean((1, 2), dtype=jnp.float32))  # [b c]
            head = nn.Dense(self.classes, dtype=self.dtype, name="head")
            return head(x).astype(jnp.float32)

    def _smaller(self, x: Maps, stage: int) -> Maps:
        """Cuts the maps into squares, and makes of each a place of the next stage."""
        side = 2 if stage else 4
        conv = nn.Conv(
            self.widths[stage],
            (side, side),
            (side, side),
            "VALID",
            dtype=self.dtype,
            name=f"down{stage}",
        )
        # Normalised before the convolution, but the stem after it.
        layers = (_norm(f"norm{stage}"), conv) if stage else (conv, _norm("norm0"))
        for layer in layers:
            x = layer(x).astype(self.dtype)
        return x


def resize_bilinear(images: Image, side: int) -> Float[Array, "b t t 3"]:
    """Resizes images [b h w 3] to [b side side 3], antialiased where they shrink.

    The same as torch's bilinear interpolation with antialias and corners not aligned.
    """
    shape = (images.shape[0], side, side, images.shape[3])
    return jax.image.resize(images, shape, "bilinear", antialias=True)
