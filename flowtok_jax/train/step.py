"""The optimiser step that every task shares."""

import functools

import jax
import jax.numpy as jnp
import optax

from flowtok_jax.array_types import Params
from flowtok_jax.tasks.steps import Batch, Loss, Scalars
from flowtok_jax.train.state import TrainState


def train_step(
    state: TrainState,
    frozen: Params,
    batch: Batch,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
) -> tuple[TrainState, Scalars]:
    """One optimiser step, and the scalars of its loss.

    Where the loss or the gradient is not finite, the step only counts itself.
    """
    key = jax.random.fold_in(state.key, state.step)
    grad = jax.value_and_grad(loss, has_aux=True)
    (value, scalars), grads = grad(state.params, frozen, batch, key)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norm = optax.tree.norm(grads)
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    new = {
        "params": params,
        "ema": optax.incremental_update(params, state.ema, 1 - ema_decay),
        "opt_state": opt_state,
    }
    old = {name: getattr(state, name) for name in new}
    kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    state = state.replace(
        **kept,
        step=state.step + 1,
        skipped=state.skipped + ~finite,
        skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
    )
    scalars |= {"loss/total": value, "grad_norm": norm}
    scalars |= {name: getattr(state, name) for name in ("skipped", "skipped_in_a_row")}
    return state, scalars


def train_steps(
    state: TrainState, frozen: Params, batches: Batch, **options
) -> tuple[TrainState, Scalars]:
    """Several steps in one call: batches [steps, ...], scalars of the last step."""
    step = functools.partial(train_step, **options)
    state, scalars = jax.lax.scan(lambda s, b: step(s, frozen, b), state, batches)
    return state, jax.tree.map(lambda x: x[-1], scalars)
