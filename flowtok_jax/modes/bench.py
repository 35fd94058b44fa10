"""Times the programs that a config asks for, and shows what came out.

Times are of single calls, each waited for, after the calls that warm up; figures are
their medians. The program's compilation and its first call are told apart from them.
"""

import itertools
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.box
import rich.console
import rich.table
from ml_collections import ConfigDict

from flowtok_jax.modes.arguments import Arguments
from flowtok_jax.perf import machine, profile, programs
from flowtok_jax.perf.machine import peak_tflops
from flowtok_jax.perf.work import PARTS, WeightMaker, Work, fitting, sampling, training
from flowtok_jax.runtime.cli import say
from flowtok_jax.runtime.config import for_stage
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import to_place, write_json
from flowtok_jax.train import loop
from flowtok_jax.weights.place import open_weights

FILE = "bench.json"


def run(arguments: Arguments) -> int:
    """Times the programs, and says the report as one JSON object."""
    flags = arguments.flags
    say(json.dumps(bench(arguments.config(), flags.checkpoint, flags.workdir)))
    return 0


class BenchOptions(NamedTuple):
    """What is measured; the values are explained in configs/default.py."""

    parts: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    num_steps: tuple[int, ...]
    repeats: int
    warmup: int
    devices: int
    profile: bool

    def check(self) -> "BenchOptions":
        """Itself, or a UserError that names what is wrong."""
        for part in self.parts:
            if part not in PARTS:
                raise UserError(
                    f"bench.parts has {part!r}; wanted some of {', '.join(PARTS)}"
                )
        for field in ("parts", "batch_sizes", "num_steps"):
            if not getattr(self, field):
                raise UserError(f"bench.{field} is empty; wanted at least one value")
        for field in ("batch_sizes", "num_steps"):
            for value in getattr(self, field):
                if not isinstance(value, int) or value < 1:
                    raise UserError(
                        f"bench.{field} has {value!r}; wanted whole numbers from 1"
                    )
        for field in ("repeats", "warmup"):
            if getattr(self, field) < 1:
                raise UserError(
                    f"bench.{field} is {getattr(self, field)}; wanted at least 1"
                )
        if not 0 <= self.devices <= jax.device_count():
            raise UserError(
                f"bench.devices is {self.devices}; wanted 1 to {jax.device_count()}, "
                "the devices here, or 0 for all of them"
            )
        return self


def _check(config: ConfigDict, options: BenchOptions) -> None:
    """Finds what can be told wrong before the first program takes its minutes."""
    count = options.devices or jax.device_count()
    for part, rows in itertools.product(options.parts, options.batch_sizes):
        if part == "train":
            own = for_stage(config, programs.choose_stage(config))
            own.train.batch_size = rows
            loop.check(own)
        elif rows % count:
            raise UserError(
                f"{part} at batch {rows} does not divide over {count} devices; wanted "
                "multiples of that in bench.batch_sizes, or another bench.devices"
            )


def _works(
    config: ConfigDict, options: BenchOptions, weights: WeightMaker
) -> Iterator[tuple[Work, int]]:
    """Every program wanted, compiled at its turn, and how many devices it has."""
    some = jax.devices()[: options.devices or None]
    for part in options.parts:
        for rows in options.batch_sizes:
            if part == "train":
                yield training(config, rows, jax.devices(), weights), jax.device_count()
                continue
            for steps in options.num_steps:
                yield sampling(config, part, rows, steps, some, weights), len(some)


def _timed(call: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and of all this process's cores."""
    begun, spent = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - begun, time.process_time() - spent


def _rates(work: Work, seconds: list[float], devices: int) -> dict[str, Any]:
    """Of the median call; MFU is model FLOPs over the devices' bfloat16 peak."""
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


def measure(work: Work, options: BenchOptions, devices: int) -> dict[str, Any]:
    """Runs a program: its times, its rates, its memory; its profile where wanted."""
    with fitting(f"{work.part} at batch {work.rows}"):
        call = work.start()
        first, _ = _timed(call)
        for _ in range(options.warmup - 1):
            call()
        times = [_timed(call) for _ in range(options.repeats)]
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
        "memory": {"program_gib": work.program_gib} | machine.peak_memory(used),
        "load_average": [round(x, 2) for x in os.getloadavg()],
    }
    if options.profile and work.costs:
        result["profile"] = profile.by_module(
            call, work.compiled.as_text(), work.costs, devices
        )
    return result


