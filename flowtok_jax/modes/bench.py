"""--mode=bench: how fast the programs run that a config asks for.

    python -m flowtok_jax.main --mode=bench --config=configs/xl.py
    python -m flowtok_jax.main --mode=bench --config.bench.suite=full

Times are of single calls, each waited for, after the calls that warm up; figures are
their medians. The program's compilation and its first call are told apart from them.
Tables go to stdout; the last line is one JSON object, also in WORKDIR/bench.json. A
suite measures rows of its own (perf/suite_table.py), kept in WORKDIR/bench_suite.json.
"""

import itertools
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from flowtok_jax.modes.arguments import RUNS, Arguments
from flowtok_jax.perf import suite, suite_table, tables, work
from flowtok_jax.perf.machine import describe_machine
from flowtok_jax.perf.programs import choose_stage
from flowtok_jax.perf.suite_rows import RowTimer
from flowtok_jax.runtime.cli import say, typed_command
from flowtok_jax.runtime.compilation_cache import fresh_cache
from flowtok_jax.runtime.config import for_stage
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place, check_writable, to_place, write_json
from flowtok_jax.tasks import task_of
from flowtok_jax.train.check import check_stage
from flowtok_jax.weights.place import Weights

FILE = "bench.json"
LISTS = ("parts", "batch_sizes", "num_steps")


class BenchOptions(NamedTuple):
    """The choices of config.bench; configs/default.py explains them."""

    parts: tuple[str, ...]
    batch_sizes: tuple[int, ...]
    num_steps: tuple[int, ...]
    repeats: int
    warmup: int
    devices: int
    profile: bool
    suite: str
    minutes: float

    def check(self) -> "BenchOptions":
        """Returns the options unchanged, or raises a UserError naming what is wrong."""
        for name in LISTS:
            if not getattr(self, name):
                raise UserError(f"bench.{name} is empty; expected at least one value")
        for part in self.parts:
            if part not in work.PARTS:
                known = ", ".join(work.PARTS)
                raise UserError(f"bench.parts has {part!r}; expected some of {known}")
        for name, values in self._asdict().items():
            for value in values if name in LISTS[1:] else ():
                if not isinstance(value, int) or value < 1:
                    raise UserError(
                        f"bench.{name} has {value!r}; expected whole numbers from 1"
                    )
            if name in ("repeats", "warmup") and values < 1:
                raise UserError(f"bench.{name} is {values}; expected at least 1")
        if self.suite not in ("", *suite_table.SUITES):
            known = ", ".join(suite_table.SUITES)
            raise UserError(f"bench.suite is {self.suite!r}; expected one of {known}")
        if not self.minutes > 0:
            raise UserError(f"bench.minutes is {self.minutes}; expected more than 0")
        if not 0 <= self.devices <= jax.device_count():
            raise UserError(
                f"bench.devices is {self.devices}; expected 1 to {jax.device_count()}, "
                "the devices here, or 0 for all of them"
            )
        return self


def run(arguments: Arguments) -> int:
    """Times the programs, and says the report as one JSON object."""
    flags = arguments.flags
    config = arguments.config()
    if named := config.bench.suite:
        if flags.checkpoint:
            raise UserError(
                f"--checkpoint is given, and bench.suite={named}, whose weights are "
                "random; expected one of them"
            )
        workdir = to_place(flags.workdir or f"{RUNS}/bench_{named}")
        say(json.dumps(bench_suite(config, workdir)))
        return 0
    weights = arguments.weights if flags.checkpoint else None
    workdir = to_place(flags.workdir) if flags.workdir else None
    say(json.dumps(bench(config, weights, workdir)))
    return 0


def bench(
    config: ConfigDict, weights: Weights | None, workdir: Place | None
) -> dict[str, Any]:
    """Measures all that `config.bench` asks for; shows tables, writes bench.json.

    Without weights the parameters are random, of the config's sizes.

    Raises:
        UserError: for a config that cannot be, or a program too large.
    """
    options = BenchOptions(**config.bench).check()
    _check_rows(config, options)
    if workdir:
        check_writable(workdir / FILE)
    chosen = {"repeats": options.repeats, "warmup": options.warmup}
    chosen["profiles"] = options.profile
    results = []
    try:
        for one, devices in _works(config, options, work.WeightMaker(weights)):
            results.append(work.time_work(one, devices=devices, **chosen))
    finally:  # what was measured stays, where the next program is too large
        if results:
            report = {
                "command": typed_command(),
                "machine": describe_machine(jax.devices()),
                "precision": config.compute.dtype,
                "attention": config.compute.attention,
                "weights": str(weights.place) if weights else "random",
                "image_size": config.tokenizer.image_size,
                "dit": config.dit.to_dict(),
                "runs": results,
            }
            if workdir:
                write_json(workdir / FILE, report)
            tables.show_bench(report)
    return report


def bench_suite(config: ConfigDict, workdir: Place) -> dict[str, Any]:
    """Measures rows of the suite that `config.bench` names; shows a table.

    Raises:
        UserError: for options that are wrong, a CPU that would take hours, or a workdir
            with another suite's rows.
    """
    options = BenchOptions(**config.bench).check()
    device = jax.devices()[0]
    chosen = suite_table.SUITES[options.suite]
    if options.suite == suite_table.FULL and device.platform == "cpu":
        raise UserError(
            f"bench.suite is {options.suite!r} and the device a CPU, which would take "
            f"hours; expected a GPU or TPU, or --config.bench.suite={suite_table.SMALL}"
        )
    check_writable(workdir / suite.FILE)
    calls = {"repeats": options.repeats, "warmup": options.warmup}
    others = {k: v for k, v in config.to_dict().items() if k != "bench"}
    settings = [others, calls, chosen._asdict()]
    file = suite.SuiteFile(workdir / suite.FILE, options.suite, settings)
    rows = suite_table.rows_for(chosen.rows, device.platform)
    with fresh_cache():
        measure = RowTimer(config, chosen, **calls).measure
        report = suite.run_suite(rows, measure, file, options.minutes)
    report |= {"command": typed_command(), "minutes": options.minutes}
    tables.show_suite(report)
    return report


def _check_rows(config: ConfigDict, options: BenchOptions) -> None:
    """Refuses what can be told wrong before the first program takes its minutes."""
    count = options.devices or jax.device_count()
    for part, rows in itertools.product(options.parts, options.batch_sizes):
        if part == "train":
            stage = choose_stage(config)
            own = for_stage(config, stage)
            own.train.batch_size = rows
            check_stage(own, task_of(own, stage))
        elif rows % count:
            raise UserError(
                f"{part} at batch {rows} does not divide over {count} devices; "
                "expected multiples of that in bench.batch_sizes, or another "
                "bench.devices"
            )


def _works(
    config: ConfigDict, options: BenchOptions, weights: work.WeightMaker
) -> Iterator[tuple[work.Work, int]]:
    """Yields each program, compiled at its turn, and the number of its devices."""
    some = jax.devices()[: options.devices or None]
    for part, rows in itertools.product(options.parts, options.batch_sizes):
        if part == "train":  # on the config's mesh, over all devices
            one = work.training_work(config, rows, jax.devices(), weights)
            yield one, jax.device_count()
            continue
        for steps in options.num_steps:
            one = work.sampling_work(config, part, rows, steps, some, weights)
            yield one, len(some)
