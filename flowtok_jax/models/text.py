"""Text tokens: the projector from CLIP features, its align head, and the way back.

    projector   [b, n, e] -> mean and logvar [b, n, c] of the source tokens z_txt
    align head  [b, n, e] -> [b, n, c], what z_txt is aligned with
    decoder     [b, n, c] -> logits [b, n, v] of caption ids

Blocks are post-norm with ReLU (FlowTok section 3.2; release file
`libs/model/trans_autoencoder.py`; the decoder only in the paper, section 3.4).
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flowtok_jax.array_types import Logits, TextFeatures, Tokens
from flowtok_jax.models.layers import (
    Attention,
    pin_rows,
    scan_blocks,
    torch_dense,
    torch_uniform,
)
from flowtok_jax.models.posterior import Posterior
from flowtok_jax.runtime.errors import UserError

ALIGN_TARGETS = ("mlp", "average_pool")


class UnbiasedLayerNorm(nn.Module):
    """The release's LayerNorm: divides by std + 1e-5 with the unbiased (n - 1) std."""

    @nn.compact
    def __call__(self, x: Float[Array, "b n e"]) -> Float[Array, "b n e"]:
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        x32 = x.astype(jnp.float32)
        centred = x32 - x32.mean(-1, keepdims=True)
        std = x32.std(-1, keepdims=True, ddof=1)
        y = scale[None, None] * centred / (std + 1e-5) + bias[None, None]
        return y.astype(x.dtype)


class PostNormBlock(nn.Module):
    """Attention and ReLU MLP, each followed by a residual and a LayerNorm."""

    heads: int
    mlp_width: int
    dropout: float
    dtype: DTypeLike = jnp.float32
    deterministic: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "b n e"]) -> tuple[Float[Array, "b n e"], None]:
        x, width = pin_rows(x), x.shape[-1]
        drop = nn.Dropout(self.dropout, deterministic=self.deterministic)
        attend = Attention(
            self.heads,
            self.dtype,
            kernel_init=torch_uniform(width),
            bias_init=torch_uniform(width),
            dropout=self.dropout,
            deterministic=self.deterministic,
            name="attention",
        )
        x = UnbiasedLayerNorm(name="norm1")(x + drop(attend(x)))
        hidden = torch_dense(self.mlp_width, width, dtype=self.dtype, name="fc1")(x)
        hidden = drop(nn.relu(checkpoint_name(hidden, "fc1")))
        out = torch_dense(width, self.mlp_width, dtype=self.dtype, name="fc2")(hidden)
        out = checkpoint_name(out, "fc2")
        return UnbiasedLayerNorm(name="norm2")(x + drop(out)), None


class TextProjector(nn.Module):
    """Text features to the posterior of the source tokens.

    Dropout acts where `deterministic` is false and needs a "dropout" key.
    """

    depth: int = 6
    heads: int = 8
    mlp_width: int = 1024
    dropout: float = 0.1
    channels: int = 16
    dtype: DTypeLike = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(
        self, text_feats: TextFeatures, deterministic: bool = True
    ) -> Posterior:
        blocks = scan_blocks(PostNormBlock, self.depth, self.remat)
        x, _ = blocks(
            self.heads,
            self.mlp_width,
            self.dropout,
            self.dtype,
            deterministic,
            name="blocks",
        )(text_feats.astype(self.dtype))
        width = text_feats.shape[-1]
        x = torch_dense(2 * self.channels, width, dtype=self.dtype, name="out")(x)
        return Posterior.from_moments(x)


class AlignHead(nn.Module):
    """What z_txt is aligned with, and the logit scale tau = log(1 / temperature).

    `target` is "mlp" (learned, the release) or "average_pool" (each of the c channels
    the mean of e / c neighbouring features; FlowTok Tab. 4).
    """

    width: int = 512
    target: str = "mlp"
    channels: int = 16
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, text_feats: TextFeatures) -> tuple[Tokens, Float[Array, ""]]:
        tau = self.param("tau", nn.initializers.constant(np.log(1 / 0.07)), ())
        b, n, e = text_feats.shape
        if self.target == "average_pool":
            pooled = text_feats.reshape(b, n, self.channels, e // self.channels)
            return pooled.mean(-1), tau
        if self.target != "mlp":
            raise UserError(
                f"align_head.target is {self.target!r}; wanted one of {ALIGN_TARGETS}"
            )
        dense = dict(dtype=self.dtype)
        x = nn.silu(torch_dense(self.width, e, name="fc1", **dense)(text_feats))
        x = nn.silu(torch_dense(self.width, self.width, name="fc2", **dense)(x))
        x = torch_dense(self.channels, self.width, name="fc3", **dense)(x)
        return x.astype(jnp.float32), tau


class TextDecoder(nn.Module):
    """Text tokens to logits over the vocabulary, all positions at once."""

    vocab_size: int = 49408
    width: int = 768
    depth: int = 6
    heads: int = 8
    mlp_width: int = 1024
    dropout: float = 0.1
    dtype: DTypeLike = jnp.float32
    remat: str = "none"

    @nn.compact
    def __call__(self, z_txt: Tokens, deterministic: bool = True) -> Logits:
        dense = dict(dtype=self.dtype)
        x = torch_dense(self.width, z_txt.shape[-1], name="embed", **dense)(z_txt)
        blocks = scan_blocks(PostNormBlock, self.depth, self.remat)
        x, _ = blocks(
            self.heads,
            self.mlp_width,
            self.dropout,
            self.dtype,
            deterministic,
            name="blocks",
        )(x)
        x = torch_dense(self.vocab_size, self.width, name="out", **dense)(x)
        return x.astype(jnp.float32)
