"""The one training loop: shapes, shardings, restore or start, then step by step."""

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from flowtok_jax.array_types import Params
from flowtok_jax.data.loader import Batch, Loader
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.models.build import Nets
from flowtok_jax.runtime.digests import params_sha256
from flowtok_jax.runtime.files import Place
from flowtok_jax.runtime.mesh import (
    from_local_rows,
    in_mesh,
    local_rows,
    make_mesh,
    put,
    replicated,
)
from flowtok_jax.runtime.processes import Preemption, is_first
from flowtok_jax.tasks.base import Task
from flowtok_jax.tasks.state import TrainState
from flowtok_jax.tasks.step import make_trainer, train_steps
from flowtok_jax.train import sharding
from flowtok_jax.train.check import check_stage
from flowtok_jax.train.checkpoint import Checkpoints, with_shardings
from flowtok_jax.train.log import Metrics, StepReport, is_due, log_parameters
from flowtok_jax.train.progress import Progress
from flowtok_jax.weights.workdir import steps_of

# (EMA parameters, frozen ones by role) -> scalars, and pictures [h, w, 3] uint8.
Evaluate = Callable[[Params, Params], tuple[dict[str, float], dict[str, np.ndarray]]]


class PreemptedError(Exception):
    """The end of a run that was asked to end, and saved.

    Its arguments are the stage, the step, and the stage's number of steps.
    """


class StageResult(NamedTuple):
    """The outcome of a finished stage.

    Attributes:
        seconds: time that it took, earlier runs included.
        sha256: digest of its parameters.
        rejected: records that could not be used: counts by reason, and first names.
    """

    seconds: float
    sha256: str
    rejected: dict[str, Any]


class TrainProgram(NamedTuple):
    """The compiled pieces of one stage.

    Attributes:
        start: parameters to start from, None for fresh ones -> state.
        step: (state, frozen, batches [steps, rows, ...]) -> state and scalars.
        abstract: shapes and shardings of the state.
        frozen: parameters by role, or their shapes.
        rates: learning rates by the number of optimiser steps made.
    """

    start: Callable[[Params | None], TrainState]
    step: Callable[[TrainState, Params, Batch], tuple[TrainState, dict[str, Any]]]
    abstract: TrainState
    frozen: Params
    rates: Callable[[int], dict[str, float]]
    mesh: jax.sharding.Mesh


def make_program(
    config: ConfigDict, task: Task, nets: Nets, frozen: Params
) -> TrainProgram:
    """Builds the jitted start and step of a task over the mesh.

    Args:
        frozen: parameters by role.

    Raises:
        UserError: where the config has a number that cannot be.
    """
    program = plan_program(config, task, nets, frozen)
    places = jax.tree.map(lambda leaf: leaf.sharding, program.frozen)
    return program._replace(frozen=put(frozen, places))


def plan_program(
    config: ConfigDict,
    task: Task,
    nets: Nets,
    frozen: Params,
    devices: Sequence[jax.Device] | None = None,
) -> TrainProgram:
    """Builds the program with shapes only in `frozen`, also for devices elsewhere."""
    mesh = make_mesh(**config.mesh, devices=devices)
    check_stage(config, task, devices)
    trainer = make_trainer(task, config, nets)
    # Shapes come first: a large state is made where it will lie, never whole anywhere.
    abstract = jax.eval_shape(functools.partial(trainer.start, None))
    places = sharding.shardings(mesh, abstract)
    make = jax.jit(trainer.start, out_shardings=places)

    def start(params):
        if params is not None:
            params = put(params, places.params)
        return make(params)

    frozen_places = sharding.shardings(mesh, frozen)
    return TrainProgram(
        start=start,
        step=jax.jit(
            in_mesh(mesh, functools.partial(train_steps, trainer.step)),
            donate_argnums=0,  # the new state takes the old one's memory
            in_shardings=(places, frozen_places, sharding.batch_sharding(mesh)),
            out_shardings=(places, replicated(mesh)),
        ),
        abstract=with_shardings(abstract, places),
        frozen=with_shardings(frozen, frozen_places),
        rates=trainer.rates,
        mesh=mesh,
    )


def _next_stop(step: int, config: ConfigDict) -> int:
    """Returns the step at which the host has to look at the state again."""
    # A call ends early where something is due within it, resumed or not.
    stops = [step + config.train.steps_per_call, config.train.num_steps]
    for every in (config.checkpoint.every, config.log.every, config.log.preview_every):
        if every > 0:
            stops.append(step - step % every + every)
    return min(stops)


def _stack(
    loader: Iterator[Batch], count: int, mesh: jax.sharding.Mesh, batch_size: int
) -> dict[str, jax.Array]:
    """Stacks the next batches into global arrays [count, batch_size, ...]."""
    # The loader has this process's rows only; together they make global arrays.
    batches = [next(loader) for _ in range(count)]
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *batches)
    return jax.tree.map(lambda a: from_local_rows(mesh, batch_size, a), stacked)


