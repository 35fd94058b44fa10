"""The velocity field: a Diffusion Transformer with adaLN-Zero over n tokens.

    k = time_mlp(t) + indicator(null)
    x <- x + gate_a(k) * attention(LN(x) * (1 + scale_a(k)) + shift_a(k))
    x <- x + gate_m(k) * mlp(LN(x) * (1 + scale_m(k)) + shift_m(k))

The text enters only as the start of the flow, never here (FlowTok section 3.3; release
file `libs/model/flowtok.py`). Initialised as DiT: velocity exactly 0 at the start.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flowtok_jax.models.layers import (
    Attention,
    Mlp,
    TimeEmbedding,
    gelu_tanh,
    modulate,
    pin_rows,
    scan_blocks,
    sincos_positions,
)
from flowtok_jax.shapes import Rows, Time, Tokens

SIZES = {
    "s": dict(width=384, depth=12, heads=6),
    "b": dict(width=768, depth=12, heads=12),
    "l": dict(width=1024, depth=24, heads=16),
    "xl": dict(width=1152, depth=28, heads=16),
    "h": dict(width=1280, depth=36, heads=20),
}


def _modulation(width: int, parts: int, dtype: DTypeLike) -> nn.Dense:
    """The layer that gives shifts, scales and gates; zero, so that blocks start off."""
    return nn.Dense(
        parts * width,
        dtype=dtype,
        kernel_init=nn.initializers.zeros,
        name="modulation",
    )


class _LayerNorm(nn.Module):
    """LayerNorm without affine parameters, eps 1e-6, computed in float32."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x):
        norm = nn.LayerNorm(
            epsilon=1e-6, use_bias=False, use_scale=False, dtype=jnp.float32
        )
        return norm(x).astype(self.dtype)


class DiTBlock(nn.Module):
    """Attention and MLP, each modulated and gated by the condition k."""

    heads: int
    mlp_ratio: int = 4
    dtype: DTypeLike = jnp.float32
    attention: str = "xla"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], k: Float[Array, "#b d"]
    ) -> tuple[Float[Array, "b n d"], None]:
        x, width = pin_rows(x), x.shape[-1]
        parts = pin_rows(_modulation(width, 6, self.dtype)(nn.silu(pin_rows(k))))
        parts = checkpoint_name(parts, "modulation")
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(parts, 6, -1)
        norm = _LayerNorm(self.dtype)
        attend = Attention(
            self.heads, self.dtype, implementation=self.attention, name="attention"
        )
        mlp = Mlp(self.mlp_ratio * width, gelu_tanh, self.dtype, name="mlp")
        x = x + gate_a[:, None] * attend(modulate(norm(x), shift_a, scale_a))
        x = x + gate_m[:, None] * mlp(modulate(norm(x), shift_m, scale_m))
        return x, None


class FinalLayer(nn.Module):
    """Modulated normalisation and a dense layer to the channels of a token."""

    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], k: Float[Array, "#b d"]) -> Tokens:
        parts = pin_rows(_modulation(x.shape[-1], 2, self.dtype)(nn.silu(pin_rows(k))))
        shift, scale = jnp.split(parts, 2, -1)
        x = modulate(_LayerNorm(self.dtype)(x), shift, scale)
        out = nn.Dense(
            self.channels,
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            name="out",
        )
        return out(x)


class DiT(nn.Module):
    """Velocity of n tokens at time t.

    `t` and `null` may have one row for a batch that shares them, as in sampling.
    The result is float32, because it is summed up by the ODE solver.
    """

    width: int
    depth: int
    heads: int
    tokens: int = 77
    channels: int = 16
    mlp_ratio: int = 4
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    attention: str = "xla"

    @nn.compact
    def __call__(self, z_t: Tokens, t: Time, null: Rows) -> Float[Array, "b n c"]:
        x = nn.Dense(
            self.width,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            name="embed",
        )(z_t)
        x = (
            pin_rows(x)
            + jnp.asarray(sincos_positions(self.tokens, self.width), x.dtype)[None]
        )
        k = TimeEmbedding(self.width, self.dtype, name="time")(t)
        k = k + nn.Embed(
            2,
            self.width,
            dtype=self.dtype,
            embedding_init=nn.initializers.normal(0.02),
            name="indicator",
        )(null.astype(jnp.int32))
        blocks = scan_blocks(DiTBlock, self.depth, self.remat)
        x, _ = blocks(
            self.heads, self.mlp_ratio, self.dtype, self.attention, name="blocks"
        )(x, k)
        x = FinalLayer(self.channels, self.dtype, name="final")(x, k)
        return x.astype(jnp.float32)
