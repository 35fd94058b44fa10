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
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

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


def _indicator(width: int, dtype: DTypeLike, rows: int = 2) -> nn.Embed:
    """Makes the table of the indicator: row 0 is conditional, row 1 null."""
    init = nn.initializers.normal(0.02)
    return nn.Embed(rows, width, dtype=dtype, embedding_init=init, name="indicator")


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
        rows = null.astype(jnp.int32)
        if isinstance(t, Modulations):
            return self._transform(z_t, t.blocks[:, rows], t.final[rows], 0, True)
        k = self._time(t) + self._indicator(rows)  # (1)
        return self._transform(z_t, k, k, nn.broadcast)

    def _time(self, t: Time) -> Float[Array, "b d"]:
        return TimeEmbedding(self.width, self.dtype, name="time")(t)

    def _indicator(self, rows: Int[Array, " b"]) -> Float[Array, "b d"]:
        return _indicator(self.width, self.dtype)(rows)

    def _transform(
        self,
        z_t: Tokens,
        of_blocks: Float[Array, "*depth #b k"],
        of_final: Float[Array, "#b f"],
        in_axes: Any,
        known: bool = False,
    ) -> Float[Array, "b n c"]:
        """Sends tokens through the blocks.

        Args:
            of_blocks: condition of the blocks, of each its own where `in_axes` is 0.
            known: whether conditions are modulations already.
        """
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
        return final(x, of_final).astype(jnp.float32)


class SharedDiT(DiT):
    """Velocity of n tokens in both directions, text to image (0) and back (1).

    The table of the indicator has the row 2 * direction + null, so that each direction
    has a null row of its own. Without `tells_direction` it has the rows of a DiT, and
    only the tokens themselves tell where they come from.
    """

    tells_direction: bool = True

    @nn.compact
    def __call__(
        self, z_t: Tokens, t: Time, null: Rows, direction: Int[Array, " b"]
    ) -> Float[Array, "b n c"]:
        rows = null.astype(jnp.int32)
        count = 2  # rows of the table
        if self.tells_direction:
            rows = 2 * direction + rows
            count = 4
        table = _indicator(self.width, self.dtype, count)
        k = self._time(t) + table(rows)
        return self._transform(z_t, k, k, nn.broadcast)


def one_direction(params: Params, direction: int) -> Params:
    """Returns the parameters of the DiT that a SharedDiT is in one direction."""
    table = params["indicator"]["embedding"]
    if table.shape[0] == 2:  # the rows of both
        return dict(params)
    rows = table[2 * direction : 2 * direction + 2]
    return {**params, "indicator": {"embedding": rows}}


def both_directions(params: Params, tells_direction: bool) -> Params:
    """Returns parameters of a SharedDiT that is a DiT of these in both directions."""
    table = params["indicator"]["embedding"]
    rows = jnp.concatenate([table, table]) if tells_direction else table
    return {**params, "indicator": {"embedding": rows}}


class AverageDiT(DiT):
    """Average velocity of n tokens from time t to time r, guided by a scale.

        k(t) = time_mlp(t) + indicator(conditional) + scale_mlp(1 - 1 / scale)      (4)

    The first blocks, a share `early` of them, are conditioned on k(t), the others and
    the final layer on k(r). With the parameters of a DiT, u(z, t, t) is its conditional
    velocity: there is no other layer than `scale_mlp`, which starts at 0, and which
    only a network that `takes_scale` has.

    Source: arXiv:2510.24474 (Decoupled MeanFlow), and arXiv:2505.13447 for the scale.
    """

    early: float = 2 / 3
    takes_scale: bool = False

    @property
    def early_blocks(self) -> int:
        """Number of blocks that are conditioned on k(t)."""
        return round(self.early * self.depth)

    @nn.compact
    def __call__(
        self,
        z_t: Tokens,
        t: Time | Modulations,
        r: Time | None = None,
        scale: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b n c"]:
        """Computes u(z_t, t, r), or that of an entry of `average_modulations`."""
        conditional = jnp.zeros(1, jnp.int32)
        if isinstance(t, Modulations):
            known = t.blocks[:, conditional], t.final[conditional]
            return self._transform(z_t, *known, 0, True)
        times = self._time(jnp.concatenate([t, r]))  # one call: one network for both
        k_t, k_r = jnp.split(times + self._indicator(conditional), 2)
        if self.takes_scale:
            offset = _scale_embedding(self)(1 - 1 / scale)
            k_t = k_t + offset
            k_r = k_r + offset
        is_early = jnp.arange(self.depth) < self.early_blocks
        of_blocks = jnp.where(is_early[:, None, None], k_t, k_r)  # [depth b d]
        return self._transform(z_t, of_blocks, k_r, 0)


def _scale_embedding(net: AverageDiT) -> TimeEmbedding:
    return TimeEmbedding(net.width, net.dtype, is_zero=True, name="scale")


def modulations(
    net: DiT, params: Params, t: Time, offset: Float[Array, "1 1 d"] | None = None
) -> Modulations:
    """Computes the modulations of a DiT at each time in `t`, one row per time.

    Args:
        offset: what is added to the condition of every time.
    """
    with jax.named_scope("DiT/modulation"):  # profiles group operations by this name
        embed = TimeEmbedding(net.width, net.dtype)
        k = embed.apply({"params": params["time"]}, t)[:, None]  # [m 1 d]
        table = {"params": params["indicator"]}
        rows = _indicator(net.width, net.dtype).apply(table, jnp.arange(2))  # [2 d]
        k = k + rows[None]  # [m 2 d]
        k = nn.silu(k if offset is None else k + offset)

        def layer(parts, params):
            dense = _modulation(net.width, parts, net.dtype)
            return dense.apply({"params": params}, k)

        # Block by block: a product over all of them would copy all their weights.
        of_blocks = jax.lax.map(
            functools.partial(layer, 6), params["blocks"]["modulation"]
        )  # [depth m 2 6d]
        of_blocks = jnp.moveaxis(of_blocks, 0, 1)  # [m depth 2 6d]
        return Modulations(of_blocks, layer(2, params["final"]["modulation"]))


def average_modulations(
    net: AverageDiT, params: Params, t: Time, scale: float
) -> Modulations:
    """Computes the modulations of the steps between the m + 1 times in `t`."""
    offset = None
    if net.takes_scale:
        embed = TimeEmbedding(net.width, net.dtype)
        place = jnp.full(1, 1 - 1 / scale, jnp.float32)
        offset = embed.apply({"params": params["scale"]}, place)[None]  # [1 1 d]
    known = modulations(net, params, t, offset)
    early = net.early_blocks
    left = known.blocks[:-1, :early]
    right = known.blocks[1:, early:]
    return Modulations(jnp.concatenate([left, right], axis=1), known.final[1:])
