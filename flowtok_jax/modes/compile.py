"""--mode=compile: the size and work of a step on hardware that is not there.

    python -m flowtok_jax.main --mode=compile --config=configs/h.py --topology=a100:8

A summary for a person goes to stderr; the last line of stdout is one JSON object.
"""

import json
import logging
from typing import Any

from ml_collections import ConfigDict

from flowtok_jax.modes.arguments import Arguments
from flowtok_jax.perf import topologies
from flowtok_jax.perf.machine import GIB
from flowtok_jax.perf.programs import PLANS, choose_stage, measure_program
from flowtok_jax.runtime.cli import say
from flowtok_jax.runtime.config import for_stage
from flowtok_jax.runtime.mesh import make_mesh

STEPS = tuple(PLANS)


def run(arguments: Arguments) -> int:
    """Compiles the step of a config for a topology."""
    config = arguments.config()
    flags = arguments.flags
    topologies.prepare_environment()  # before any backend starts
    result = report(config, flags.topology, flags.step)
    for line in report_lines(result):
        logging.info(line)
    say(json.dumps(result))
    return 0


def report(config: ConfigDict, topology: str, step: str) -> dict[str, Any]:
    """Measures a config's step on a topology, and whether it fits.

    Raises:
        UserError: where config or topology cannot be.
    """
    kind = topologies.KINDS[topologies.parse_topology(topology)[0]]
    devices = topologies.devices(topology)
    stage = choose_stage(config)
    config = for_stage(config, stage)
    measures = measure_program(config, stage, step, devices)
    # Without collectives the compiler refused the program for its size.
    compiled = measures["collectives"] is not None
    fits = compiled and measures["total_gib"] <= kind.hbm_gib * kind.part
    limits = {"hbm_gib": kind.hbm_gib, "fits": fits}
    mesh = make_mesh(**config.mesh, devices=devices)
    settings = {"remat": config.compute.remat, "mesh": dict(mesh.shape)}
    return {"topology": topology, **measures, **limits, **settings}


def report_lines(result: dict[str, Any]) -> list[str]:
    """Formats a report for reading, at most 80 columns wide."""
    axes = " x ".join(f"{axis} {size}" for axis, size in result["mesh"].items())
    fits = "fits" if result["fits"] else "DOES NOT FIT"
    total = "unknown" if result["total_gib"] is None else f"{result['total_gib']:.2f}"
    lines = [
        f"{result['stage']}, {result['step']} step at batch {result['global_batch']}",
        f"on    {result['devices']} x {result['device_kind']} ({result['topology']})",
        f"mesh  {axes}; remat {result['remat']}",
        f"size  {total} GiB of {result['hbm_gib']} a device: {fits}",
    ]
    if result["collectives"] is not None:
        lines[-1] += (
            f" (arguments {result['argument_gib']:.2f}, "
            f"temporary {result['temp_gib']:.2f})"
        )
    # All devices together, unlike the sizes above.
    lines.append(
        f"work  {result['model_tflops_per_step']:.1f} TFLOP a step, "
        f"{100 * result['recompute_fraction']:.1f} % of that computed again"
    )
    for name, moved in (result["collectives"] or {}).items():
        gib = moved["bytes"] / GIB
        lines.append(f"moves {name} {moved['count']} times, {gib:.3f} GiB a device")
    return [*lines, f"took  {result['compile_seconds']} s to compile"]
