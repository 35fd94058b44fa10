"""The one training loop: shapes, shardings, restore or start, then step by step."""

import functools
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from flowtok_jax.data.captions import Vocabulary
from flowtok_jax.data.loader import Batch, make_loader
from flowtok_jax.errors import UserError
from flowtok_jax.models.build import Nets, init_group
from flowtok_jax.shapes import Params
from flowtok_jax.train import sharding
from flowtok_jax.train.checkpoint import Checkpoints, with_shardings
from flowtok_jax.train.metrics import Metrics
from flowtok_jax.train.optimizer import make_optimizer, make_schedule
from flowtok_jax.train.progress import Progress
from flowtok_jax.train.state import TrainState, make_state, params_sha256
from flowtok_jax.train.steps import TASKS, train_steps
from flowtok_jax.weights import steps_of

# Of EMA parameters: scalars, and pictures [h, w, 3] uint8.
Evaluate = Callable[[Params], tuple[dict[str, float], dict[str, np.ndarray]]]


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
    batch_sharding: jax.sharding.Sharding


def make_run(config: ConfigDict, task: str, nets: Nets, frozen: Params) -> Run:
    """Builds the jitted start and step of a task over the mesh.

    Raises:
        UserError: where the config has a number that cannot be.
    """
    run = plan_run(config, task, nets, frozen)
    places = jax.tree.map(lambda leaf: leaf.sharding, run.frozen)
    return run._replace(frozen=jax.device_put(frozen, places))


def plan_run(
    config: ConfigDict,
    task: str,
    nets: Nets,
    frozen: Params,
    devices: Sequence[jax.Device] | None = None,
) -> Run:
    """The same with shapes only in `frozen`: for devices that need not be there."""
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
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
            params = jax.device_put(params, places.params)
        return make(params)

    batch_place = sharding.batch_sharding(mesh)
    frozen_places = sharding.shardings(mesh, frozen)
    step = functools.partial(
        train_steps,
        loss=functools.partial(TASKS[task].loss, nets=nets, **config.loss[task]),
        optimizer=optimizer,
        ema_decay=config.train.ema_decay,
    )
    return Run(
        start=start,
        step=jax.jit(
            sharding.in_mesh(mesh, step),
            donate_argnums=0,
            in_shardings=(places, frozen_places, batch_place),
            out_shardings=(places, None),
        ),
        abstract=with_shardings(abstract, places),
        frozen=with_shardings(frozen, frozen_places),
        schedule=schedule,
        batch_sharding=batch_place,
    )


def check(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> None:
    """Refuses what can be told wrong before anything is written or computed.

    Raises:
        UserError: naming the key.
    """
    make_schedule(**config.schedule, num_steps=config.train.num_steps)
    mesh = sharding.make_mesh(**config.mesh, devices=devices)
    for name in ("num_steps", "batch_size", "steps_per_call"):
        if config.train[name] < 1:
            raise UserError(f"train.{name} is {config.train[name]}; wanted at least 1")
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.train.batch_size % parts:
        raise UserError(
            f"train.batch_size is {config.train.batch_size}; wanted a multiple of "
            f"{parts}, the parts into which mesh.data and mesh.fsdp split it"
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


def _stack(loader: Iterator[Batch], count: int, place) -> dict[str, jax.Array]:
    batches = [next(loader) for _ in range(count)]
    stacked = jax.tree.map(lambda *rows: np.stack(rows), *batches)
    return jax.tree.map(
        lambda a: jax.make_array_from_process_local_data(place, a), stacked
    )


def finished(config: ConfigDict, task: str, workdir: pathlib.Path) -> Result | None:
    """The result of a stage that has nothing left to train; None for another."""
    if max(steps_of(workdir, task), default=-1) < config.train.num_steps:
        return None
    with Checkpoints(workdir, task, keep=config.checkpoint.keep) as checkpoints:
        meta = checkpoints.read_meta()
    return Result(meta["seconds"], meta["params_sha256"])


def train(
    config: ConfigDict,
    task: str,
    workdir: pathlib.Path,
    *,
    nets: Nets,
    frozen: Params,
    vocabulary: Vocabulary,
    evaluate: Evaluate,
    load_start: Callable[[], Params | None] = lambda: None,
) -> Result:
    """Trains one stage to its end, from its newest checkpoint or from the start.

    Args:
        frozen: the parameters of the groups that the task needs.
        load_start: gives the parameters to start from, None for random ones; called
            only where there is no checkpoint.
    """
    with Checkpoints(workdir, task, keep=config.checkpoint.keep) as checkpoints:
        meta = checkpoints.read_meta()
        run = make_run(config, task, nets, frozen)
        if meta is None:
            state = run.start(load_start())
        else:
            state = checkpoints.restore(run.abstract)
        start_step, first = int(state.step), jax.process_index() == 0
        loader = make_loader(config, vocabulary, start_step)
        with (
            Metrics(workdir, task, start_step=start_step, writes=first) as metrics,
            Progress(task, start_step, config.train.num_steps, first) as progress,
        ):
            meta = _run_steps(
                config,
                run,
                state,
                loader,
                seconds=meta["seconds"] if meta else 0.0,
                checkpoints=checkpoints,
                metrics=metrics,
                progress=progress,
                evaluate=evaluate,
            )
    return Result(meta["seconds"], meta["params_sha256"])


def _run_steps(
    config: ConfigDict,
    run: Run,
    state: TrainState,
    loader: Iterator[Batch],
    *,
    seconds: float,
    checkpoints: Checkpoints,
    metrics: Metrics,
    progress: Progress,
    evaluate: Evaluate,
) -> dict[str, Any]:
    """The loop proper. The device computes a call while the host reads the last one's
    scalars and loads the next one's batches.
    """
    step, begun = int(state.step), time.monotonic()
    pending, last, meta = None, (step, begun), {}

    def report() -> None:
        nonlocal last
        at, scalars = pending
        values = {name: float(v) for name, v in jax.device_get(scalars).items()}
        now = time.monotonic()
        images = (at - last[0]) * config.train.batch_size
        values["perf/images_per_sec"] = images / (now - last[1])
        values["lr"] = float(run.schedule(at - 1))
        last = (at, now)
        progress.update(at, values)
        if at == config.train.num_steps or _is_due(at, config.log.every):
            metrics.scalars(at, values)

    while step < config.train.num_steps:
        stop = _next_stop(step, config)
        batches = _stack(loader, stop - step, run.batch_sharding)
        state, scalars = run.step(state, run.frozen, batches)
        if pending:
            report()
        step, pending = stop, (stop, scalars)
        done = step == config.train.num_steps
        saves = done or _is_due(step, config.checkpoint.every)
        if saves:  # its line goes first: a run that resumes here does not write it
            report()
            pending = None
        if done or _is_due(step, config.log.preview_every):
            values, grids = evaluate(state.ema)
            metrics.scalars(step, values)
            metrics.images(step, grids)
        if saves:
            meta = {
                "step": step,
                "seconds": seconds + time.monotonic() - begun,
                "params_sha256": params_sha256(state.params),
            }
            checkpoints.save(state, meta, step * config.train.batch_size)
    return meta
