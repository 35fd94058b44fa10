"""Building blocks shared by all the networks.

Rotary positions turn channel pairs (2i, 2i+1) of a query or key by the angle

    m * 10000^(-2i / (k/2))                                         (1)

where m is the row of a patch for the first half of the head's channels and its column
for the second (FlowTok section 3.2; release file `modeling/modules/rope.py`).

An activation that a backward pass may keep carries the name of the layer that makes it
(`checkpoint_name`); REMAT lists the names that each policy keeps.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from flowtok_jax.array_types import ROW_AXES, ROWS, Time
from flowtok_jax.runtime.errors import UserError

Initializer = jax.nn.initializers.Initializer
Heads = Float[Array, "b m h k"]
Maps = Float[Array, "b _ _ _"]  # [b h w c] of a convolutional network
ATTENTION = ("xla", "cudnn")
LAYOUTS = ("batch", "rows")

# Summands of the residual stream, and the modulation that scales them.
_RESIDUAL = ("modulation", "proj", "fc2", "w3")

# Policy -> names of the activations that a block keeps for the backward pass beside its
# input; all others are computed again. None keeps everything. "attention" names the
# weighted values; no policy keeps the attention weights, which are [b h m m].
REMAT = {
    "none": None,
    "dense": (*_RESIDUAL, "attention", "fc1", "w12", "qkv"),
    "dense_but_qkv": (*_RESIDUAL, "attention", "fc1", "w12"),
    "residual": _RESIDUAL,
    "full": (),
}


def dot_general(layout: str) -> Callable[..., Array] | None:
    """Returns the product of activations and kernel in a layout; None is Flax's own.

    With `rows` a dense layer sees [b*m d] in place of [b m d]. XLA's CPU backend writes
    transposes of three axes into slow loops, and not those of two; a TPU would copy
    rows whose number is not a multiple of 8.

    Raises:
        UserError: for another layout than one of LAYOUTS.
    """
    if layout not in LAYOUTS:
        raise UserError(
            f"compute.layout is {layout!r}; expected one of {', '.join(LAYOUTS)}"
        )
    return _dot_rows if layout == "rows" else None


def _dot_rows(x: Array, kernel: Any, dims: Any, **kwargs) -> Array:
    """Multiplies the last axis of x with a kernel, as a product of two matrices.

    Args:
        kernel: [d f], a float array or quantized.
    """
    rows = x.reshape(-1, x.shape[-1])
    out = jax.lax.dot_general(rows, kernel, (((1,), (0,)), ((), ())), **kwargs)
    return out.reshape(*x.shape[:-1], -1)


def torch_uniform(fan_in: int) -> Initializer:
    """Returns PyTorch's default init of dense weights and biases: +-1/sqrt(fan_in)."""
    # torch.nn.Linear: kaiming_uniform with a = sqrt(5), which reduces to this bound.
    bound = fan_in**-0.5

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def torch_dense(features: int, fan_in: int, **kwargs) -> nn.Dense:
    """Makes a dense layer that starts as PyTorch's default does."""
    init = torch_uniform(fan_in)
    return nn.Dense(features, kernel_init=init, bias_init=init, **kwargs)


def quick_gelu(x: Array) -> Array:
    """Computes x * sigmoid(1.702 x), the activation of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


def gelu_tanh(x: Array) -> Array:
    """Computes GELU by its tanh approximation, the activation of DiT."""
    return jax.nn.gelu(x, approximate=True)


def sincos_positions(tokens: int, width: int) -> np.ndarray:
    """Returns fixed positions [sin | cos] of shape [tokens, width].

    Frequencies are omega_i = 10000^(-i/(width/2)).
    """
    # float64 until the end: at float32 the angles of late tokens lose digits.
    omega = 10000.0 ** (-np.arange(width // 2, dtype=np.float64) / (width / 2))
    angles = np.outer(np.arange(tokens, dtype=np.float64), omega)
    return np.concatenate([np.sin(angles), np.cos(angles)], 1).astype(np.float32)


def rope_tables(grid: int, head_dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns cosines and sines [grid * grid, head_dim] of axial rotary positions.

    Positions are 0..grid-1 and not rescaled at higher resolutions.
    """
    half = head_dim // 2
    frequency = 10000.0 ** (-np.arange(0, half, 2, dtype=np.float64) / half)  # (1)
    # Both channels of a pair turn by the same angle.
    angles = np.repeat(np.outer(np.arange(grid), frequency), 2, axis=1)  # [g k/2]
    rows = np.repeat(angles, grid, axis=0)  # [g*g k/2]
    columns = np.tile(angles, (grid, 1))  # [g*g k/2]
    both = np.concatenate([rows, columns], axis=1)  # [g*g k]
    return np.cos(both).astype(np.float32), np.sin(both).astype(np.float32)


