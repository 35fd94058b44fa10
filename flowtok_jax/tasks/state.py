"""The state that a run carries from step to step, and what a task makes of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import optax

from flowtok_jax.array_types import Params


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step reads and writes; float32 but for `step` and `key`.

    `key` never changes: a step folds its number in. `ema` is the running average of
    `params` that samples are drawn with. `skipped` counts the steps that changed
    nothing because loss or gradient was not finite, `skipped_in_a_row` the newest of
    them. Shapes and shardings take this form too, hence fields of any type. A task with
    more to carry, such as a second optimiser, has a subclass with more fields.
    """

    step: Any
    skipped: Any
    skipped_in_a_row: Any
    key: Any
    params: Any
    ema: Any
    opt_state: Any


class Trainer(NamedTuple):
    """The pure functions that train one task.

    Attributes:
        start: parameters, None for fresh ones -> state at step 0.
        step: (state, frozen, batch) -> state and scalars, among them `loss/total`,
            `skipped` and `skipped_in_a_row`.
        rates: number of optimiser steps made -> learning rates by their names in
            metrics.jsonl.
    """

    start: Callable[[Params | None], TrainState]
    step: Callable[[TrainState, Params, dict], tuple[TrainState, dict]]
    rates: Callable[[int], dict[str, float]]


def make_state(
    params: Params, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """Makes a state at step 0."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_a_row=jnp.zeros((), jnp.int32),
        key=jax.random.key(seed),
        params=params,
        # A copy, as one buffer cannot be donated twice.
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
    )
