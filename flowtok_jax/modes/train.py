"""Training all the stages of a config in one workdir, and the summary at the end."""

import functools
import json
import logging
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import rich.console
import rich.table
from ml_collections import ConfigDict

from flowtok_jax.data.loader import open_source
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.eval import pictures
from flowtok_jax.eval.demo import summarize_scenes
from flowtok_jax.eval.previews import make_preview
from flowtok_jax.models.build import init_networks, make_nets
from flowtok_jax.modes.arguments import Arguments
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.cli import join_processes
from flowtok_jax.runtime.config import for_stage
from flowtok_jax.runtime.errors import StoreError, UserError
from flowtok_jax.runtime.files import Place, reaching, read_json, write_json
from flowtok_jax.runtime.mesh import make_mesh
from flowtok_jax.runtime.processes import Preemption, first_does, is_first
from flowtok_jax.tasks import TASKS, abstract_group, abstract_groups
from flowtok_jax.train import loop
from flowtok_jax.weights.place import (
    Weights,
    inherit_vocabulary,
    load_groups,
    load_start,
    open_start,
    open_weights,
    store_random_clip,
)
from flowtok_jax.weights.workdir import (
    CONFIG,
    PREEMPTED,
    SAMPLES,
    SUMMARY,
    open_vocabulary,
    open_workdir,
)

WRAP = {"subsequent_indent": "    ", "break_long_words": False}


def _inline(value: Any) -> str:
    """A JSON value as `key=value, section(key=value)`, for reading."""
    if not isinstance(value, dict):
        return json.dumps(value)
    parts = (
        f"{k}({_inline(v)})" if isinstance(v, dict) else f"{k}={_inline(v)}"
        for k, v in value.items()
    )
    return ", ".join(parts)


def run(arguments: Arguments) -> int:
    """Trains what the config asks for."""
    config = arguments.training_config()
    workdir = arguments.workdir()
    join_processes(arguments.flags)
    try:
        train(config, workdir)
    except loop.PreemptedError as error:
        logging.warning(
            "asked to end: %s saved at step %d (%s); the same command goes on",
            *error.args,
            workdir / PREEMPTED,
        )
    return 0


def train(config: ConfigDict, workdir: Place) -> None:
    """Trains every stage of the config that is not finished, then sums up."""
    for stage in config.stages:
        if stage not in TASKS:
            raise UserError(f"stages has {stage!r}; wanted some of {', '.join(TASKS)}")
        _check_stage(for_stage(config, stage), stage)
    start = functools.cache(functools.partial(open_start, config))
    first_does(lambda: _open(config, workdir, start))
    vocabulary = open_vocabulary(workdir, config)
    init_clip = functools.partial(init_networks, make_nets(config), ("clip",))
    store_random_clip(config, workdir, start, init_clip)
    try:
        with Preemption() as preemption:
            results = {
                stage: _train_stage(
                    for_stage(config, stage), stage, workdir, vocabulary, preemption
                )
                for stage in config.stages
            }
    except loop.PreemptedError as error:
        where = dict(zip(("stage", "step"), error.args, strict=True))
        first_does(lambda: write_json(workdir / PREEMPTED, where))
        raise
    summary = {
        "seconds": {s: round(r.seconds, 1) for s, r in results.items()},
        "params_sha256": {s: r.sha256 for s, r in results.items()},
        "rejected": {s: r.rejected for s, r in results.items() if r.rejected},
    }
    _summarize(config, workdir, summary)


def _open(
    config: ConfigDict, workdir: Place, start: Callable[[], Weights | None]
) -> None:
    """Makes the workdir this config's, and says so where it is new."""
    inherited = functools.partial(inherit_vocabulary, config, start)
    known_workdir = (workdir / CONFIG).is_file()
    try:
        with reaching(workdir):
            open_workdir(workdir, config, inherited)
            (workdir / PREEMPTED).unlink(missing_ok=True)
    except StoreError as error:  # at the start it is a mistake, not bad luck
        raise UserError(str(error)) from error
    if not known_workdir:
        for section, values in read_json(workdir / CONFIG).items():
            sys.stdout.write(
                textwrap.fill(f"{section}: {_inline(values)}", 88, **WRAP) + "\n"
            )


