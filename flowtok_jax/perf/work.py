"""Programs that can be timed: compiled, with arguments made where they lie."""

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from flowtok_jax.array_types import Params
from flowtok_jax.models.build import Nets, find_provider, make_nets
from flowtok_jax.perf import flops, profile, programs
from flowtok_jax.perf.machine import GIB, peak_memory_gib, peak_tflops, room_gib
from flowtok_jax.runtime.config import for_stage
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.mesh import put
from flowtok_jax.sampling import DIRECTIONS
from flowtok_jax.tasks import (
    abstract_group,
    init_group,
    pick_group,
    task_of,
)
from flowtok_jax.train import loop
from flowtok_jax.weights.nets import RANDOM, load_metric_net
from flowtok_jax.weights.place import Weights

PARTS = (*DIRECTIONS, "train")
CURE = "lower bench.batch_sizes, or take more devices (config.mesh, bench.devices)"
SEED = 0  # of random weights and inputs


class TooLargeError(UserError):
    """A program that needs more memory than a device has."""


class Work(NamedTuple):
    """A compiled program, its arguments, and its work by arithmetic.

    Attributes:
        options: what the result says of the program.
        rows: rows of a call.
        flops: model FLOPs of a call.
        costs: forward passes by network, of sampling.
        start: puts the arguments on the devices and returns one call, which waits for
            its end.
    """

    part: str
    options: dict[str, Any]
    rows: int
    flops: int
    costs: dict[str, flops.Forward]
    compiled: jax.stages.Compiled
    compile_seconds: float
    program_gib: float
    start: Callable[[], Callable[[], None]]


class WeightMaker:
    """Parameters by group, read from weights or drawn at random."""

    def __init__(self, weights: Weights | None):
        self._weights = weights
        self._made = {}

    def find_stage(self, group: str) -> str:
        """Returns the group of the weights that has another one's parameters."""
        there = () if self._weights is None else self._weights.groups
        return find_provider(group, there)

    def trained(self, group: str, nets: Nets) -> Params | None:
        """Reads a group to train; None where the run is to make its own."""
        if self._weights is None or group not in self._weights.groups:
            return None
        return self._weights.read(group, abstract_group(nets, group), nets)

    def at(self, group: str, nets: Nets, places: Any) -> Params:
        """Returns the parameters of a group, laid out as the shardings say.

        Raises:
            UserError: where the place does not have them.
        """
        known = group, tuple(jax.tree.leaves(places))
        if known not in self._made:
            # One layout a group: two would fill the device's memory.
            self._made = {k: v for k, v in self._made.items() if k[0] != group}
            self._made[known] = self._make(group, nets, places)
        return self._made[known]

    def _make(self, group: str, nets: Nets, places: Any) -> Params:
        if self._weights is not None:
            provider = self.find_stage(group)
            wanted = abstract_group(nets, provider)
            found = {provider: self._weights.read(provider, wanted, nets)}
            return put(pick_group(found, group, nets), places)
        init = functools.partial(init_group, nets, group)
        return jax.jit(init, out_shardings=places)(jax.random.key(SEED))


