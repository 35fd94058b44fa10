"""CLIP's towers, always frozen here (Radford et al. 2021, section 2.4).

The text tower gives one feature a token: a pre-norm Transformer with a causal mask,
learned positions and quick-GELU; features are taken after the final LayerNorm, without
pooling (FlowTok section 3.1). With the image tower and both projections it scores how
well a caption fits an image:

    cos(image, text) = embed_image(image) . embed_text(caption)
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

# Of all of CLIP's training images.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


class ClipBlock(nn.Module):
    """Attention and MLP, each after a LayerNorm."""

    heads: int
    dtype: DTypeLike = jnp.float32
    causal: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b n e"]) -> tuple[Float[Array, "b n e"], None]:
        x, norm = pin_rows(x), dict(epsilon=1e-5, dtype=jnp.float32)
        attend = Attention(self.heads, self.dtype, causal=self.causal, name="attention")
        mlp = Mlp(4 * x.shape[-1], quick_gelu, self.dtype, name="mlp")
        x = x + attend(nn.LayerNorm(name="norm1", **norm)(x).astype(self.dtype))
        x = x + mlp(nn.LayerNorm(name="norm2", **norm)(x).astype(self.dtype))
        return x, None


class ClipText(nn.Module):
    """Features [b, n, e] of caption ids; the defaults are those of ViT-L/14-336.

    `embedding_std`, and half of it for positions, matters only where the tower is used
    at random initialisation.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    vocab_size: int = 49408
    context: int = 77
    embedding_std: float = 0.02
    dtype: DTypeLike = jnp.float32

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
        blocks = scan_blocks(ClipBlock, self.depth, "none")
        x, _ = blocks(self.heads, self.dtype, name="blocks")(x)
        return nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm")(x)


class ClipVision(nn.Module):
    """One feature [b, d] an image in [0, 1], of the class token; defaults: L/14-336."""

    width: int = 1024
    depth: int = 24
    heads: int = 16
    image_size: int = 336
    patch: int = 14
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Image) -> Float[Array, "b d"]:
        normal, norm = nn.initializers.normal(0.02), dict(epsilon=1e-5)
        mean, std = (jnp.array(x)[None, None, None] for x in (MEAN, STD))
        x = patchify((images - mean) / std, self.patch).astype(self.dtype)
        embed = nn.Dense(
            self.width, use_bias=False, dtype=self.dtype, name="patch_embed"
        )
        token = self.param("class_token", normal, (self.width,))
        token = jnp.broadcast_to(token, (len(x), 1, self.width))
        x = jnp.concatenate([token, embed(x).astype(jnp.float32)], 1)
        shape = (1 + (self.image_size // self.patch) ** 2, self.width)
        x = x + self.param("positions", normal, shape)[None]
        x = nn.LayerNorm(name="norm_pre", dtype=jnp.float32, **norm)(x)
        blocks = scan_blocks(ClipBlock, self.depth, "none")
        x, _ = blocks(self.heads, self.dtype, causal=False, name="blocks")(
            x.astype(self.dtype)
        )
        return nn.LayerNorm(name="norm", dtype=jnp.float32, **norm)(x[:, 0])


class ClipScorer(nn.Module):
    """Both towers with their projections, float32 on every device if `dtype` is."""

    text: ClipText
    vision: ClipVision
    features: int = 768

    def setup(self):
        self.text_projection = nn.Dense(self.features, use_bias=False)
        self.image_projection = nn.Dense(self.features, use_bias=False)

    @property
    def image_size(self) -> int:
        return self.vision.image_size

    def embed_image(self, images: Image) -> Float[Array, "b f"]:
        """Unit vectors of images in [0, 1], which have the tower's size already."""
        with jax.default_matmul_precision("highest"):
            return _unit(self.image_projection(self.vision(images)))

    def embed_text(self, caption_ids: CaptionIds) -> Float[Array, "b f"]:
        """Unit vectors of captions: the feature of the end token, the largest id."""
        with jax.default_matmul_precision("highest"):
            feats = self.text(caption_ids)
            end = caption_ids.argmax(-1)[:, None, None]
            feats = jnp.take_along_axis(feats, end, 1)[:, 0]
            return _unit(self.text_projection(feats))

    def __call__(
        self, images: Image, caption_ids: CaptionIds
    ) -> tuple[Float[Array, "b f"], Float[Array, "b f"]]:
        """Both, so that `init` makes both towers' parameters."""
        return self.embed_image(images), self.embed_text(caption_ids)


def make_clip_scorer(
    text: Mapping[str, Any],
    vision: Mapping[str, Any],
    features: int,
    dtype: DTypeLike = jnp.float32,
) -> ClipScorer:
    """The scorer of these sizes: fields of ClipText and of ClipVision."""
    return ClipScorer(
        ClipText(**text, dtype=dtype), ClipVision(**vision, dtype=dtype), features
    )


def _unit(x: Float[Array, "b f"]) -> Float[Array, "b f"]:
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