def apply_rope(x: Heads, cos: Float[Array, "r k"], sin: Float[Array, "r k"]) -> Heads:
    """Rotates the first r positions of x and leaves the rest as they are."""
    rotated = x[:, : cos.shape[0]]
    rest = x[:, cos.shape[0] :]
    pairs = rotated.reshape(*rotated.shape[:-1], -1, 2)  # [b r h k/2 2]
    # (a, b) -> (-b, a) is a quarter turn; with it, x cos + turned sin is the rotation.
    turned = jnp.stack([-pairs[..., 1], pairs[..., 0]], -1).reshape(rotated.shape)
    cos, sin = (jnp.asarray(a, x.dtype)[None, :, None, :] for a in (cos, sin))
    return jnp.concatenate([rotated * cos + turned * sin, rest], axis=1)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection to queries, keys, values.

    `dropout` acts on the attention weights unless `deterministic`. The softmax is
    float32, whatever `dtype`.
    """

    heads: int
    dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    bias_init: Initializer = nn.initializers.zeros
    causal: bool = False
    dropout: float = 0.0
    deterministic: bool = True
    implementation: str = "xla"
    layout: str = "batch"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b m d"],
        rope: tuple[Float[Array, "r k"], Float[Array, "r k"]] | None = None,
    ) -> Float[Array, "b m d"]:
        batch, length, width = x.shape
        if width % self.heads:
            raise UserError(
                f"width is {width} and heads {self.heads}; expected heads that divide "
                "the width"
            )
        if self.implementation not in ATTENTION:
            raise UserError(
                f"compute.attention is {self.implementation!r}; expected one of "
                f"{ATTENTION}"
            )
        dense = dict(
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            dot_general=dot_general(self.layout),
        )
        qkv = checkpoint_name(nn.Dense(3 * width, name="qkv", **dense)(x), "qkv")
        # Fused channels are ordered (q k v), heads, k, as in timm and the release.
        qkv = qkv.reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = (qkv[:, :, i] for i in range(3))  # [b m h k]
        if rope is not None:
            q = apply_rope(q, *rope)
            k = apply_rope(k, *rope)
        if self.dropout and not self.deterministic:
            out = self._attend_dropping(q, k, v)
        elif self.layout == "rows":
            out = self._attend_heads(q, k, v)
        else:
            out = jax.nn.dot_product_attention(
                q, k, v, is_causal=self.causal, implementation=self.implementation
            )
        out = checkpoint_name(out.reshape(x.shape), "attention")  # [b m d]
        return checkpoint_name(nn.Dense(width, name="proj", **dense)(out), "proj")

    def _attend_heads(self, q: Heads, k: Heads, v: Heads) -> Heads:
        """Attends by two batched products, a matrix for each head of each row."""
        b, m, h, d = q.shape
        q, k, v = (x.swapaxes(1, 2).reshape(b * h, m, d) for x in (q, k, v))
        weights = jax.lax.batch_matmul(q * d**-0.5, k.swapaxes(1, 2)).astype("float32")
        if self.causal:
            seen = jnp.tri(m, dtype=bool)[None]
            weights = jnp.where(seen, weights, jnp.finfo(weights.dtype).min)
        out = jax.lax.batch_matmul(jax.nn.softmax(weights).astype(v.dtype), v)
        return out.reshape(b, h, m, d).swapaxes(1, 2)

    def _attend_dropping(self, q: Heads, k: Heads, v: Heads) -> Heads:
        """Attends with dropout on the weights."""
        # jax.nn.dot_product_attention has no dropout, and Flax's attention multiplies
        # weights and values in float32.
        scores = jnp.einsum("bqhk,bshk->bhqs", q, k, preferred_element_type="float32")
        weights = scores * q.shape[-1] ** -0.5  # [b h m m], float32
        if self.causal:
            seen = jnp.tri(q.shape[1], dtype=bool)[None, None]
            weights = jnp.where(seen, weights, jnp.finfo(weights.dtype).min)
        kept = 1 - self.dropout
        keep = jax.random.bernoulli(self.make_rng("dropout"), kept, weights.shape)
        # Inverted dropout: dividing by the kept share leaves the mean unchanged.
        weights = jnp.where(keep, jax.nn.softmax(weights) / kept, 0)
        return jnp.einsum("bhqs,bshk->bqhk", weights.astype(v.dtype), v)


class Mlp(nn.Module):
    """Two dense layers with an activation in between."""

    hidden: int
    activation: Callable[[Array], Array]
    dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    bias_init: Initializer = nn.initializers.zeros
    layout: str = "batch"

    @nn.compact
    def __call__(self, x: Float[Array, "b m d"]) -> Float[Array, "b m d"]:
        dense = dict(
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            dot_general=dot_general(self.layout),
        )
        hidden = checkpoint_name(nn.Dense(self.hidden, name="fc1", **dense)(x), "fc1")
        out = nn.Dense(x.shape[-1], name="fc2", **dense)(self.activation(hidden))
        return checkpoint_name(out, "fc2")


def swiglu_width(width: int) -> int:
    """Returns the hidden channels of SwiGLU: 2/3 of those of an MLP of ratio 4."""
    return int(2 / 3 * 4 * width)  # its three matrices then weigh as much as two


class SwiGLU(nn.Module):
    """Gated MLP: silu(first half) * second half of one dense layer, then another."""

    dtype: DTypeLike = jnp.float32
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    layout: str = "batch"

    @nn.compact
    def __call__(self, x: Float[Array, "b m d"]) -> Float[Array, "b m d"]:
        width = x.shape[-1]
        hidden = swiglu_width(width)
        dense = dict(
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            dot_general=dot_general(self.layout),
        )
        both = checkpoint_name(nn.Dense(2 * hidden, name="w12", **dense)(x), "w12")
        gate, value = jnp.split(both, 2, -1)
        out = nn.Dense(width, name="w3", **dense)(nn.silu(gate) * value)
        return checkpoint_name(out, "w3")


class TimeEmbedding(nn.Module):
    """Two-layer MLP on 256 Fourier features [cos | sin] of t in [0, 1].

    With `is_zero` the last layer starts at zero: the embedding adds nothing at first.
    """

    width: int
    dtype: DTypeLike = jnp.float32
    is_zero: bool = False

    @nn.compact
    def __call__(self, t: Time) -> Float[Array, "b d"]:
        frequency = jnp.exp(-np.log(10000.0) * jnp.arange(128) / 128)
        # t is in [0, 1], unlike DiT's 0 to 1000. Angles are float32, because bfloat16
        # would leave t 8 significant bits.
        angles = t[:, None].astype(jnp.float32) * frequency[None]  # [b 128]
        x = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1).astype(self.dtype)
        dense = dict(dtype=self.dtype, kernel_init=nn.initializers.normal(0.02))
        x = pin_rows(nn.silu(nn.Dense(self.width, name="fc1", **dense)(pin_rows(x))))
        if self.is_zero:
            dense["kernel_init"] = nn.initializers.zeros
        return pin_rows(nn.Dense(self.width, name="fc2", **dense)(x))


def modulate(
    x: Float[Array, "b n d"],
    shift: Float[Array, "#b d"],
    scale: Float[Array, "#b d"],
) -> Float[Array, "b n d"]:
    """Computes x * (1 + scale) + shift, with the same modulation for every token."""
    return x * (1 + scale[:, None]) + shift[:, None]  # [b n d] and [b 1 d]


def pin_rows(x: Array) -> Array:
    """Constrains rows to the batch's sharding, if the mesh splits them evenly.

    Without the constraint XLA may move activations instead of the parameters that fsdp
    splits.
    """
    mesh = jax.sharding.get_abstract_mesh()
    sizes = mesh.shape
    parts = math.prod(sizes.get(axis, 0) for axis in ROW_AXES)
    if not parts or x.shape[0] % parts:  # no mesh, or e.g. one row for the whole batch
        return x
    # Named with its mesh: before jax 0.8 a bare PartitionSpec needs a concrete mesh.
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, ROWS))


def scan_blocks(
    block: type[nn.Module],
    depth: int,
    remat: str,
    in_axes: Any = nn.broadcast,
    layout: str = "batch",
) -> type[nn.Module]:
    """Returns `depth` blocks as one scanned module with stacked parameters.

    In the layout `rows` the scan is unrolled, as its loop copies on CPUs what blocks
    keep for the backward pass.

    Args:
        block: maps (x, *others) to (x, None).
        remat: a policy of REMAT.
        in_axes: `nn.broadcast` where all blocks share the others; the axis of the
            others where each block has its own.
    """
    if remat not in REMAT:
        raise UserError(
            f"compute.remat is {remat!r}; expected one of {', '.join(REMAT)}"
        )
    kept = REMAT[remat]
    if kept is not None:
        policy = jax.checkpoint_policies.save_only_these_names(*kept)
        # Within a scan XLA cannot merge the two computations of a block, so the
        # barriers of prevent_cse would only cost time.
        block = nn.remat(block, prevent_cse=False, policy=policy)
    return nn.scan(
        block,
        variable_axes={"params": 0},  # a leading axis of length `depth`
        split_rngs={"params": True, "dropout": True},
        in_axes=in_axes,
        length=depth,
        unroll=depth if layout == "rows" else 1,
    )
