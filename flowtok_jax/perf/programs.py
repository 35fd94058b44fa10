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
from flowtok_jax.tasks import abstract_group
from flowtok_jax.perf import flops, hlo
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.mesh import in_mesh, make_mesh, replicated
from flowtok_jax.sampling import Programs, SampleOptions
from flowtok_jax.tasks import TASKS
from flowtok_jax.train import loop, sharding
from flowtok_jax.train.checkpoint import with_shardings

MAIN_STAGE = "t2i"
GIB = 2**30


class Step(NamedTuple):
    """A program with the shapes of its arguments, and what it computes."""

    program: Any
    arguments: tuple
    rows: int
    flops: flops.StepFlops


def choose_stage(config: ConfigDict) -> str:
    """The config's only stage; of several, t2i if it is among them, else the last."""
    return MAIN_STAGE if MAIN_STAGE in config.stages else config.stages[-1]


def train_step(config: ConfigDict, stage: str, devices: Sequence[jax.Device]) -> Step:
    """The loop's own step."""
    nets = make_nets(config)
    frozen = {group: abstract_group(nets, group) for group in TASKS[stage].frozen}
    run = loop.plan_run(config, stage, nets, frozen, devices)
    batch = abstract_batch(config)
    places = sharding.batch_sharding(run.mesh)
    stacked = {
        name: jax.ShapeDtypeStruct((1, *a.shape), a.dtype, sharding=places)
        for name, a in batch.items()
    }
    rows = config.train.batch_size
    cost = flops.train_step(nets, stage, rows, "moments" in batch)
    return Step(run.step, (run.abstract, run.frozen, stacked), rows, cost)


def sample_step(config: ConfigDict, stage: str, devices: Sequence[jax.Device]) -> Step:
    """The pipeline's program with its batch split, parameters as in training."""
    nets, mesh = make_nets(config), make_mesh(**config.mesh, devices=devices)
    captions = stage == "i2t"
    name = "caption" if captions else "sample"
    options = SampleOptions(**config[name]).check(name)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if options.batch_size % parts:
        raise UserError(
            f"{name}.batch_size is {options.batch_size}; wanted a multiple of {parts}, "
            "the parts into which mesh.data and mesh.fsdp split it"
        )
    programs = Programs(nets, config.loss.i2t.text_scale)
    function = programs.image_to_text if captions else programs.text_to_image
    function = functools.partial(function, options=options)
    groups = ("i2t", "text_tokenizer") if captions else ("clip", "t2i")
    places = jax.NamedSharding(mesh, ROWS)
    params = {g: abstract_group(nets, g) for g in (*groups, "tokenizer")}
    size, side = options.batch_size, nets.tokenizer.image_size
    data = {
        False: jax.ShapeDtypeStruct((size, nets.dit.tokens), np.int32),
        True: jax.ShapeDtypeStruct((size, side, side, 3), np.float32),
    }[captions]
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = (
        with_shardings(params, sharding.shardings(mesh, params)),
        with_shardings(data, places),
        with_shardings(key, replicated(mesh)),
        with_shardings(jax.ShapeDtypeStruct((size,), np.int32), places),
    )
    count = flops.image_to_text if captions else flops.text_to_image
    run = {k: getattr(options, k) for k in ("num_steps", "scale", "solver")}
    cost = flops.StepFlops(count(nets, size, **run), 0)
    program = jax.jit(in_mesh(mesh, function), out_shardings=places)
    return Step(program, arguments, size, cost)


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
