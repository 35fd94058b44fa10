"""Text tokens: the projector from CLIP features, its align head, and the decoder.

    projector   [b, n, e] -> mean and logvar [b, n, c] of the text tokens z_txt
    align head  [b, n, e] -> [b, n, c], the target that z_txt is aligned with
    decoder     [b, n, c] -> logits [b, n, v] of caption ids

Blocks are post-norm with ReLU (FlowTok section 3.2; release file
`libs/model/trans_autoencoder.py`). The decoder is described in the paper only, in
section 3.4.
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
    dot_general,
    pin_rows,
    scan_blocks,
    torch_dense,
    torch_uniform,
)
from flowtok_jax.models.posterior import Posterior
from flowtok_jax.runtime.errors import UserError

ALIGN_TARGETS = ("mlp", "average_pool")


class UnbiasedLayerNorm(nn.Module):
    """LayerNorm of the release, with the unbiased (n - 1) standard deviation."""

    @nn.compact
    def __call__(self, x: Float[Array, "b n e"]) -> Float[Array, "b n e"]:
        width = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (width,))
        bias = self.param("bias", nn.initializers.zeros, (width,))
        x32 = x.astype(jnp.float32)  # statistics in float32, whatever the dtype
        centred = x32 - x32.mean(-1, keepdims=True)
        std = x32.std(-1, keepdims=True, ddof=1)
        # Epsilon is added to the std, not to the variance under the root.
        y = scale[None, None] * centred / (std + 1e-5) + bias[None, None]
        return y.astype(x.dtype)


class PostNormBlock(nn.Module):
    """Attention and ReLU MLP, each followed by a residual and a LayerNorm."""

    heads: int
    mlp_width: int
    dropout: float
    dtype: DTypeLike = jnp.float32
    deterministic: bool = True
    layout: str = "batch"

    @nn.compact
    def __call__(self, x: Float[Array, "b n e"]) -> tuple[Float[Array, "b n e"], None]:
        x = pin_rows(x)
        width = x.shape[-1]
        drop = nn.Dropout(self.dropout, deterministic=self.deterministic)
        attend = Attention(
            self.heads,
            self.dtype,
            kernel_init=torch_uniform(width),
            bias_init=torch_uniform(width),
            dropout=self.dropout,
            deterministic=self.deterministic,
            layout=self.layout,
            name="attention",
        )
        dense = dict(dtype=self.dtype, dot_general=dot_general(self.layout))
        x = UnbiasedLayerNorm(name="norm1")(x + drop(attend(x)))
        hidden = torch_dense(self.mlp_width, width, name="fc1", **dense)(x)
        hidden = drop(nn.relu(checkpoint_name(hidden, "fc1")))
        out = torch_dense(width, self.mlp_width, name="fc2", **dense)(hidden)
        out = checkpoint_name(out, "fc2")
        # (carry, output a block) of nn.scan
        return UnbiasedLayerNorm(name="norm2")(x + drop(out)), None


class TextProjector(nn.Module):
    """Transformer from text features to the posterior of the text tokens.

    Dropout acts unless `deterministic`, and needs a "dropout" key.
    """

    depth: int = 6
    heads: int = 8
    mlp_width: int = 1024
    dropout: float = 0.1
    channels: int = 16
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    layout: str = "batch"

    @nn.compact
    def __call__(
        self, text_feats: TextFeatures, deterministic: bool = True
    ) -> Posterior:
        blocks = scan_blocks(PostNormBlock, self.depth, self.remat, layout=self.layout)
        x, _ = blocks(
            self.heads,
            self.mlp_width,
            self.dropout,
            self.dtype,
            deterministic,
            self.layout,
            name="blocks",
        )(text_feats.astype(self.dtype))
        width = text_feats.shape[-1]
        dense = dict(dtype=self.dtype, dot_general=dot_general(self.layout))
        x = torch_dense(2 * self.channels, width, name="out", **dense)(x)
        return Posterior.from_moments(x)  # [b n 2c] to two [b n c]


class AlignHead(nn.Module):
    """Alignment target of z_txt, and the logit scale tau = log(1 / temperature).

    `target` is "mlp" (learned, as in the release) or "average_pool" (each of the c
    channels is the mean of e / c neighbouring features; FlowTok Tab. 4).
    """

    width: int = 512
    target: str = "mlp"
    channels: int = 16
    dtype: DTypeLike = jnp.float32
    layout: str = "batch"

    @nn.compact
    def __call__(self, text_feats: TextFeatures) -> tuple[Tokens, Float[Array, ""]]:
        # CLIP's initial logit scale; the release trains it as `t2t_temperature`.
        tau = self.param("tau", nn.initializers.constant(np.log(1 / 0.07)), ())
        b, n, e = text_feats.shape
        if self.target == "average_pool":
            pooled = text_feats.reshape(b, n, self.channels, e // self.channels)
            return pooled.mean(-1), tau  # [b n c]
        if self.target != "mlp":
            raise UserError(
                f"align_head.target is {self.target!r}; expected one of {ALIGN_TARGETS}"
            )
        dense = dict(dtype=self.dtype, dot_general=dot_general(self.layout))
        x = nn.silu(torch_dense(self.width, e, name="fc1", **dense)(text_feats))
        x = nn.silu(torch_dense(self.width, self.width, name="fc2", **dense)(x))
        x = torch_dense(self.channels, self.width, name="fc3", **dense)(x)
        return x.astype(jnp.float32), tau


class TextDecoder(nn.Module):
    """Transformer from text tokens to logits of all positions at once."""

    vocab_size: int = 49408
    width: int = 768
    depth: int = 6
    heads: int = 8
    mlp_width: int = 1024
    dropout: float = 0.1
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    layout: str = "batch"

    @nn.compact
    def __call__(self, z_txt: Tokens, deterministic: bool = True) -> Logits:
        dense = dict(dtype=self.dtype, dot_general=dot_general(self.layout))
        x = torch_dense(self.width, z_txt.shape[-1], name="embed", **dense)(z_txt)
        blocks = scan_blocks(PostNormBlock, self.depth, self.remat, layout=self.layout)
        x, _ = blocks(
            self.heads,
            self.mlp_width,
            self.dropout,
            self.dtype,
            deterministic,
            self.layout,
            name="blocks",
        )(x)
        x = torch_dense(self.vocab_size, self.width, name="out", **dense)(x)
        return x.astype(jnp.float32)
