"""The optimiser step of a task with one optimiser, and how the config makes it."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool
from ml_collections import ConfigDict

from flowtok_jax.array_types import Params
from flowtok_jax.models.build import Nets
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks.base import Batch, Loss, Scalars, Task
from flowtok_jax.tasks.lora import init_trained, through_adapters
from flowtok_jax.tasks.optimizer import make_optimizer, make_schedule, without
from flowtok_jax.tasks.state import Trainer, TrainState, make_state


def train_step(
    state: TrainState,
    frozen: Params,
    batch: Batch,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    ema_warms_up: bool = False,
) -> tuple[TrainState, Scalars]:
    """Makes one optimiser step, and returns the scalars of its loss.

    Where the loss or the gradient is not finite, the step only counts itself.
    """
    # The key never changes: a step's randomness is its number's, resumed or not.
    key = jax.random.fold_in(state.key, state.step)
    grad = jax.value_and_grad(loss, has_aux=True)
    (value, scalars), grads = grad(state.params, frozen, batch, key)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    norm = optax.tree.norm(grads)
    # A gradient may be infinite where the loss is not.
    finite = jnp.isfinite(value) & jnp.isfinite(norm)
    new = {
        "params": params,
        "ema": average(state, params, ema_decay, ema_warms_up),
        "opt_state": opt_state,
    }
    scalars |= {"loss/total": value, "grad_norm": norm}
    return advance(state, new, finite, scalars)


def advance(
    state: TrainState, new: dict[str, Any], finite: Bool[Array, ""], scalars: Scalars
) -> tuple[TrainState, Scalars]:
    """Takes the new values into the state if they are finite, and counts the step."""
    old = {name: getattr(state, name) for name in new}
    # A choice of values, not of branches: the step is one program either way.
    kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
    state = state.replace(
        **kept,
        step=state.step + 1,
        skipped=state.skipped + ~finite,
        skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
    )
    counts = {name: getattr(state, name) for name in ("skipped", "skipped_in_a_row")}
    return state, scalars | counts


def average(state: TrainState, params: Params, decay: float, warms_up: bool) -> Params:
    """Returns the running averages with the parameters of a step more.

    Args:
        warms_up: whether the decay is at most (1 + k) / (10 + k) after k steps, so that
            the start is soon forgotten.
    """
    if warms_up:
        made = state.step - state.skipped
        decay = jnp.minimum(decay, (1 + made) / (10 + made))
    return optax.incremental_update(params, state.ema, 1 - decay)


def make_trainer(task: Task, config: ConfigDict, nets: Nets) -> Trainer:
    """Makes the trainer of a task: its own, or one AdamW over all its parameters.

    Raises:
        UserError: for a loss, a schedule or an optimiser that cannot be.
    """
    if task.make_trainer is not None:
        return task.make_trainer(task, config, nets)
    return make_single_trainer(task, config, nets)


def make_rule(
    config: ConfigDict, is_frozen: Callable[[tuple[str, ...]], bool] | None = None
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Makes the schedule and the optimiser of a config; see `make_single_trainer`."""
    schedule = make_schedule(**config.schedule, num_steps=config.train.num_steps)
    optimizer = make_optimizer(schedule, **config.optimizer.to_dict())
    return schedule, optimizer if is_frozen is None else without(optimizer, is_frozen)


def make_single_trainer(
    task: Task,
    config: ConfigDict,
    nets: Nets,
    is_frozen: Callable[[tuple[str, ...]], bool] | None = None,
) -> Trainer:
    """Makes the trainer of a task with one AdamW.

    Args:
        is_frozen: says of the path of a parameter that it stays as it is.

    Raises:
        UserError: for a loss, a schedule or an optimiser that cannot be.
    """
    if task.group not in config.loss:
        raise UserError(f"the config has no section loss.{task.group}; add one to it")
    schedule, optimizer = make_rule(config, is_frozen)
    options = {"parts": config.train.accumulate, **config.loss[task.group].to_dict()}

    def start(params: Params | None = None) -> TrainState:
        if params is None:
            key = jax.random.fold_in(jax.random.key(config.train.seed), 0)
            names = task.networks
            if task.trains_tower and nets.clip.trained_along:
                names += ("clip",)
            params = init_trained(task, nets, names, key)
        return make_state(params, optimizer, config.train.seed)

    step = functools.partial(
        train_step,
        loss=through_adapters(task, functools.partial(task.loss, nets=nets, **options)),
        optimizer=optimizer,
        ema_decay=config.train.ema_decay,
        ema_warms_up=config.train.ema_warms_up,
    )
    return Trainer(start, step, lambda count: {"lr": float(schedule(count))})


def train_steps(
    step: Callable[[TrainState, Params, Batch], tuple[TrainState, Scalars]],
    state: TrainState,
    frozen: Params,
    batches: Batch,
) -> tuple[TrainState, Scalars]:
    """Makes several steps in one call.

    Args:
        batches: [steps, rows, ...].

    Returns:
        The state, and the scalars of the last step.
    """
    # One call to the device for many steps: small models wait for the host otherwise.
    state, scalars = jax.lax.scan(lambda s, b: step(s, frozen, b), state, batches)
    return state, jax.tree.map(lambda x: x[-1], scalars)