def _places(abstract: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def _fill(abstract: Any, vocab_size: int) -> jax.Array:
    """Makes random data of an argument's shape: ids, pixels or moments."""
    if jax.dtypes.issubdtype(abstract.dtype, jax.dtypes.prng_key):
        return put(jax.random.key(SEED), abstract.sharding)
    # Values change no time, but ids beyond the vocabulary would read nowhere.
    rng = np.random.default_rng(SEED)
    if np.issubdtype(abstract.dtype, np.integer):
        high = 256 if abstract.dtype == np.uint8 else vocab_size
        data = rng.integers(0, high, abstract.shape)
    else:
        data = rng.random(abstract.shape, np.float32)
    return put(data.astype(abstract.dtype), abstract.sharding)


@contextlib.contextmanager
def fitting(name: str) -> Iterator[None]:
    """Makes a TooLargeError of a device's memory that runs out within."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise TooLargeError(
            f"{name} does not fit into the memory of a device; {CURE}"
        ) from error


def _compile(
    name: str, step: programs.PlannedStep, devices: Sequence[jax.Device]
) -> dict[str, Any]:
    """Compiles a program.

    Returns:
        The fields of Work that come of it.

    Raises:
        TooLargeError: where the program needs more of a device than there is.
    """
    room = room_gib(devices)
    begun = time.perf_counter()
    # Arguments alone may be too much, which is known without compiling.
    held = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(step.arguments)
    )
    needed = held / GIB
    compiled = None
    if needed <= room:
        with fitting(name):
            compiled = step.program.lower(*step.arguments).compile()
        needed = programs.memory_of(compiled)["total_gib"]
    if needed > room:
        raise TooLargeError(
            f"{name} needs {needed:.1f} GiB of a device and there are {room:.1f}; "
            f"{CURE}"
        )
    return {
        "compiled": compiled,
        "compile_seconds": time.perf_counter() - begun,
        "program_gib": needed,
        "rows": step.rows,
        "flops": step.flops.model,
    }


def sampling_work(
    config: ConfigDict,
    part: str,
    rows: int,
    num_steps: int,
    devices: Sequence[jax.Device],
    weights: WeightMaker,
) -> Work:
    """Makes a direction of sampling: parameters on every device, rows split."""
    section = DIRECTIONS[part].section
    # The stage's own values in per_stage count, as when its weights were trained.
    stage = weights.find_stage(DIRECTIONS[part].flow)
    config = for_stage(config, stage)
    config.mesh.update({"data": len(devices), "fsdp": 1, "tensor": 1})
    config[section].update({"batch_size": rows, "num_steps": num_steps})
    nets = make_nets(config)
    step = programs.plan_sample_step(config, stage, devices, part)
    made = _compile(f"{part} at batch {rows}", step, devices)
    abstract, *inputs = step.arguments

    def start() -> Callable[[], None]:
        params = {g: weights.at(g, nets, _places(p)) for g, p in abstract.items()}
        rest = [_fill(x, nets.clip.vocab_size) for x in inputs]
        # JAX returns before the device is done: a timed call has to wait.
        return lambda: jax.block_until_ready(made["compiled"](params, *rest))

    options = config[section].to_dict()
    run = {k: options[k] for k in ("num_steps", "scale", "solver")}
    costs = flops.count_sampling(nets, part, rows, **run)
    return Work(part=part, options=options, costs=costs, start=start, **made)


def training_work(
    config: ConfigDict, rows: int, devices: Sequence[jax.Device], weights: WeightMaker
) -> Work:
    """Makes a step of the config's stage, on its mesh, with data made beforehand."""
    stage = programs.choose_stage(config)
    config = for_stage(config, stage)
    task = task_of(config, stage)
    config.train.batch_size = rows
    nets = make_nets(config)
    step = programs.plan_train_step(config, stage, devices)
    made = _compile(f"training {stage} at batch {rows}", step, devices)
    _, frozen, batch = step.arguments

    def start() -> Callable[[], None]:
        # The program is compiled already: this one only makes the state.
        planned = loop.plan_program(config, task, nets, frozen, devices)
        held = {
            role: weights.at(task.frozen[role], nets, _places(params))
            for role, params in frozen.items()
            if role in task.frozen
        }
        for name in task.judges(config):
            # Values change no time.
            judge = load_metric_net(name, RANDOM).params
            held[name] = jax.device_put(judge, _places(frozen[name]))
        data = {k: _fill(x, nets.clip.vocab_size) for k, x in batch.items()}
        own = weights.trained(stage, nets) if task.lora is None else None
        state = planned.start(own)

        def call() -> None:
            nonlocal state  # the step takes the old one's memory
            state, scalars = made["compiled"](state, held, data)
            jax.block_until_ready((state, scalars))

        return call

    options = {"stage": stage, "remat": config.compute.remat}
    options |= {"accumulate": config.train.accumulate, "mesh": config.mesh.to_dict()}
    return Work(part="train", options=options, costs={}, start=start, **made)


def _timed(call: Callable[[], None]) -> tuple[float, float]:
    """Returns seconds by the clock, and of all this process's cores."""
    begun = time.perf_counter()
    spent = time.process_time()
    call()
    return time.perf_counter() - begun, time.process_time() - spent


def _rates(work: Work, seconds: list[float], devices: int) -> dict[str, Any]:
    """Computes rates of the median call; MFU is against the bfloat16 peak."""
    p50, p95 = (float(x) for x in np.percentile(seconds, (50, 95)))
    peak = peak_tflops(jax.devices()[0].device_kind)
    tflops = work.flops / p50 / 1e12
    return {
        "images_per_sec": work.rows / p50,
        "seconds": {"p50": p50, "p95": p95, "all": [round(s, 6) for s in seconds]},
        "model_tflop_per_call": work.flops / 1e12,
        "model_gflop_per_image": work.flops / work.rows / 1e9,
        "tflops_per_sec": tflops,
        "peak_bf16_tflops_per_sec": peak and peak * devices,
        "mfu": peak and tflops / (peak * devices),
    }


def time_work(
    work: Work, *, repeats: int, warmup: int, devices: int, profiles: bool
) -> dict[str, Any]:
    """Runs a program: its times, its rates, its memory; its profile where wanted.

    Args:
        repeats: timed calls, each waited for.
        warmup: calls before these; the first one is told apart.
        devices: number that share the work.
        profiles: whether one more call of sampling is profiled.
    """
    with fitting(f"{work.part} at batch {work.rows}"):
        call = work.start()
        first, _ = _timed(call)
        for _ in range(warmup - 1):
            call()
        times = [_timed(call) for _ in range(repeats)]
    used = jax.devices()[:devices]
    result = {
        "part": work.part,
        "batch_size": work.rows,
        "devices": devices,
        "options": work.options,
        **_rates(work, [clock for clock, _ in times], devices),
        # What a CPU's shared cores gave; of an accelerator's host, what it waited with.
        "host_cpu_seconds": float(np.median([cores for _, cores in times])),
        "compile_seconds": round(work.compile_seconds, 3),
        "first_call_seconds": round(first, 6),
        "memory": {"program_gib": work.program_gib} | peak_memory_gib(used),
        "load_average": [round(x, 2) for x in os.getloadavg()],
    }
    if profiles and work.costs:
        text = work.compiled.as_text()
        result["profile"] = profile.by_module(call, text, work.costs, devices)
    return result
