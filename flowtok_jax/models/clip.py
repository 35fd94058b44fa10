"""CLIP's towers (Radford et al. 2021, section 2.4), as a rule frozen.

The text tower is a pre-norm Transformer with a causal mask, learned positions and
quick-GELU. The flow uses its features of all tokens after the final LayerNorm, without
pooling (FlowTok section 3.1). Both towers with their projections score how well a
caption fits an image:

    cos(image, text) = embed_image(image) . embed_text(caption)             (1)
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flowtok_jax.array_types import CaptionIds, Image, TextFeatures
from flowtok_jax.models.layers import (
    Attention,
    Mlp,
    pin_rows,
    quick_gelu,
    scan_blocks,
)
from flowtok_jax.models.tokenizer import patchify

# Mean and deviation by which CLIP's own preprocessing normalises RGB values in [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class ClipBlock(nn.Module):
    """Attention and MLP, each after a LayerNorm."""

    heads: int
    dtype: DTypeLike = jnp.float32
    causal: bool = True
    layout: str = "batch"

    @nn.compact
    def __call__(self, x: Float[Array, "b n e"]) -> tuple[Float[Array, "b n e"], None]:
        x = pin_rows(x)
        norm = dict(epsilon=1e-5, dtype=jnp.float32)
        shared = dict(dtype=self.dtype, layout=self.layout)
        attend = Attention(self.heads, causal=self.causal, name="attention", **shared)
        mlp = Mlp(4 * x.shape[-1], quick_gelu, name="mlp", **shared)
        x = x + attend(nn.LayerNorm(name="norm1", **norm)(x).astype(self.dtype))
        x = x + mlp(nn.LayerNorm(name="norm2", **norm)(x).astype(self.dtype))
        return x, None


class ClipText(nn.Module):
    """Text tower; the default sizes are those of ViT-L/14-336.

    `embedding_std` (halved for positions) matters only if the tower stays at its random
    initialisation. Where it is `trained_along`, t2i has a tower of its own beside the
    frozen one, and trains it.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    vocab_size: int = 49408
    context: int = 77
    embedding_std: float = 0.02
    trained_along: bool = False
    dtype: DTypeLike = jnp.float32
    layout: str = "batch"

    @nn.compact
    def __call__(self, caption_ids: CaptionIds) -> TextFeatures:
        init = nn.initializers.normal(self.embedding_std)
        embed = nn.Embed(
            self.vocab_size, self.width, self.dtype, embedding_init=init, name="embed"
        )
        positions = self.param(
            "positions",
            nn.initializers.normal(0.5 * self.embedding_std),
            (self.context, self.width),
        )
        x = embed(caption_ids) + positions.astype(self.dtype)[None]
        blocks = scan_blocks(ClipBlock, self.depth, "none", layout=self.layout)
        x, _ = blocks(self.heads, self.dtype, layout=self.layout, name="blocks")(x)
        return nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm")(x)


class ClipVision(nn.Module):
    """Image tower: the class token's feature; the default sizes are ViT-L/14-336's."""

    width: int = 1024
    depth: int = 24
    heads: int = 16
    image_size: int = 336
    patch: int = 14
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Image) -> Float[Array, "b d"]:
        normal = nn.initializers.normal(0.02)
        norm = dict(epsilon=1e-5)
        mean, std = (jnp.array(x)[None, None, None] for x in (MEAN, STD))
        x = patchify((images - mean) / std, self.patch).astype(self.dtype)  # [b m f]
        embed = nn.Dense(
            self.width, use_bias=False, dtype=self.dtype, name="patch_embed"
        )
        token = self.param("class_token", normal, (self.width,))
        token = jnp.broadcast_to(token, (len(x), 1, self.width))
        # float32 from the class token to the first LayerNorm, whatever the dtype.
        x = jnp.concatenate([token, embed(x).astype(jnp.float32)], 1)  # [b 1+m d]
        shape = (1 + (self.image_size // self.patch) ** 2, self.width)
        x = x + self.param("positions", normal, shape)[None]
        x = nn.LayerNorm(name="norm_pre", dtype=jnp.float32, **norm)(x)
        blocks = scan_blocks(ClipBlock, self.depth, "none")
        x, _ = blocks(self.heads, self.dtype, causal=False, name="blocks")(
            x.astype(self.dtype)
        )
        # Only the class token is scored, so only its feature is normalised.
        return nn.LayerNorm(name="norm", dtype=jnp.float32, **norm)(x[:, 0])  # [b d]


class ClipScorer(nn.Module):
    """Both towers with their projections to a shared space.

    With float32 towers, products are float32 on every device.
    """

    text: ClipText
    vision: ClipVision
    features: int = 768

    def setup(self):
        self.text_projection = nn.Dense(self.features, use_bias=False)
        self.image_projection = nn.Dense(self.features, use_bias=False)

    @property
    def image_size(self) -> int:
        """Side of the images that `embed_image` takes, in pixels."""
        return self.vision.image_size

    def embed_image(self, images: Image) -> Float[Array, "b f"]:
        """Encodes images in [0, 1], of the tower's size, as unit vectors."""
        # TPUs and recent GPUs round float32 products to fewer bits by default.
        with jax.default_matmul_precision("highest"):
            return _unit(self.image_projection(self.vision(images)))

    def embed_text(self, caption_ids: CaptionIds) -> Float[Array, "b f"]:
        """Encodes captions as unit vectors, by the feature of the end token."""
        with jax.default_matmul_precision("highest"):
            feats = self.text(caption_ids)
            # The end token has the largest id; where it pads too, argmax finds the
            # first one.
            end = caption_ids.argmax(-1)[:, None, None]
            feats = jnp.take_along_axis(feats, end, 1)[:, 0]  # [b e]
            return _unit(self.text_projection(feats))

    def __call__(
        self, images: Image, caption_ids: CaptionIds
    ) -> tuple[Float[Array, "b f"], Float[Array, "b f"]]:
        """Encodes both; (1) is the product of the results, row by row."""
        # `init` runs this method, and so makes the parameters of both towers.
        return self.embed_image(images), self.embed_text(caption_ids)


def make_clip_scorer(
    text: Mapping[str, Any],
    vision: Mapping[str, Any],
    features: int,
    dtype: DTypeLike = jnp.float32,
) -> ClipScorer:
    """Makes a scorer from the fields of ClipText and of ClipVision."""
    return ClipScorer(
        ClipText(**text, dtype=dtype), ClipVision(**vision, dtype=dtype), features
    )


def _unit(x: Float[Array, "b f"]) -> Float[Array, "b f"]:
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