def bench(
    config: ConfigDict, checkpoint: str | None, workdir: str | None
) -> dict[str, Any]:
    """Measures all that `config.bench` asks for; shows tables, writes bench.json.

    Args:
        checkpoint: where weights are; without one they are random, of the config's
            sizes.
        workdir: where bench.json goes, if anywhere.

    Raises:
        UserError: for a config that cannot be, or a program too large.
    """
    options = BenchOptions(**config.bench).check()
    weights = open_weights(checkpoint) if checkpoint else None
    _check(config, options)
    results = []
    try:
        for work, devices in _works(config, options, WeightMaker(weights)):
            results.append(measure(work, options, devices))
    finally:  # what was measured stays, where the next program is too large
        if results:
            report = _report(config, checkpoint, results)
            if workdir:
                write_json(to_place(workdir) / FILE, report)
            show(report)
    return report


def _report(
    config: ConfigDict, checkpoint: str | None, results: list[dict[str, Any]]
) -> dict[str, Any]:
    """The results with what they were measured on."""
    return {
        "command": shlex.join(["python", "-m", "flowtok_jax.main", *sys.argv[1:]]),
        "machine": machine.describe(jax.devices()),
        "precision": config.compute.dtype,
        "attention": config.compute.attention,
        "weights": checkpoint or "random",
        "image_size": config.tokenizer.image_size,
        "dit": config.dit.to_dict(),
        "runs": results,
    }


def show(report: dict[str, Any]) -> None:
    """The report as tables of at most 80 columns."""
    console = rich.console.Console(width=80)
    on = report["machine"]
    table = rich.table.Table(
        title=f"{on['devices']} x {on['device_kind']}, {report['precision']}",
        box=rich.box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("part", no_wrap=True)
    names = ("batch", "steps", "p50 s", "p95 s", "images/s", "TFLOP/s", "MFU", "GiB")
    for name in names:
        table.add_column(name, justify="right")
    for run in report["runs"]:
        steps, times = run["options"].get("num_steps", ""), run["seconds"]
        table.add_row(
            run["part"],
            *(str(run["batch_size"]), str(steps)),
            *(f"{times[p]:.3f}" for p in ("p50", "p95")),
            f"{run['images_per_sec']:.3g}",
            f"{run['tflops_per_sec']:.3g}",
            "-" if run["mfu"] is None else f"{100 * run['mfu']:.1f} %",
            f"{run['memory']['program_gib']:.2f}",
        )
    console.print(table)
    for run in report["runs"]:
        if "profile" in run:
            console.print(_profile_table(run))


def _profile_table(run: dict[str, Any]) -> rich.table.Table:
    found = run["profile"]
    table = rich.table.Table(
        title=f"{run['part']} at batch {run['batch_size']}: {found['seconds']:.2f} s",
        box=rich.box.SIMPLE,
    )
    table.add_column("module")
    for name in ("seconds", "share", "GFLOP", "GFLOP/s"):
        table.add_column(name, justify="right")
    for row in found["modules"]:
        if row["share"] < 5e-4 and not row["gflop"]:
            continue
        rate = row["gflop"] / row["seconds"] if row["seconds"] else 0
        table.add_row(
            f"{row['network']} {row['part']}",
            f"{row['seconds']:.3f}",
            f"{100 * row['share']:.1f} %",
            f"{row['gflop']:.1f}" if row["gflop"] else "",
            f"{rate:.0f}" if rate else "",
        )
    whole = found["instructions_seconds"]
    share = f"{100 * whole / found['seconds']:.1f} %"
    table.add_row("all instructions", f"{whole:.3f}", share, "", "")
    return table