def _check_stage(config: ConfigDict, stage: str) -> None:
    """Finds mistakes before the workdir is made this config's."""
    loop.check(config)
    for spec in {config.data.train, config.data.eval or config.data.train}:
        content = open_source(config, spec).content
        if content not in TASKS[stage].contents:
            raise UserError(
                f"stage {stage} needs {' or '.join(TASKS[stage].contents)} data; "
                f"{spec} has {content}"
            )


def _train_stage(
    config: ConfigDict,
    stage: str,
    workdir: Place,
    vocabulary: Vocabulary,
    preemption: Preemption,
) -> loop.StageResult:
    task = TASKS[stage]
    result = loop.finished(config, task, workdir)
    if result is not None:
        return result
    if preemption.noted:  # while the stage before was at its end
        raise loop.PreemptedError(stage, 0)
    nets, mesh = make_nets(config), make_mesh(**config.mesh)
    start = open_start(config)
    places = [open_weights(workdir)] + ([start] if start else [])
    wanted = abstract_groups(nets, task.frozen.values())
    groups = load_groups(wanted, nets, places)
    frozen = {role: groups[group] for role, group in task.frozen.items()}
    return loop.train(
        config,
        task,
        workdir,
        nets=nets,
        frozen=frozen,
        vocabulary=vocabulary,
        evaluate=make_preview(config, task, vocabulary, mesh),
        preemption=preemption,
        load_start=lambda: load_start(stage, abstract_group(nets, stage), nets, start),
    )


def _summarize(config: ConfigDict, workdir: Place, summary: dict) -> None:
    """Writes summary.json and the pictures, unless those of these weights are there."""
    path = workdir / SUMMARY
    stored = read_json(path) if path.is_file() else {}
    digests = stored.get("params_sha256", {}) | summary["params_sha256"]
    if digests != stored.get("params_sha256"):
        seconds = stored.get("seconds", {}) | summary["seconds"]
        rejected = stored.get("rejected", {}) | summary["rejected"]
        summary = {"params_sha256": digests, "seconds": seconds, "rejected": rejected}
        grids = {}
        if config.data.eval.startswith("shapes") and set(digests) == set(TASKS):
            mesh = make_mesh(**config.mesh)
            values, grids = summarize_scenes(
                FlowTok.from_weights(open_weights(workdir), config, mesh),
                samples=config.eval.samples,
                seed=config.train.seed,
            )
            summary = values | summary
        if is_first():
            for name, grid in grids.items():
                pictures.save_png(workdir / SAMPLES / f"{name}.png", grid)
            write_json(path, summary)
    if is_first():
        _show(read_json(path), workdir)


def _short(value: str | float | dict) -> str:
    """A digest, seconds, or what was rejected, as a cell of the table."""
    if isinstance(value, dict):
        return ", ".join(f"{reason} {n}" for reason, n in value["counts"].items())
    return value[:12] if isinstance(value, str) else f"{value:.1f}"


def _show(summary: dict, workdir: Place) -> None:
    """The summary as a table."""
    table = rich.table.Table(title=str(workdir / SUMMARY))
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in summary.items():
        if isinstance(value, dict):
            for stage, part in value.items():
                table.add_row(f"{name} {stage}", _short(part))
        else:
            text = f"{value:.4f}" if isinstance(value, float) else str(value)
            table.add_row(name, text)
    console = rich.console.Console()
    console.print(table)
    for path in sorted((workdir / SAMPLES).glob("*.png")):
        console.print(f"picture: {path}", soft_wrap=True, highlight=False)
