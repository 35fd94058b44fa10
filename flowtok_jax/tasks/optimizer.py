"""AdamW (FlowTok's supplementary table; the release's configs) or Muon, with a warm-up.

lr(step) = peak * min(1, step / warmup_steps), then constant or cosine to lr_end    (1)

Muon (arXiv:2502.16982) moves the matrices of blocks by their orthogonalised momentum,

    W' = W - lr * (rms * sqrt(max(m, n)) * orthogonalise(momentum) + decay * W)     (2)

with entries of root mean square `rms`, as large as AdamW's; AdamW moves the rest. A
kernel that several layers share (queries, keys and values; the modulations; both halves
of a gated MLP) is orthogonalised part by part (arXiv:2608.02502).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from flowtok_jax.array_types import Params
from flowtok_jax.runtime.errors import UserError

NAMES = ("adamw", "muon")
BLOCKS = "blocks"
KERNEL = "kernel"
# Layers of blocks whose kernel is several matrices side by side, and how many.
FUSED = {"qkv": 3, "modulation": 6, "w12": 2}
MOMENTS = ("float32", "bfloat16")
# bfloat16 has 8 bits: an average that moves by less than 1/128 a step stands still.
MAX_BETA_BFLOAT16 = 0.99
SCHEDULES = ("constant", "cosine")
DECAYED = ("all", "kernels")
# Layers whose kernels are learned embeddings to TA-TiTok's release, and do not decay.
EMBEDDING = ("embed", "patch_embed")


class MuonOptions(NamedTuple):
    """The section `muon` of the optimiser; see configs/default.py.

    Attributes:
        beta: the decay of the momentum.
        rest_lr: rate of what AdamW moves, as a share of the schedule's.
    """

    beta: float
    rms: float
    rest_lr: float


def make_schedule(
    *, lr: float, lr_end: float, warmup_steps: int, schedule: str, num_steps: int
) -> optax.Schedule:
    """Makes (1); after the first step of a warm-up the rate is still 0."""
    rest = max(1, num_steps - warmup_steps)  # a warm-up may fill the whole run
    if schedule == "constant":
        after = optax.constant_schedule(lr)
    elif schedule == "cosine":
        after = optax.cosine_decay_schedule(lr, rest, lr_end / lr if lr else 0.0)
    else:
        raise UserError(
            f"schedule.schedule is {schedule!r}; expected one of {', '.join(SCHEDULES)}"
        )
    if not warmup_steps:
        return after
    # The second schedule counts from the end of the warm-up.
    warmup = optax.linear_schedule(0.0, lr, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])


def make_optimizer(
    schedule: optax.Schedule,
    *,
    betas: tuple[float, ...],
    eps: float,
    weight_decay: float,
    clip_norm: float | None,
    moments: str = "float32",
    decayed: str = "all",
    name: str = "adamw",
    muon: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """Makes AdamW, or Muon with AdamW.

    Args:
        decayed: the parameters that decay, one of DECAYED.
        betas: the decays of both moments of Adam.
        clip_norm: bound of the gradient's global norm, before Adam sees the gradient.
        moments: dtype in which moments are kept between steps.
        muon: options of MuonOptions.
    """
    _check(name, betas, moments, decayed)
    mask = _kernels if decayed == "kernels" else None
    decay = {"weight_decay": weight_decay, "mask": mask}
    if name == "muon":
        optimizer = _make_muon(schedule, betas, eps, MuonOptions(**muon), **decay)
    else:
        optimizer = optax.adamw(schedule, *betas, eps, **decay)
    if moments != "float32":
        optimizer = _with_moments(optimizer, jnp.dtype(moments))
    if clip_norm is None:
        return optimizer
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer)


def _check(name: str, betas: tuple[float, ...], moments: str, decayed: str) -> None:
    """Refuses options of `make_optimizer` that cannot be."""
    # One alone would make optax take eps for the other; at 1 updates are not finite.
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(
            f"optimizer.betas is {betas}; expected two numbers from 0 to below 1, as "
            "in (0.9,0.95)"
        )
    given = {"name": name, "moments": moments, "decayed": decayed}
    for key, choices in (("name", NAMES), ("moments", MOMENTS), ("decayed", DECAYED)):
        if given[key] not in choices:
            raise UserError(
                f"optimizer.{key} is {given[key]!r}; expected one of "
                f"{', '.join(choices)}"
            )
    if moments != "float32" and betas[1] > MAX_BETA_BFLOAT16:
        raise UserError(
            f"optimizer.moments is {moments} with betas[1] = {betas[1]}, whose small "
            f"changes its 8 bits lose; expected at most {MAX_BETA_BFLOAT16}, or float32"
        )


def _make_muon(
    schedule: optax.Schedule,
    betas: tuple[float, ...],
    eps: float,
    options: MuonOptions,
    *,
    weight_decay: float,
    mask: Callable | None,
) -> optax.GradientTransformation:
    """Makes (2).

    Raises:
        UserError: for options that cannot be.
    """
    beta, rms, rest_lr = options
    if not 0 <= beta < 1 or rms <= 0 or rest_lr <= 0:
        raise UserError(
            f"optimizer.muon has beta={beta}, rms={rms}, rest_lr={rest_lr}; expected "
            "beta from 0 to below 1, the others above 0"
        )
    matrices = optax.contrib.muon(
        schedule,
        beta=beta,
        eps=eps,
        weight_decay=weight_decay,
        muon_weight_dimension_numbers=_axes,
        consistent_rms=rms,
    )
    rest = optax.adamw(
        lambda count: rest_lr * schedule(count),
        *betas,
        eps,
        weight_decay=weight_decay,
        mask=mask,
    )
    # Not muon's own Adam, whose momentum is Nesterov's and which decays everything.
    optimizer = optax.partition({True: matrices, False: rest}, _are_matrices)

    # The state has the parameters' own shapes, by which a mesh shards it.
    def init(params):
        return _fuse(optimizer.init(_split(params)))

    def update(grads, state, params):
        split = (_split(tree) for tree in (grads, state, params))
        return tuple(_fuse(tree) for tree in optimizer.update(*split))

    return optax.GradientTransformation(init, update)


def _parts(path: tuple) -> int:
    """Returns how many matrices a leaf at this path has side by side; 0 for none."""
    names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
    if BLOCKS not in names or names[-1] != KERNEL:
        return 0
    return FUSED.get(names[-2], 1)


def _are_matrices(params: Params) -> Any:
    """Marks the kernels in blocks."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _parts(path) > 0, params)


