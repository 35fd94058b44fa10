"""AdamW with a warm-up (FlowTok's supplementary table; the release's configs).

lr(step) = peak * min(1, step / warmup_steps), then constant or cosine to lr_end
"""

import optax

from flowtok_jax.errors import UserError

SCHEDULES = ("constant", "cosine")


def make_schedule(
    *, lr: float, lr_end: float, warmup_steps: int, schedule: str, num_steps: int
) -> optax.Schedule:
    """Learning rate by step; the first step has 0 where there is a warm-up."""
    rest = max(1, num_steps - warmup_steps)
    if schedule == "constant":
        after = optax.constant_schedule(lr)
    elif schedule == "cosine":
        after = optax.cosine_decay_schedule(lr, rest, lr_end / lr if lr else 0.0)
    else:
        raise UserError(
            f"optimizer.schedule is {schedule!r}; wanted one of {', '.join(SCHEDULES)}"
        )
    if not warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, lr, warmup_steps)
    return optax.join_schedules([warmup, after], [warmup_steps])


def make_optimizer(
    schedule: optax.Schedule,
    *,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    clip_norm: float | None,
) -> optax.GradientTransformation:
    """AdamW, with decay on all parameters; `clip_norm` bounds the global norm first."""
    adamw = optax.adamw(schedule, *betas, eps, weight_decay=weight_decay)
    if clip_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(clip_norm), adamw)
