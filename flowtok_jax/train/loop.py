"""The one training loop: shapes, shardings, restore or start, then step by step."""

import functools
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from flowtok_jax.data.captions import Vocabulary
from flowtok_jax.data.loader import Batch, make_loader
from flowtok_jax.errors import UserError
from flowtok_jax.mesh import from_local_rows, local_rows, put, replicated
from flowtok_jax.models.build import Nets, init_group
from flowtok_jax.places import Place
from flowtok_jax.processes import Preemption, is_first
from flowtok_jax.shapes import Params
from flowtok_jax.train import sharding
from flowtok_jax.train.checkpoint import Checkpoints, with_shardings
from flowtok_jax.train.metrics import Metrics
from flowtok_jax.train.optimizer import make_optimizer, make_schedule
from flowtok_jax.train.progress import Progress
from flowtok_jax.train.state import TrainState, make_state, params_sha256
from flowtok_jax.train.steps import TASKS, train_steps
from flowtok_jax.weights import steps_of

# Of EMA parameters and frozen ones: scalars, and pictures [h, w, 3] uint8.
Evaluate = Callable[[Params, Params], tuple[dict[str, float], dict[str, np.ndarray]]]


class PreemptedError(Exception):
    """The run was asked to end, and saved at the step that is its argument."""


class Result(NamedTuple):
    """What a finished stage leaves behind: its time, and a digest of its parameters."""

    seconds: float
    sha256: str


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
    mesh = sharding.make_mesh(**config.mesh)
    check(config)
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
    step = functools.partial(
        train_steps,
        loss=functools.partial(
            TASKS[task].loss,
            nets=nets,
            parts=config.train.accumulate,
            **config.loss[task],
        ),
        optimizer=optimizer,
        ema_decay=config.train.ema_decay,
    )
    return Run(
        start=start,
        step=jax.jit(
            step,
            donate_argnums=0,
            in_shardings=(places, frozen_places, sharding.batch_sharding(mesh)),
            out_shardings=(places, replicated(mesh)),
        ),
        abstract=with_shardings(abstract, places),
        frozen=put(frozen, frozen_places),
        schedule=schedule,
        mesh=mesh,
    )


def check(config: ConfigDict) -> None:
    """Refuses what can be told wrong before anything is written or computed.

    Raises:
        UserError: naming the key.
    """
    schedule = make_schedule(**config.schedule, num_steps=config.train.num_steps)
    make_optimizer(schedule, **config.optimizer)
    mesh = sharding.make_mesh(**config.mesh)
    counts = ("num_steps", "batch_size", "accumulate", "steps_per_call")
    for name in (*counts, "max_skipped_in_a_row"):
        if config.train[name] < 1:
            raise UserError(f"train.{name} is {config.train[name]}; wanted at least 1")
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * config.train.accumulate
    if config.train.batch_size % parts:
        raise UserError(
            f"train.batch_size is {config.train.batch_size}; wanted a multiple of "
            f"{parts}, the parts into which mesh.data, mesh.fsdp and train.accumulate "
            "split it"
        )


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


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
    return Result(meta["seconds"], meta["params_sha256"])


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
    with _checkpoints(config, task, workdir) as checkpoints, Preemption() as preemption:
        run = make_run(config, task, nets, frozen)
        state, meta = checkpoints.restore(run.abstract) or (
            run.start(load_start()),
            {"seconds": 0.0},
        )
        start_step, first = int(state.step), is_first()
        loader = make_loader(
            config,
            vocabulary,
            start_step,
            local_rows(run.mesh, config.train.batch_size),
        )
        with (
            Metrics(workdir, task, start_step=start_step, writes=first) as metrics,
            Progress(task, start_step, config.train.num_steps, first) as progress,
        ):
            report = _Report(
                config,
                run.schedule,
                metrics,
                progress,
                start_step=start_step,
                seconds=meta["seconds"],
            )
            return _run_steps(
                config,
                run,
                state,
                report,
                loader=loader,
                checkpoints=checkpoints,
                preemption=preemption,
                evaluate=evaluate,
            )


def _run_steps(
    config: ConfigDict,
    run: Run,
    state: TrainState,
    report: "_Report",
    *,
    loader: Iterator[Batch],
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
        ends = preemption.asked(before, step) and not done
        saves = done or ends or _is_due(step, config.checkpoint.every)
        if saves:  # its line goes first: a run that resumes here does not write it
            report.flush()
        if done or (_is_due(step, config.log.preview_every) and not ends):
            report.values(step, *evaluate(state.ema, run.frozen))
        if saves:
            meta = {"step": step, "seconds": report.seconds}
            if done:
                meta["params_sha256"] = params_sha256(state.params)
            report.store()
            checkpoints.save(state, meta, step * config.train.batch_size)
        if done:
            return Result(meta["seconds"], meta["params_sha256"])
        if ends:
            raise PreemptedError(step)
    return Result(report.seconds, params_sha256(state.params))  # nothing was left


class _Report:
    """What the host says of the steps: it reads a call's scalars one call later."""

    def __init__(
        self,
        config: ConfigDict,
        schedule: optax.Schedule,
        metrics: Metrics,
        progress: Progress,
        *,
        start_step: int,
        seconds: float,
    ):
        self._config, self._schedule = config, schedule
        self._metrics, self._progress = metrics, progress
        self._pending, self._skipped = None, None
        self._last = (start_step, time.monotonic())
        self._begun = time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        """Spent on the stage so far, earlier runs included."""
        return time.monotonic() - self._begun

    def call(self, step: int, scalars: dict[str, Any]) -> None:
        """Notes the call that ends at a step, and reads the one before."""
        before, self._pending = self._pending, (step, scalars)
        if before:
            self._read(*before)

    def flush(self) -> None:
        """Reads the newest call too, which waits for the device."""
        if self._pending:
            self._read(*self._pending)
            self._pending = None

    def store(self) -> None:
        """Makes what was noted so far outlast this machine, before a checkpoint."""
        self._metrics.store()

    def values(self, step: int, scalars: dict, pictures: dict) -> None:
        """Notes what an evaluation found."""
        self._metrics.scalars(step, scalars)
        self._metrics.images(step, pictures)

    def _read(self, step: int, scalars: dict[str, Any]) -> None:
        values = {name: float(v) for name, v in jax.device_get(scalars).items()}
        in_a_row = int(values.pop("skipped_in_a_row"))
        now, (last, then) = time.monotonic(), self._last
        images = (step - last) * self._config.train.batch_size
        values["perf/images_per_sec"] = images / (now - then)
        values["lr"] = float(self._schedule(step - 1))
        self._last = (step, now)
        self._progress.update(step, values)
        end = self._config.train.num_steps
        if step == end or _is_due(step, self._config.log.every):
            self._metrics.scalars(step, values)
        self._check_skipped(step, int(values["skipped"]), in_a_row)

    def _check_skipped(self, step: int, skipped: int, in_a_row: int) -> None:
        new = skipped - (self._skipped or 0)
        if new and self._skipped is not None or in_a_row:
            logging.warning(
                "by step %d %d steps were skipped, %d in a row at the end: loss or "
                "gradient was not finite",
                step,
                skipped,
                in_a_row,
            )
        self._skipped = skipped
        if in_a_row >= self._config.train.max_skipped_in_a_row:
            raise UserError(
                f"loss or gradient was not finite in the {in_a_row} steps up to {step} "
                "(train.max_skipped_in_a_row = "
                f"{self._config.train.max_skipped_in_a_row}); the weights are those of "
                f"step {step - in_a_row}; the last checkpoint stays; lower schedule.lr "
                "or set optimizer.clip_norm"
            )
