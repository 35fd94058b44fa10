"""The programs that are timed: those of sampling and training, compiled, and their
arguments, made where they lie.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from flowtok_jax.array_types import Params
from flowtok_jax.models.build import Nets, make_nets
from flowtok_jax.perf import flops, programs
from flowtok_jax.perf.machine import room_gib
from flowtok_jax.runtime.config import for_stage
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.mesh import put
from flowtok_jax.sampling import DIRECTIONS
from flowtok_jax.tasks import TASKS, abstract_group, init_group
from flowtok_jax.train import loop
from flowtok_jax.weights.place import Weights

PARTS = (*DIRECTIONS, "train")
CURE = "lower bench.batch_sizes, or take more devices (config.mesh, bench.devices)"
SEED = 0  # of random weights and inputs


class Work(NamedTuple):
    """A compiled program, what it is given, and what it computes by arithmetic.

    `start` puts its arguments on the devices and returns one call, which waits for its
    end.
    """

    part: str
    options: dict[str, Any]  # of it, for the result
    rows: int
    flops: int
    costs: dict[str, flops.Forward]  # of sampling: the networks' own
    compiled: jax.stages.Compiled
    compile_seconds: float
    program_gib: float
    start: Callable[[], Callable[[], None]]


class WeightMaker:
    """Parameters by group, read from weights or drawn at random."""

    def __init__(self, weights: Weights | None):
        self._weights = weights
        self._made = {}

    def trained(self, group: str, nets: Nets) -> Params | None:
        """Reads those of a group to train; None if the run has to make them."""
        if self._weights is None or group not in self._weights.groups:
            return None
        return self._weights.read(group, abstract_group(nets, group), nets)

    def at(self, group: str, nets: Nets, places: Any) -> Params:
        """Those of a group, where the shardings say.

        Raises:
            UserError: where the place does not have them.
        """
        known = group, tuple(jax.tree.leaves(places))
        if known not in self._made:
            self._made = {k: v for k, v in self._made.items() if k[0] != group}
            self._made[known] = self._make(group, nets, places)
        return self._made[known]

    def _make(self, group: str, nets: Nets, places: Any) -> Params:
        if self._weights is not None:
            wanted = abstract_group(nets, group)
            return put(self._weights.read(group, wanted, nets), places)
        init = functools.partial(init_group, nets, group)
        return jax.jit(init, out_shardings=places)(jax.random.key(SEED))


def _places(abstract: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def _fill(abstract: Any, vocab_size: int) -> jax.Array:
    """Random data of an argument's shape: ids, pixels or moments."""
    if jax.dtypes.issubdtype(abstract.dtype, jax.dtypes.prng_key):
        return put(jax.random.key(SEED), abstract.sharding)
    rng = np.random.default_rng(SEED)
    if np.issubdtype(abstract.dtype, np.integer):
        high = 256 if abstract.dtype == np.uint8 else vocab_size
        data = rng.integers(0, high, abstract.shape)
    else:
        data = rng.random(abstract.shape, np.float32)
    return put(data.astype(abstract.dtype), abstract.sharding)


def _compile(
    name: str, step: programs.Step, devices: Sequence[jax.Device]
) -> tuple[jax.stages.Compiled, float, float]:
    """The program, the seconds that took and the GiB that it needs of a device.

    Raises:
        UserError: where it needs more than there is.
    """
    room, begun = room_gib(devices), time.perf_counter()
    held = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(step.arguments)
    )
    needed = held / programs.GIB
    if needed <= room:
        with fitting(name):
            compiled = step.program.lower(*step.arguments).compile()
        needed = programs.memory_of(compiled)["total_gib"]
    if needed > room:
        raise UserError(
            f"{name} needs {needed:.1f} GiB of a device and there are {room:.1f}; "
            f"{CURE}"
        )
    return compiled, time.perf_counter() - begun, needed


@contextlib.contextmanager
def fitting(name: str) -> Iterator[None]:
    """Makes a UserError of a device's memory that runs out within."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"{name} does not fit into the memory of a device; {CURE}"
        ) from error


def sampling(
    config: ConfigDict,
    part: str,
    rows: int,
    num_steps: int,
    devices: Sequence[jax.Device],
    weights: WeightMaker,
) -> Work:
    """A direction of sampling: parameters on every device, rows split over them."""
    section = DIRECTIONS[part].section
    stage = next(name for name, t in TASKS.items() if t.direction == part)
    config = for_stage(config, stage)
    config.mesh.update({"data": len(devices), "fsdp": 1, "tensor": 1})
    config[section].update({"batch_size": rows, "num_steps": num_steps})
    name = f"{part} at batch {rows}"
    step, nets = programs.sample_step(config, stage, devices), make_nets(config)
    compiled, seconds, gib = _compile(name, step, devices)
    abstract, *inputs = step.arguments

    def start() -> Callable[[], None]:
        params = {g: weights.at(g, nets, _places(p)) for g, p in abstract.items()}
        rest = [_fill(x, nets.clip.vocab_size) for x in inputs]
        return lambda: jax.block_until_ready(compiled(params, *rest))

    options = config[section].to_dict()
    run = {k: options[k] for k in ("num_steps", "scale", "solver")}
    return Work(
        part=part,
        options=options,
        rows=rows,
        flops=step.flops.model,
        costs=flops.sampling(nets, part, rows, **run),
        compiled=compiled,
        compile_seconds=seconds,
        program_gib=gib,
        start=start,
    )


def training(
    config: ConfigDict, rows: int, devices: Sequence[jax.Device], weights: WeightMaker
) -> Work:
    """A step of the config's stage, on its mesh, with data that is there already."""
    stage = programs.choose_stage(config)
    config = for_stage(config, stage)
    config.train.batch_size = rows
    step, nets = programs.train_step(config, stage, devices), make_nets(config)
    name = f"training {stage} at batch {rows}"
    compiled, seconds, gib = _compile(name, step, devices)
    _, frozen, batch = step.arguments

    def start() -> Callable[[], None]:
        planned = loop.plan_program(config, TASKS[stage], nets, frozen, devices)
        held = {
            role: weights.at(TASKS[stage].frozen[role], nets, _places(p))
            for role, p in frozen.items()
        }
        data = {k: _fill(x, nets.clip.vocab_size) for k, x in batch.items()}
        state = planned.start(weights.trained(stage, nets))

        def call() -> None:
            nonlocal state  # the step takes the old one's memory
            state, scalars = compiled(state, held, data)
            jax.block_until_ready((state, scalars))

        return call

    options = {"stage": stage, "remat": config.compute.remat}
    options |= {"accumulate": config.train.accumulate, "mesh": config.mesh.to_dict()}
    return Work(
        part="train",
        options=options,
        rows=rows,
        flops=step.flops.model,
        costs={},
        compiled=compiled,
        compile_seconds=seconds,
        program_gib=gib,
        start=start,
    )
