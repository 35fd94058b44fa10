"""`--mode=compile`: what a step needs on hardware that is not there.

The programs are those that training and sampling run, compiled for the described
devices from shapes alone: no data, no weights, no files. A train step is that of one
batch (`train.steps_per_call` is taken as 1); sampling is the whole text-to-image
program at `sample.batch_size`, or image to text at `caption.batch_size` where the stage
is i2t.
"""

import functools
import re
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from flowtok_jax.array_types import ROWS
from flowtok_jax.data.loader import abstract_batch
from flowtok_jax.models.build import make_nets
from flowtok_jax.perf import flops, hlo
from flowtok_jax.runtime.batches import row_parts
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.mesh import in_mesh, make_mesh, replicated
from flowtok_jax.sampling import DIRECTIONS, Programs, SampleOptions
from flowtok_jax.tasks import TASKS, abstract_group
from flowtok_jax.train import loop, sharding
from flowtok_jax.train.checkpoint import with_shardings

MAIN_DIRECTION = "text_to_image"
GIB = 2**30


class Step(NamedTuple):
    """A program with the shapes of its arguments, and what it computes."""

    program: Any
    arguments: tuple
    rows: int
    flops: flops.StepFlops


def choose_stage(config: ConfigDict) -> str:
    """Returns the config's only stage; of several the first that draws, or the last."""
    drawing = [s for s in config.stages if _direction(s) == MAIN_DIRECTION]
    return [*drawing, config.stages[-1]][0]


def _direction(stage: str) -> str | None:
    """Returns the direction of sampling that a stage enables.

    Raises:
        UserError: for a stage that no task describes.
    """
    if stage not in TASKS:
        raise UserError(f"stages has {stage!r}; expected some of {', '.join(TASKS)}")
    return TASKS[stage].direction


def train_step(config: ConfigDict, stage: str, devices: Sequence[jax.Device]) -> Step:
    """Describes the training loop's own step."""
    nets, task = make_nets(config), TASKS[stage]
    frozen = {role: abstract_group(nets, g) for role, g in task.frozen.items()}
    planned = loop.plan_program(config, task, nets, frozen, devices)
    batch = abstract_batch(config)
    places = sharding.batch_sharding(planned.mesh)
    stacked = {
        name: jax.ShapeDtypeStruct((1, *a.shape), a.dtype, sharding=places)
        for name, a in batch.items()
    }
    rows = config.train.batch_size
    cost = flops.train_step(nets, task, rows, "moments" in batch)
    arguments = (planned.abstract, planned.frozen, stacked)
    return Step(planned.step, arguments, rows, cost)


def sample_step(config: ConfigDict, stage: str, devices: Sequence[jax.Device]) -> Step:
    """Describes the pipeline's program, its batch split, parameters as in training.

    A stage that enables no direction of sampling stands for text to image.
    """
    nets = make_nets(config)
    mesh = make_mesh(**config.mesh, devices=devices)
    name = _direction(stage) or MAIN_DIRECTION
    direction = DIRECTIONS[name]
    options = SampleOptions(**config[direction.section]).check(direction.section)
    size, parts = options.batch_size, row_parts(mesh)
    if size % parts:
        raise UserError(
            f"{direction.section}.batch_size is {size}; expected a multiple of {parts},"
            " the parts into which mesh.data and mesh.fsdp split it"
        )
    programs = Programs(nets, config.loss.i2t.text_scale)
    function = functools.partial(getattr(programs, name), options=options)
    params = {group: abstract_group(nets, group) for group in direction.groups}
    side = nets.tokenizer.image_size
    rows = jax.ShapeDtypeStruct((size, nets.dit.tokens), np.int32)
    if direction.takes_images:
        rows = jax.ShapeDtypeStruct((size, side, side, 3), np.float32)
    places = jax.NamedSharding(mesh, ROWS)
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = (
        with_shardings(params, sharding.shardings(mesh, params)),
        with_shardings(rows, places),
        with_shardings(key, replicated(mesh)),
        with_shardings(jax.ShapeDtypeStruct((size,), np.int32), places),
    )
    run = {k: getattr(options, k) for k in ("num_steps", "scale", "solver")}
    count = flops.sampling_total(nets, name, size, **run)
    program = jax.jit(in_mesh(mesh, function), out_shardings=places)
    return Step(program, arguments, size, flops.StepFlops(count, 0))


MAKE = {"train": train_step, "sample": sample_step}


def memory_of(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Of one device; outputs that take the place of a donated argument cost nothing."""
    stats = compiled.memory_analysis()
    argument, temp = stats.argument_size_in_bytes, stats.temp_size_in_bytes
    new = stats.output_size_in_bytes - stats.alias_size_in_bytes
    total = argument + temp + new + stats.generated_code_size_in_bytes
    sizes = {"argument_gib": argument, "temp_gib": temp, "total_gib": total}
    return {name: round(size / GIB, 4) for name, size in sizes.items()}


def _too_large(error: Exception) -> dict[str, float | None]:
    """What libtpu says of a program that it refuses for its size."""
    needed = re.search(r"(?:\(|Used )(\d+(?:\.\d+)?)([GT])", str(error))
    total = float(needed[1]) * {"G": 1, "T": 1024}[needed[2]] if needed else None
    return {"argument_gib": None, "temp_gib": None, "total_gib": total}


def measure(
    config: ConfigDict, stage: str, step: str, devices: Sequence[jax.Device]
) -> dict[str, Any]:
    """Compiles a step for the devices; its size, its work and what it moves.

    A program that the compiler refuses because it is too large has the total that it
    names, if it names one, and no collectives.

    Raises:
        UserError: where the config does not suit the devices.
    """
    made = MAKE[step](config, stage, devices)
    begun, moves = time.monotonic(), None
    try:
        compiled = made.program.lower(*made.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        memory = _too_large(error)
    else:
        memory, moves = memory_of(compiled), hlo.count(compiled.as_text())
    return {
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "stage": stage,
        "step": step,
        "global_batch": made.rows,
        **memory,
        "model_tflops_per_step": round(made.flops.model / 1e12, 3),
        "recompute_fraction": round(made.flops.recompute_fraction, 4),
        "collectives": moves,
        "compile_seconds": round(time.monotonic() - begun, 1),
    }
