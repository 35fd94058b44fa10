"""CLIP's text tower: caption ids to one feature a token.

Pre-norm Transformer with a causal mask, learned positions and quick-GELU; features are
taken after the final LayerNorm, without pooling (Radford et al. 2021, section 2.4;
FlowTok section 3.1). Always frozen here.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flowtok_jax.models.layers import (
    Attention,
    Mlp,
    pin_rows,
    quick_gelu,
    scan_blocks,
)
from flowtok_jax.shapes import CaptionIds, TextFeatures


class ClipBlock(nn.Module):
    """Causal attention and MLP, each after a LayerNorm."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n e"]) -> tuple[Float[Array, "b n e"], None]:
        x, norm = pin_rows(x), dict(epsilon=1e-5, dtype=jnp.float32)
        attend = Attention(self.heads, self.dtype, causal=True, name="attention")
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
