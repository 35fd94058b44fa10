"""Runs a part of an evaluation in chunks, measures it, and keeps what was found.

    NAME.json           numbers, protocol, what could not be measured and why
    NAME.png            the first samples
    NAME.captions.json  of image to text, in the form that COCO's server takes
    NAME/               arrays of finished chunks, from which a killed run goes on

NAME ends in a digest of the protocol, so that another protocol is another NAME.
"""

import collections
import importlib.metadata
import json
import logging
import re
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.console
import rich.table

from flowtok_jax.eval import pictures
from flowtok_jax.eval.chunks import Chunks
from flowtok_jax.eval.parts import Measured, Part
from flowtok_jax.runtime import processes
from flowtok_jax.runtime.files import Place, json_sha256, read_json, write_json

PACKAGES = ("flax", "jax", "jaxlib", "numpy", "pillow")
NAMED = 5  # of the records left out


def digest(protocol: dict[str, Any]) -> str:
    """The first 8 digits of a SHA-256."""
    return json_sha256(protocol)[:8]


def name_of(part: Part) -> str:
    """What a part's files are called."""
    source = part.protocol.get("protocol") or part.protocol["data"]
    slug = re.sub(r"[^A-Za-z0-9]+", "_", source).strip("_")[:40]
    return f"{part.name}_{slug}_n{part.count}_{digest(part.protocol)}"


def run_part(part: Part, folder: Place, size: int) -> dict[str, Any]:
    """Computes what is not there yet, and measures; process 0 writes.

    Every process of a run calls it.

    Args:
        size: samples of a chunk.

    Returns:
        In process 0 what the JSON file says.
    """
    name = name_of(part)
    path, begun = folder / f"{name}.json", time.monotonic()
    is_there = np.array([processes.is_first() and path.is_file()])
    if processes.total(is_there).any():
        if not processes.is_first():
            return {}
        logging.info("%s is there; delete it to measure again", path)
        return read_json(path)
    chunks = Chunks(folder / name, part.count, size)
    processes.first_does(lambda: chunks.claim(part.protocol))
    computed = _compute(part, chunks)
    middle, result = time.monotonic(), {}
    logging.info("%s: measuring", part.name)  # takes minutes, of many samples

    def measure() -> None:
        arrays = chunks.read_all()
        found = part.measure(arrays)
        result.update(_describe(part, found))
        result["rejected"] = _count(arrays.get("rejected", np.array([], np.str_)))
        times = {"compute": middle - begun, "measure": time.monotonic() - middle}
        seconds = {key: round(value, 1) for key, value in times.items()}
        result["seconds"] = {**seconds, "computed_samples": computed}
        pictures.save_png(folder / f"{name}.png", part.picture(arrays))
        for end, value in found.files.items():
            write_json(folder / f"{name}.{end}.json", value)
        write_json(path, result)

    processes.first_does(measure)
    return result


def _compute(part: Part, chunks: Chunks) -> int:
    """Computes the chunks that are missing; how many samples that were."""
    count = len(chunks.ranges)
    missing = chunks.missing() if processes.is_first() else np.zeros(count, bool)
    missing = processes.total(missing.astype(np.int32)).astype(bool)
    done = sum(len(r) for r, m in zip(chunks.ranges, missing, strict=True) if not m)
    if done:
        logging.info("%s goes on: %d of %d are there", part.name, done, part.count)
    begun, computed = time.monotonic(), 0
    for number in np.flatnonzero(missing).tolist():
        rows = chunks.ranges[number]
        arrays = part.compute(rows)
        processes.first_does(lambda n=number, a=arrays: chunks.write(n, a))
        computed += len(rows)
        speed = computed / (time.monotonic() - begun)
        progress = part.name, done + computed, part.count, speed
        logging.info("%s %d/%d, %.1f samples/s", *progress)
    return computed


def _count(rejected: np.ndarray) -> dict[str, int]:
    """How many records were left out for each reason; the first ones are named."""
    lines = rejected.tolist()
    for line in lines[:NAMED]:
        logging.warning("left out: %s", line.replace("\t", " "))
    reasons = collections.Counter(line.split("\t")[0] for line in lines)
    return dict(sorted(reasons.items()))


def _describe(part: Part, found: Measured) -> dict[str, Any]:
    """What the JSON file says, but for what was left out and for times."""
    result = {
        "name": name_of(part),
        "part": part.name,
        "metrics": found.metrics,
        "not_measured": found.not_measured,
        "protocol": part.protocol,
        "details": found.details,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    return json.loads(json.dumps(result))


def show(results: Sequence[dict[str, Any]], folder: Place) -> None:
    """The numbers as a table, and where the files are."""
    table = rich.table.Table(title=str(folder))
    table.add_column("part")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for result in results:
        for name, value in result["metrics"].items():
            table.add_row(result["part"], name, f"{value:.5g}")
        for name in result["not_measured"]:
            table.add_row(result["part"], name, "not measured")
    console = rich.console.Console()
    console.print(table)
    for result in results:
        lacking = result["not_measured"]
        for reason in dict.fromkeys(lacking.values()):
            names = ", ".join(name for name in lacking if lacking[name] == reason)
            line = f"not measured: {names}: {reason}"
            console.print(line, soft_wrap=True, highlight=False)
        path = folder / f"{result['name']}.json"
        console.print(f"protocol: {path}", soft_wrap=True, highlight=False)
