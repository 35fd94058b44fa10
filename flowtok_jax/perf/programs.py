"""The programs of training and sampling, planned from shapes alone and compiled.

No data, no weights, no files: the devices may be described ones that are not there. A
train step is that of one batch (`train.steps_per_call` is taken as 1); sampling is the
whole program of the direction that the stage enables, at the batch size of the
direction's section.
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
from flowtok_jax.models.build import find_provider, make_nets
from flowtok_jax.perf import flops, hlo, judges
from flowtok_jax.perf.machine import GIB
from flowtok_jax.runtime.batches import row_parts
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.mesh import in_mesh, make_mesh, replicated
from flowtok_jax.sampling import DIRECTIONS, Programs, SampleOptions
from flowtok_jax.tasks import TASKS, abstract_group, find_task, task_of
from flowtok_jax.train import loop, sharding
from flowtok_jax.train.checkpoint import with_shardings
from flowtok_jax.weights.nets import abstract_net

MAIN_DIRECTION = "text_to_image"


class PlannedStep(NamedTuple):
    """A jitted program with the shapes of its arguments.

    Attributes:
        arguments: shapes with shardings.
        rows: rows of one call, all devices together.
        flops: work of one call by arithmetic.
    """

    program: Any
    arguments: tuple
    rows: int
    flops: flops.StepFlops


def choose_stage(config: ConfigDict) -> str:
    """Returns the config's only stage; of several the first that draws, or the last.

    Raises:
        UserError: for a stage that no task describes.
    """
    tasks = [find_task(stage) for stage in config.stages]
    drawing = [task.name for task in tasks if MAIN_DIRECTION in task.directions]
    return [*drawing, config.stages[-1]][0]


def plan_train_step(
    config: ConfigDict, stage: str, devices: Sequence[jax.Device]
) -> PlannedStep:
    """Plans the training loop's own step."""
    task = task_of(config, stage)
    nets = make_nets(config)
    frozen = {role: abstract_group(nets, g) for role, g in task.frozen.items()}
    frozen |= {name: abstract_net(name) for name in task.judges(config)}
    planned = loop.plan_program(config, task, nets, frozen, devices)
    batch = abstract_batch(config, task.needs_images(config))
    places = sharding.batch_sharding(planned.mesh)
    stacked = {  # one step's batch: [1 rows ...]
        name: jax.ShapeDtypeStruct((1, *a.shape), a.dtype, sharding=places)
        for name, a in batch.items()
    }
    rows = config.train.batch_size
    options = config.loss[task.group].to_dict()
    cost = flops.count_train_step(nets, task, options, rows, "moments" in batch)
    if stage == "tokenizer":
        cost = judges.add_recipe(cost, config.loss.tokenizer, nets, rows)
    arguments = (planned.abstract, planned.frozen, stacked)
    return PlannedStep(planned.step, arguments, rows, cost)


def plan_sample_step(
    config: ConfigDict,
    stage: str,
    devices: Sequence[jax.Device],
    name: str | None = None,
) -> PlannedStep:
    """Plans the pipeline's program, its batch split, parameters as in training.

    Args:
        name: of the direction; None for the first that the stage enables, or for text
            to image where it enables none.
    """
    nets = make_nets(config)
    mesh = make_mesh(**config.mesh, devices=devices)
    name = name or (*TASKS[stage].directions, MAIN_DIRECTION)[0]
    direction = DIRECTIONS[name]
    options = SampleOptions(**config[direction.section]).check(direction.section)
    size = options.batch_size
    if size % row_parts(mesh):
        raise UserError(
            f"{direction.section}.batch_size is {size}; expected a multiple of "
            f"{row_parts(mesh)}, the parts into which mesh.data and mesh.fsdp split it"
        )
    programs = Programs(nets, config.loss.i2t.text_scale)
    function = functools.partial(getattr(programs, name), options=options)
    groups = {find_provider(g, (stage,)) for g in direction.groups_of(options.solver)}
    params = {group: abstract_group(nets, group) for group in groups}
    side = nets.tokenizer.image_size
    rows = jax.ShapeDtypeStruct((size, nets.dit.tokens), np.int32)
    if direction.takes_images:
        rows = jax.ShapeDtypeStruct((size, side, side, 3), np.float32)
    places = jax.NamedSharding(mesh, ROWS)
    # Parameters are split as in training, since one device may not hold them all.
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = (
        with_shardings(params, sharding.shardings(mesh, params)),
        with_shardings(rows, places),
        with_shardings(key, replicated(mesh)),
        with_shardings(jax.ShapeDtypeStruct((size,), np.int32), places),
    )
    run = {k: getattr(options, k) for k in ("num_steps", "scale", "solver")}
    costs = flops.count_sampling(nets, name, size, **run)
    count = sum(cost.total for cost in costs.values())
    program = jax.jit(in_mesh(mesh, function), out_shardings=places)
    return PlannedStep(program, arguments, size, flops.StepFlops(count, 0))


PLANS = {"train": plan_train_step, "sample": plan_sample_step}


def memory_of(compiled: jax.stages.Compiled) -> dict[str, float]:
    """Returns the GiB that a program takes of one device."""
    stats = compiled.memory_analysis()
    # An output that takes the place of a donated argument costs nothing.
    new = stats.output_size_in_bytes - stats.alias_size_in_bytes
    sizes = {
        "argument_gib": stats.argument_size_in_bytes,
        "temp_gib": stats.temp_size_in_bytes,
    }
    # A program's own code is no small part of it on TPU.
    total = sum(sizes.values()) + new + stats.generated_code_size_in_bytes
    sizes["total_gib"] = total
    return {name: round(size / GIB, 4) for name, size in sizes.items()}


def _too_large(error: Exception) -> dict[str, float | None]:
    """Reads the total off libtpu's refusal of a program for its size."""
    # As in "Used 20.06G of 15.75G hbm".
    total = None
    if needed := re.search(r"(?:\(|Used )(\d+(?:\.\d+)?)([GT])", str(error)):
        total = float(needed[1]) * {"G": 1, "T": 1024}[needed[2]]
    return {"argument_gib": None, "temp_gib": None, "total_gib": total}


def measure_program(
    config: ConfigDict, stage: str, step: str, devices: Sequence[jax.Device]
) -> dict[str, Any]:
    """Compiles a step for the devices; returns its size, its work and its traffic.

    A program that the compiler refuses because it is too large has the total that the
    refusal names, if any, and no collectives.

    Args:
        step: a key of PLANS.

    Raises:
        UserError: where the config does not suit the devices.
    """
    planned = PLANS[step](config, stage, devices)
    begun = time.monotonic()
    collectives = None
    try:
        compiled = planned.program.lower(*planned.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        memory = _too_large(error)
    else:
        memory = memory_of(compiled)
        collectives = hlo.count(compiled.as_text())
    return {
        "devices": len(devices),
        "device_kind": devices[0].device_kind,
        "stage": stage,
        "step": step,
        "global_batch": planned.rows,
        **memory,
        "model_tflops_per_step": round(planned.flops.model / 1e12, 3),
        "recompute_fraction": round(planned.flops.recompute_fraction, 4),
        "collectives": collectives,
        "compile_seconds": round(time.monotonic() - begun, 1),
    }
