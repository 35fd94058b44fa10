"""The texts about a run: its config, and the summary of its trained stages."""

import json
import textwrap
from collections.abc import Mapping
from typing import Any

import rich.console
import rich.table

from flowtok_jax.runtime.files import Place
from flowtok_jax.train.loop import StageResult
from flowtok_jax.weights.workdir import SAMPLES, SUMMARY

WIDTH = 88  # columns of the config's text


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
