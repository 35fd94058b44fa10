"""The one training loop: shapes, shardings, restore or start, then step by step."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from flowtok_jax.array_types import Params
from flowtok_jax.data.loader import Batch, Loader
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.models.build import Nets, init_group
from flowtok_jax.runtime.errors import UserError
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
from flowtok_jax.tasks.steps import TASKS
from flowtok_jax.train import sharding
from flowtok_jax.train.checkpoint import Checkpoints, with_shardings
from flowtok_jax.train.log import Metrics
from flowtok_jax.train.optimizer import make_optimizer, make_schedule
from flowtok_jax.train.progress import Progress
from flowtok_jax.train.report import Report, is_due
from flowtok_jax.train.state import TrainState, make_state, params_sha256
from flowtok_jax.train.step import train_steps
from flowtok_jax.weights.workdir import steps_of

# Of EMA parameters and frozen ones: scalars, and pictures [h, w, 3] uint8.
Evaluate = Callable[[Params, Params], tuple[dict[str, float], dict[str, np.ndarray]]]


class PreemptedError(Exception):
    """The run was asked to end, and saved; its arguments are the stage and the step."""


class Result(NamedTuple):
    """What a finished stage leaves behind: its time, a digest of its parameters, and
    what is known of records that could not be used.
    """

    seconds: float
    sha256: str
    rejected: dict[str, Any]


class Run(NamedTuple):
    """The compiled pieces of one stage."""

    start: Callable[[Params | None], TrainState]
    step: Callable[[TrainState, Params, Batch], tuple[TrainState, dict[str, Any]]]
    abstract: TrainState
    frozen: Params
    schedule: optax.Schedule
    mesh: jax.sharding.Mesh


def make_run(config: ConfigDict, task: str, nets: Nets, frozen: Params) -> Run:
    """Builds the jitted start and step of a task over the mesh.

    Raises:
        UserError: where the config has a number that cannot be.
    """
    run = plan_run(config, task, nets, frozen)
    places = jax.tree.map(lambda leaf: leaf.sharding, run.frozen)
    return run._replace(frozen=put(frozen, places))


def plan_run(
    config: ConfigDict,
    task: str,
    nets: Nets,
    frozen: Params,
    devices: Sequence[jax.Device] | None = None,
) -> Run:
    """The same with shapes only in `frozen`: for devices that need not be there."""
    mesh = make_mesh(**config.mesh, devices=devices)
    check(config, devices)
    schedule = make_schedule(**config.schedule, num_steps=config.train.num_steps)
    optimizer = make_optimizer(schedule, **config.optimizer)

    def make(params=None):
        key = jax.random.key(config.train.seed)
        if params is None:
            params = init_group(nets, task, jax.random.fold_in(key, 0))
        return make_state(params, optimizer, config.train.seed)

    abstract = jax.eval_shape(make)
    places = sharding.shardings(mesh, abstract)
    make = jax.jit(make, out_shardings=places)

    def start(params):
        if params is not None:
            params = put(params, places.params)
        return make(params)

    frozen_places = sharding.shardings(mesh, frozen)
    options = {"parts": config.train.accumulate, **config.loss[task]}
    step = functools.partial(
        train_steps,
        loss=functools.partial(TASKS[task].loss, nets=nets, **options),
        optimizer=optimizer,
        ema_decay=config.train.ema_decay,
    )
    return Run(
        start=start,
        step=jax.jit(
            in_mesh(mesh, step),
            donate_argnums=0,
            in_shardings=(places, frozen_places, sharding.batch_sharding(mesh)),
            out_shardings=(places, replicated(mesh)),
        ),
        abstract=with_shardings(abstract, places),
        frozen=with_shardings(frozen, frozen_places),
        schedule=schedule,
        mesh=mesh,
    )


def check(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> None:
    """Refuses what can be told wrong before anything is written or computed.

    Raises:
        UserError: naming the key.
    """
    schedule = make_schedule(**config.schedule, num_steps=config.train.num_steps)
    make_optimizer(schedule, **config.optimizer)
    mesh = make_mesh(**config.mesh, devices=devices)
    counts = ("num_steps", "batch_size", "accumulate", "steps_per_call")
    for name in (*counts, "max_skipped_in_a_row"):
        if config.train[name] < 1:
            raise UserError(f"train.{name} is {config.train[name]}; wanted at least 1")
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * config.train.accumulate
    if config.checkpoint.keep < 1:
        raise UserError(
            f"checkpoint.keep is {config.checkpoint.keep}; wanted at least 1"
        )
    if config.train.batch_size % parts:
        raise UserError(
            f"train.batch_size is {config.train.batch_size}; wanted a multiple of "
            f"{parts}, the parts into which mesh.data, mesh.fsdp and train.accumulate "
            "split it"
        )


def _next_stop(step: int, config: ConfigDict) -> int:
    """The step at which the host has to look at the state again."""
    stops = [step + config.train.steps_per_call, config.train.num_steps]
    for every in (config.checkpoint.every, config.log.every, config.log.preview_every):
        if every > 0:
            stops.append(step - step % every + every)
    return min(stops)


def _stack(
    loader: Iterator[Batch], count: int, mesh: jax.sharding.Mesh, batch_size: int
) -> dict[str, jax.Array]:
    """The next batches as one of global arrays [count, batch_size, ...]."""
    batches = [next(loader) for _ in range(count)]
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *batches)
    return jax.tree.map(lambda a: from_local_rows(mesh, batch_size, a), stacked)


def finished(config: ConfigDict, task: str, workdir: Place) -> Result | None:
    """The result of a stage that has nothing left to train; None for another."""
    if max(steps_of(workdir, task), default=-1) < config.train.num_steps:
        return None
    with _checkpoints(config, task, workdir) as checkpoints:
        meta = checkpoints.read_meta()
    if meta is None or "params_sha256" not in meta:
        return None
    return _result(meta)


def _result(meta: dict[str, Any]) -> Result:
    return Result(meta["seconds"], meta["params_sha256"], meta["rejected"])


def _checkpoints(config: ConfigDict, task: str, workdir: Place) -> Checkpoints:
    keep, every = config.checkpoint.keep, config.checkpoint.keep_every
    return Checkpoints(workdir, task, keep=keep, keep_every=every)


def train(
    config: ConfigDict,
    task: str,
    workdir: Place,
    *,
    nets: Nets,
    frozen: Params,
    vocabulary: Vocabulary,
    evaluate: Evaluate,
    preemption: Preemption,
    load_start: Callable[[], Params | None] = lambda: None,
) -> Result:
    """Trains one stage to its end, from its newest checkpoint or from the start.

    Every process of the run calls it; process 0 writes metrics, all write checkpoints.

    Args:
        frozen: the parameters of the groups that the task needs.
        load_start: gives the parameters to start from, None for random ones; called
            only where there is no checkpoint.

    Raises:
        PreemptedError: after saving, where SIGTERM came.
        UserError: where checkpoints cannot be read or written, or too many steps in a
            row had a loss or gradient that is not finite.
    """
    with _checkpoints(config, task, workdir) as checkpoints:
        run = make_run(config, task, nets, frozen)
        state, meta = checkpoints.restore(run.abstract) or (
            run.start(load_start()),
            {"seconds": 0.0},
        )
        start_step, first = int(state.step), is_first()
        rows = local_rows(run.mesh, config.train.batch_size)
        loader = Loader(config, vocabulary, start_step, rows)
        with (
            Metrics(workdir, task, start_step=start_step, writes=first) as metrics,
            Progress(task, start_step, config.train.num_steps, first) as progress,
        ):
            so_far = {"seconds": meta["seconds"], "skipped": int(state.skipped)}
            report = Report(
                config, run.schedule, metrics, progress, loader.rejects, **so_far
            )
            tools = {"checkpoints": checkpoints, "preemption": preemption}
            return _run_steps(
                config, task, run, state, report, loader, evaluate=evaluate, **tools
            )


def _run_steps(
    config: ConfigDict,
    task: str,
    run: Run,
    state: TrainState,
    report: Report,
    loader: Loader,
    *,
    checkpoints: Checkpoints,
    preemption: Preemption,
    evaluate: Evaluate,
) -> Result:
    """The loop proper. The device computes a call while the host reads the last one's
    scalars and loads the next one's batches.
    """
    step = int(state.step)
    while step < config.train.num_steps:
        before, step = step, _next_stop(step, config)
        batches = _stack(loader, step - before, run.mesh, config.train.batch_size)
        state, scalars = run.step(state, run.frozen, batches)
        report.call(step, scalars)
        done = step == config.train.num_steps
        ends = preemption.look() and not done
        saves = done or ends or is_due(step, config.checkpoint.every)
        shows = done or (is_due(step, config.log.preview_every) and not ends)
        if saves or shows:  # its line goes first: a run that resumes does not write it
            report.flush()
        if shows:
            report.values(step, *evaluate(state.ema, run.frozen))
        if saves:
            meta = {"step": step, "seconds": report.seconds}
            if done:
                meta["params_sha256"] = params_sha256(state.params)
                meta["rejected"] = report.rejected()
            report.store()
            checkpoints.save(state, meta, step * config.train.batch_size)
        if done:
            return _result(meta)
        if ends:
            raise PreemptedError(task, step)
        if saves or shows:
            report.start_clock(step)
    return Result(report.seconds, params_sha256(state.params), {})  # nothing was left