def _axes(params: Params) -> Any:
    """Says which axes of split kernels are a matrix's rows and columns."""
    # Blocks are stacked on the first axis: [k n m], or [k n parts m].
    return jax.tree.map(
        lambda leaf: optax.contrib.MuonDimensionNumbers(1, leaf.ndim - 1), params
    )


def _split(tree: Any) -> Any:
    """Gives each matrix of a fused kernel its place on an axis of its own."""

    def split(path, leaf):
        parts = _parts(path)
        if parts <= 1:
            return leaf
        return leaf.reshape(*leaf.shape[:2], parts, -1)  # [k n parts*m]->[k n parts m]

    return jax.tree_util.tree_map_with_path(split, tree)


def _fuse(tree: Any) -> Any:
    """Undoes `_split`."""

    def fuse(path, leaf):
        is_fused = _parts(path) > 1
        return leaf.reshape(*leaf.shape[:2], -1) if is_fused else leaf

    return jax.tree_util.tree_map_with_path(fuse, tree)


def _kernels(params: Params) -> Any:
    """Marks the kernels of layers, but for those that embed patches and tokens."""

    def is_decayed(path, _):
        layer, leaf = (key.key for key in path[-2:])
        return leaf == KERNEL and layer not in EMBEDDING

    return jax.tree_util.tree_map_with_path(is_decayed, params)


def without(
    optimizer: optax.GradientTransformation, is_frozen: Callable
) -> optax.GradientTransformation:
    """Wraps an optimiser to leave parameters as they are, by their path of names."""

    def marks(params):
        names = lambda path: tuple(key.key for key in path)  # noqa: E731
        return jax.tree_util.tree_map_with_path(
            lambda path, _: is_frozen(names(path)), params
        )

    # After the optimiser, whose decay would move what has no gradient.
    return optax.chain(optimizer, optax.masked(optax.set_to_zero(), marks))


def _with_moments(
    adam: optax.GradientTransformation, dtype: jnp.dtype
) -> optax.GradientTransformation:
    """Wraps Adam to compute in float32 and keep its moments in another dtype."""

    # Rounding happens between steps only: updates see float32 moments.
    def kept_as(state, dtype):
        def keep(path, leaf):
            names = {getattr(key, "name", None) for key in path}
            return leaf.astype(dtype) if names & {"mu", "nu"} else leaf

        return jax.tree_util.tree_map_with_path(keep, state)

    def init(params):
        return kept_as(adam.init(params), dtype)

    def update(grads, state, params):
        updates, state = adam.update(grads, kept_as(state, jnp.float32), params)
        return updates, kept_as(state, dtype)

    return optax.GradientTransformation(init, update)
