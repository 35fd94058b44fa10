"""AdamW with a warm-up (FlowTok's supplementary table; the release's configs).

lr(step) = peak * min(1, step / warmup_steps), then constant or cosine to lr_end    (1)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flowtok_jax.array_types import Params
from flowtok_jax.runtime.errors import UserError

MOMENTS = ("float32", "bfloat16")
# bfloat16 has 8 bits: an average that moves by less than 1/128 a step stands still.
MAX_BETA_BFLOAT16 = 0.99
SCHEDULES = ("constant", "cosine")
DECAYED = ("all", "kernels")
# Layers whose kernels are learned embeddings to TA-TiTok's release, and do not decay.
EMBEDDING = ("embed", "patch_embed")


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
) -> optax.GradientTransformation:
    """Makes AdamW.

    Args:
        decayed: the parameters that decay, one of DECAYED.
        betas: the decays of both moments.
        clip_norm: bound of the gradient's global norm, before Adam sees the gradient.
        moments: dtype in which both moments are kept between steps.
    """
    # One alone would make optax take eps for the other; at 1 updates are not finite.
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise UserError(
            f"optimizer.betas is {betas}; expected two numbers from 0 to below 1, as "
            "in (0.9,0.95)"
        )
    if decayed not in DECAYED:
        raise UserError(
            f"optimizer.decayed is {decayed!r}; expected one of {', '.join(DECAYED)}"
        )
    mask = _kernels if decayed == "kernels" else None
    adamw = optax.adamw(schedule, *betas, eps, weight_decay=weight_decay, mask=mask)
    if moments not in MOMENTS:
        raise UserError(
            f"optimizer.moments is {moments!r}; expected one of {', '.join(MOMENTS)}"
        )
    if moments != "float32":
        if betas[1] > MAX_BETA_BFLOAT16:
            raise UserError(
                f"optimizer.moments is {moments} with betas[1] = {betas[1]}, whose "
                f"small changes its 8 bits lose; expected at most {MAX_BETA_BFLOAT16}, "
                "or float32"
            )
        adamw = _with_moments(adamw, jnp.dtype(moments))
    if clip_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(clip_norm), adamw)


def _kernels(params: Params) -> Any:
    """Marks the kernels of layers, but for those that embed patches and tokens."""

    def is_decayed(path, _):
        layer, leaf = (key.key for key in path[-2:])
        return leaf == "kernel" and layer not in EMBEDDING

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
        moments = {name: optax.tree.get(state, name) for name in ("mu", "nu")}
        return optax.tree.set(state, **optax.tree.cast(moments, dtype))

    def init(params):
        return kept_as(adam.init(params), dtype)

    def update(grads, state, params):
        updates, state = adam.update(grads, kept_as(state, jnp.float32), params)
        return updates, kept_as(state, dtype)

    return optax.GradientTransformation(init, update)
