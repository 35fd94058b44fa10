"""The velocity field: a Diffusion Transformer with adaLN-Zero over n tokens.

    k = time_mlp(t) + indicator(null)                                       (1)
    x <- x + gate_a(k) * attention(LN(x) * (1 + scale_a(k)) + shift_a(k))   (2)
    x <- x + gate_m(k) * mlp(LN(x) * (1 + scale_m(k)) + shift_m(k))         (3)

Text enters only as the start of the flow, never as a condition (FlowTok section 3.3;
release file `libs/model/flowtok.py`). Shifts, scales and gates therefore do not depend
on the sample: `modulations` computes them once for all times of a sampler, and the DiT
accepts them in place of the time. The init is DiT's: the velocity starts as exactly 0.
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
    dot_general,
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
    """Makes the layer that gives shifts, scales and gates.

    Its zero init closes the gates, so that each block starts as the identity.
    """
    return nn.Dense(
        parts * width,
        dtype=dtype,
        kernel_init=nn.initializers.zeros,
        name="modulation",
    )


def _indicator(width: int, dtype: DTypeLike) -> nn.Embed:
    """Makes the table of the indicator: row 0 is conditional, row 1 null."""
    init = nn.initializers.normal(0.02)
    return nn.Embed(2, width, dtype=dtype, embedding_init=init, name="indicator")


class Modulations(NamedTuple):
    """Shifts, scales and gates at one time, or at several with a leading axis m.

    The axis of two holds conditional rows, then null rows.
    """

    blocks: Float[Array, "*m depth two parts"]  # [depth 2 6d]
    final: Float[Array, "*m two final_parts"]  # [2 2d]


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

    If `is_modulated`, k is the block's entry of `Modulations` instead.
    """

    heads: int
    mlp_ratio: int = 4
    dtype: DTypeLike = jnp.float32
    attention: str = "xla"
    is_modulated: bool = False
    layout: str = "batch"

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], k: Float[Array, "#b k"]
    ) -> tuple[Float[Array, "b n d"], None]:
        x = pin_rows(x)
        width = x.shape[-1]
        parts = k  # [b 6d] where modulated already
        if not self.is_modulated:
            parts = pin_rows(_modulation(width, 6, self.dtype)(nn.silu(pin_rows(k))))
        parts = checkpoint_name(parts, "modulation")
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(parts, 6, -1)
        norm = _LayerNorm(self.dtype)
        attend = Attention(
            self.heads,
            self.dtype,
            implementation=self.attention,
            layout=self.layout,
            name="attention",
        )
        hidden = self.mlp_ratio * width
        mlp = Mlp(hidden, gelu_tanh, self.dtype, layout=self.layout, name="mlp")
        x = x + gate_a[:, None] * attend(modulate(norm(x), shift_a, scale_a))  # (2)
        x = x + gate_m[:, None] * mlp(modulate(norm(x), shift_m, scale_m))  # (3)
        return x, None  # (carry, output a block) of nn.scan


class FinalLayer(nn.Module):
    """Modulated normalisation and a dense layer to the channels of a token."""

    channels: int
    dtype: DTypeLike = jnp.float32
    is_modulated: bool = False
    layout: str = "batch"

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], k: Float[Array, "#b k"]) -> Tokens:
        width = x.shape[-1]
        parts = k  # [b 2d] where modulated already
        if not self.is_modulated:
            parts = pin_rows(_modulation(width, 2, self.dtype)(nn.silu(pin_rows(k))))
        shift, scale = jnp.split(parts, 2, -1)
        x = modulate(_LayerNorm(self.dtype)(x), shift, scale)
        out = nn.Dense(
            self.channels,
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,  # the first velocity is exactly 0
            dot_general=dot_general(self.layout),
            name="out",
        )
        return out(x)


class DiT(nn.Module):
    """Velocity of n tokens at time t, or at an entry of `modulations`.

    `t` and `null` may have one row for a batch that shares them, as in sampling.
    The result is float32, because the ODE solver sums it up.
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
    layout: str = "batch"

    @nn.compact
    def __call__(
        self, z_t: Tokens, t: Time | Modulations, null: Rows
    ) -> Float[Array, "b n c"]:
        x = nn.Dense(
            self.width,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            dot_general=dot_general(self.layout),
            name="embed",
        )(z_t)
        x = (
            pin_rows(x)
            + jnp.asarray(sincos_positions(self.tokens, self.width), x.dtype)[None]
        )
        known = isinstance(t, Modulations)
        rows = null.astype(jnp.int32)
        if known:
            of_blocks = t.blocks[:, rows]  # [depth b 6d]
            of_final = t.final[rows]  # [b 2d]
        else:
            k = TimeEmbedding(self.width, self.dtype, name="time")(t)
            of_blocks = of_final = k + _indicator(self.width, self.dtype)(rows)  # (1)
        # The scan gives each block its own modulation, or all the same condition.
        in_axes = 0 if known else nn.broadcast
        blocks = scan_blocks(DiTBlock, self.depth, self.remat, in_axes, self.layout)(
            self.heads,
            self.mlp_ratio,
            self.dtype,
            self.attention,
            known,
            self.layout,
            name="blocks",
        )
        x, _ = blocks(x, of_blocks)
        final = FinalLayer(self.channels, self.dtype, known, self.layout, name="final")
        x = final(x, of_final)
        return x.astype(jnp.float32)


def modulations(net: DiT, params: Params, t: Time) -> Modulations:
    """Computes the modulations of a DiT at each time in `t`, one row per time."""
    with jax.named_scope("DiT/modulation"):  # profiles group operations by this name
        embed = TimeEmbedding(net.width, net.dtype)
        k = embed.apply({"params": params["time"]}, t)[:, None]  # [m 1 d]
        table = {"params": params["indicator"]}
        rows = _indicator(net.width, net.dtype).apply(table, jnp.arange(2))  # [2 d]
        k = nn.silu(k + rows[None])  # [m 2 d]

        def layer(parts, params):
            dense = _modulation(net.width, parts, net.dtype)
            return dense.apply({"params": params}, k)

        # Block by block: a product over all of them would copy all their weights.
        of_blocks = jax.lax.map(
            functools.partial(layer, 6), params["blocks"]["modulation"]
        )  # [depth m 2 6d]
        of_blocks = jnp.moveaxis(of_blocks, 0, 1)  # [m depth 2 6d]
        return Modulations(of_blocks, layer(2, params["final"]["modulation"]))