def finished(config: ConfigDict, task: Task, workdir: Place) -> StageResult | None:
    """Reads the result of a stage with nothing left to train; None for another."""
    # A finished stage may be extended by a larger train.num_steps.
    if max(steps_of(workdir, task.name), default=-1) < config.train.num_steps:
        return None
    with _checkpoints(config, task, workdir) as checkpoints:
        meta = checkpoints.read_meta()
    # Only the last checkpoint of a run that came to its end has a digest.
    if meta is None or "params_sha256" not in meta:
        return None
    return _result(meta)


def _result(meta: dict[str, Any]) -> StageResult:
    return StageResult(meta["seconds"], meta["params_sha256"], meta["rejected"])


def _checkpoints(config: ConfigDict, task: Task, workdir: Place) -> Checkpoints:
    keep = config.checkpoint.keep
    every = config.checkpoint.keep_every
    return Checkpoints(workdir, task.name, keep=keep, keep_every=every)


def train(
    config: ConfigDict,
    task: Task,
    workdir: Place,
    *,
    nets: Nets,
    frozen: Params,
    vocabulary: Vocabulary,
    evaluate: Evaluate,
    preemption: Preemption,
    load_start: Callable[[], Params | None] = lambda: None,
) -> StageResult:
    """Trains one stage to its end, from its newest checkpoint or from the start.

    Every process of the run calls it; process 0 writes metrics, all write checkpoints.

    Args:
        frozen: parameters by their role in the task.
        load_start: gives the parameters to start from, None for random ones; called
            only where there is no checkpoint.

    Raises:
        PreemptedError: after saving, where SIGTERM or Ctrl-C came.
        UserError: where checkpoints cannot be read or written, or too many steps in a
            row had a loss or gradient that is not finite.
    """
    first = is_first()
    num_steps = config.train.num_steps
    with (
        _checkpoints(config, task, workdir) as checkpoints,
        Progress(task.name, num_steps, first) as progress,
    ):
        progress.doing("making or reading the weights")
        program = make_program(config, task, nets, frozen)
        log_parameters(workdir, task.name, program.abstract.params)
        state, seconds = _restore_or_start(program, checkpoints, load_start)
        start_step = int(state.step)
        if start_step:
            at = (task.name, start_step, num_steps)
            logging.info("%s: resuming at step %d of %d", *at)
        loader = _make_loader(config, task, vocabulary, start_step, program.mesh)
        progress.begin(start_step)
        with Metrics(workdir, task.name, start_step=start_step, writes=first) as files:
            so_far = {"seconds": seconds, "skipped": int(state.skipped)}
            shown = (files, progress, loader.rejects)
            report = StepReport(config, task.name, program.rates, *shown, **so_far)
            tools = {"checkpoints": checkpoints, "preemption": preemption}
            tools["evaluate"] = evaluate
            return _run_steps(config, task, program, state, report, loader, **tools)


def _make_loader(
    config: ConfigDict,
    task: Task,
    vocabulary: Vocabulary,
    start_step: int,
    mesh: jax.sharding.Mesh,
) -> Loader:
    """Makes the loader of this process's rows, from a step on."""
    rows = local_rows(mesh, config.train.batch_size)
    return Loader(config, vocabulary, start_step, rows, task.needs_images(config))


def _restore_or_start(
    program: TrainProgram,
    checkpoints: Checkpoints,
    load_start: Callable[[], Params | None],
) -> tuple[TrainState, float]:
    """Returns the state of the newest checkpoint and its seconds, or a fresh one."""
    restored = checkpoints.restore(program.abstract)
    if restored is not None:
        state, meta = restored
        return state, meta["seconds"]
    # Only where nothing is restored: it may be read from afar.
    return program.start(load_start()), 0.0


def _run_steps(
    config: ConfigDict,
    task: Task,
    program: TrainProgram,
    state: TrainState,
    report: StepReport,
    loader: Loader,
    *,
    checkpoints: Checkpoints,
    preemption: Preemption,
    evaluate: Evaluate,
) -> StageResult:
    """Runs the loop proper.

    The device computes a call while the host reads the scalars of the call before and
    loads the batches of the next.
    """
    step = int(state.step)
    while step < config.train.num_steps:
        before = step
        step = _next_stop(step, config)
        batches = _stack(loader, step - before, program.mesh, config.train.batch_size)
        state, scalars = program.step(state, program.frozen, batches)
        report.call(step, scalars)
        done = step == config.train.num_steps
        # All processes look after the same call, so that all end at the same step.
        ends = preemption.look() and not done
        saves = done or ends or is_due(step, config.checkpoint.every)
        shows = done or (is_due(step, config.log.preview_every) and not ends)
        # The step's line goes first: a run that resumes here does not write it again.
        if saves or shows:
            report.flush()
        if shows:
            report.doing("looking at examples: a preview")
            report.values(step, *evaluate(state.ema, program.frozen))
        if saves:
            meta = {"step": step, "seconds": report.seconds}
            if done:
                meta["params_sha256"] = params_sha256(state.params)
                meta["rejected"] = report.rejected()
            report.store()  # before the checkpoint, past which a run does not go back
            checkpoints.save(state, meta, step * config.train.batch_size)
        if done:
            return _result(meta)
        if ends:
            raise PreemptedError(task.name, step, config.train.num_steps)
        if saves or shows:
            report.start_clock(step)
    # The checkpoint was the last step's, and nothing was left to train.
    return StageResult(report.seconds, params_sha256(state.params), {})
