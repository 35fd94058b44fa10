"""The texts about a run: its config, its start, the summary of its trained stages."""

import json
import textwrap
from collections.abc import Mapping
from typing import Any

import jax
import rich.console
import rich.table
from ml_collections import ConfigDict

from flowtok_jax.runtime.files import Place
from flowtok_jax.tasks import task_of
from flowtok_jax.train.loop import StageResult
from flowtok_jax.weights.workdir import CONFIG, SAMPLES, SUMMARY, newest_steps

WIDTH = 80  # columns of the config's text
EVALUATION = "evaluation"  # key of a summary: what was measured at the end


def config_text(config: Mapping[str, Any]) -> str:
    """Formats a config for reading, a paragraph a section."""
    return "\n".join(
        textwrap.fill(
            f"{section}: {_inline(values)}",
            WIDTH,
            subsequent_indent="    ",
            break_long_words=False,  # paths stay whole
        )
        for section, values in config.items()
    )


def describe_start(
    stages: Mapping[str, ConfigDict], workdir: Place, words: int
) -> list[str]:
    """Returns the lines that a run begins with: where, on what, how far it is.

    Args:
        stages: the config of each stage, in order.
        words: tokens of the vocabulary.
    """
    steps = newest_steps(workdir)
    names = {stage: task_of(own, stage).name for stage, own in stages.items()}
    first = next(iter(stages.values()))
    said = "goes on" if any(name in steps for name in names.values()) else "new"
    held_out = f"{100 * first.data.held_out:g} % of it, held out"
    looked_at = first.data.eval or (held_out if first.data.held_out else "the same")
    lines = [
        f"run             {workdir}, {said}",
        f"config          {CONFIG} there; --print_config shows it",
        f"data            {first.data.train}; looked at: {looked_at}",
        f"images, texts   {first.tokenizer.image_size} px, {first.latent.tokens} "
        f"tokens; the vocabulary has {words}",
        f"devices         {jax.device_count()} x {jax.devices()[0].device_kind}, "
        f"{first.compute.dtype}",
    ]
    for stage, config in stages.items():
        done = steps.get(names[stage], 0)
        text = f"{config.train.num_steps} steps of {config.train.batch_size}"
        if done >= config.train.num_steps:
            text += ": done"
        elif done:
            text += f": goes on at {done}"
        lines.append(f"{names[stage]:<15} {text}")
    lines.append("Ctrl-C          saves and ends; the same command goes on")
    return lines


def _inline(value: Any) -> str:
    """Formats a JSON value as `key=value, section(key=value)`."""
    if not isinstance(value, dict):
        return json.dumps(value)
    parts = (
        f"{k}({_inline(v)})" if isinstance(v, dict) else f"{k}={_inline(v)}"
        for k, v in value.items()
    )
    return ", ".join(parts)


def merge_summary(
    stored: Mapping[str, Any], results: Mapping[str, StageResult]
) -> dict[str, Any]:
    """Adds stages to the summary that earlier runs left, which may be empty."""
    seconds = {stage: round(r.seconds, 1) for stage, r in results.items()}
    digests = {stage: r.sha256 for stage, r in results.items()}
    rejected = {stage: r.rejected for stage, r in results.items() if r.rejected}
    return {
        "params_sha256": stored.get("params_sha256", {}) | digests,
        "seconds": stored.get("seconds", {}) | seconds,
        "rejected": stored.get("rejected", {}) | rejected,
    }


def show_summary(summary: Mapping[str, Any], workdir: Place) -> None:
    """Prints a summary as a table, and where the run's pictures are."""
    table = rich.table.Table(title=str(workdir / SUMMARY))
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in summary.items():
        if name == EVALUATION:  # said in sentences
            continue
        if isinstance(value, dict):
            for stage, part in value.items():
                table.add_row(f"{name} {stage}", _cell(part))
        else:
            text = f"{value:.4f}" if isinstance(value, float) else str(value)
            table.add_row(name, text)
    # Square brackets are text: of a path, and of an extra such as flowtok_jax[eval].
    console = rich.console.Console(markup=False)
    console.print(table)
    for path in sorted((workdir / SAMPLES).glob("*.png")):
        # Paths stay whole, to be clicked or copied.
        console.print(f"picture: {path}", soft_wrap=True, highlight=False)


def _cell(value: str | float | dict) -> str:
    """Formats a digest, seconds, or counts of what was rejected."""
    if isinstance(value, dict):
        return ", ".join(f"{reason} {n}" for reason, n in value["counts"].items())
    # The beginning of a digest is enough to tell two apart.
    return value[:12] if isinstance(value, str) else f"{value:.1f}"
