"""The velocity field: a Diffusion Transformer with adaLN-Zero over n tokens.

    k = time_mlp(t) + indicator(null)
    x <- x + gate_a(k) * attention(LN(x) * (1 + scale_a(k)) + shift_a(k))
    x <- x + gate_m(k) * mlp(LN(x) * (1 + scale_m(k)) + shift_m(k))

The text enters only as the start of the flow, never here (FlowTok section 3.3; release
file `libs/model/flowtok.py`). Initialised as DiT: velocity exactly 0 at the start.

Hence shifts, scales and gates do not depend on the sample: `modulations` computes those
of all the times of a sampler at once, and the DiT takes them in the time's stead.
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flowtok_jax.array_types import Params, Rows, Time, Tokens
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


def _indicator(width: int, dtype: DTypeLike) -> nn.Embed:
    """The table of the indicator: conditional rows, null rows."""
    init = nn.initializers.normal(0.02)
    return nn.Embed(2, width, dtype=dtype, embedding_init=init, name="indicator")


class Modulations(NamedTuple):
    """Shifts, scales and gates at one time, or a row for each of several: of every
    block [depth 2 6d] and of the final layer [2 2d], for conditional and null rows.
    """

    blocks: Float[Array, "*m depth two parts"]
    final: Float[Array, "*m two final_parts"]


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
    """Attention and MLP, each modulated and gated by the condition k.

    Where `is_modulated`, k is the block's row of `Modulations` already.
    """

    heads: int
    mlp_ratio: int = 4
    dtype: DTypeLike = jnp.float32
    attention: str = "xla"
    is_modulated: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], k: Float[Array, "#b k"]
    ) -> tuple[Float[Array, "b n d"], None]:
        x, width, parts = pin_rows(x), x.shape[-1], k
        if not self.is_modulated:
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
    is_modulated: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], k: Float[Array, "#b k"]) -> Tokens:
        width, parts = x.shape[-1], k
        if not self.is_modulated:
            parts = pin_rows(_modulation(width, 2, self.dtype)(nn.silu(pin_rows(k))))
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
    """Velocity of n tokens at time t, or at what `modulations` made of a time.

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
    def __call__(
        self, z_t: Tokens, t: Time | Modulations, null: Rows
    ) -> Float[Array, "b n c"]:
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
        known, rows = isinstance(t, Modulations), null.astype(jnp.int32)
        if known:
            of_blocks, of_final = t.blocks[:, rows], t.final[rows]
        else:
            k = TimeEmbedding(self.width, self.dtype, name="time")(t)
            of_blocks = of_final = k + _indicator(self.width, self.dtype)(rows)
        in_axes = 0 if known else nn.broadcast
        blocks = scan_blocks(DiTBlock, self.depth, self.remat, in_axes)(
            self.heads, self.mlp_ratio, self.dtype, self.attention, known, name="blocks"
        )
        x, _ = blocks(x, of_blocks)
        x = FinalLayer(self.channels, self.dtype, known, name="final")(x, of_final)
        return x.astype(jnp.float32)


def modulations(net: DiT, params: Params, t: Time) -> Modulations:
    """Those of a DiT with these parameters at every time, a row each."""
    with jax.named_scope("DiT/modulation"):  # for its name in profiles
        embed = TimeEmbedding(net.width, net.dtype)
        k = embed.apply({"params": params["time"]}, t)[:, None]
        table = {"params": params["indicator"]}
        rows = _indicator(net.width, net.dtype).apply(table, jnp.arange(2))
        k = nn.silu(k + rows[None])  # [m 2 d]

        def layer(parts, params):
            dense = _modulation(net.width, parts, net.dtype)
            return dense.apply({"params": params}, k)

        # Block by block: a product over all of them would copy all their weights.
        of_blocks = jax.lax.map(
            functools.partial(layer, 6), params["blocks"]["modulation"]
        )
        of_blocks = jnp.moveaxis(of_blocks, 0, 1)  # [m depth 2 6d]
        return Modulations(of_blocks, layer(2, params["final"]["modulation"]))
