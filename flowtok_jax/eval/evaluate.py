"""An evaluation in parts: computed in chunks, measured, and kept with its protocol.

    NAME.json             numbers, protocol, what could not be measured and why
    NAME.png              the first samples
    NAME.captions.json    of image to text, in the form that COCO's server takes
    NAME/protocol.json    what the numbers depend on; another protocol is refused
    NAME/00000-01000.npz  arrays of samples 0 to 999, from which a killed run goes on

NAME ends in a digest of the protocol, so that another protocol is another NAME.
"""

import abc
import importlib.metadata
import io
import json
import logging
import re
import time
import zipfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.console
import rich.table

from flowtok_jax.eval import pictures
from flowtok_jax.runtime import processes
from flowtok_jax.runtime.claims import claim
from flowtok_jax.runtime.files import (
    Place,
    json_sha256,
    read_bytes,
    read_json,
    write_bytes,
    write_json,
)

PROTOCOL = "protocol.json"
PACKAGES = ("flax", "jax", "jaxlib", "numpy", "pillow")
SHOWN = 16  # samples that the picture shows
COLUMNS = 8  # samples in a row of the picture
NO_WEIGHTS = (
    "eval.weights names no metric weights; expected a directory made by `python -m "
    "flowtok_jax.convert --inception=FILE --lpips=FILES --clip_score=DIR --out=DIR`"
)

Arrays = dict[str, np.ndarray]


class Measured(NamedTuple):
    """Numbers of a part of an evaluation, by name.

    Attributes:
        not_measured: name -> reason.
        details: what to say beside the numbers.
        files: what has a JSON file of its own, by the end of the file's name.
    """

    metrics: dict[str, float]
    not_measured: dict[str, str] = {}
    details: dict[str, Any] = {}
    files: dict[str, Any] = {}

    def merge(self, other: "Measured") -> "Measured":
        """Joins the numbers of both."""
        return Measured(*(a | b for a, b in zip(self, other, strict=True)))


class Part(abc.ABC):
    """Something to evaluate: arrays of some samples at a time, then numbers of all.

    Attributes:
        name: as in `eval.parts` of a config.
        groups: of parameters that the numbers depend on.
        protocol: all that the numbers depend on, for JSON.
        count: number of samples.
    """

    name: str
    groups: tuple[str, ...]
    protocol: dict[str, Any]
    count: int

    @abc.abstractmethod
    def compute(self, rows: range) -> Arrays:
        """Computes arrays of the samples with these numbers; every process calls it.

        `shown` has up to SHOWN images for the picture.
        """

    @abc.abstractmethod
    def measure(self, arrays: Arrays) -> Measured:
        """Computes the numbers of all the samples' arrays; process 0 alone calls it."""

    @abc.abstractmethod
    def picture(self, arrays: Arrays) -> np.ndarray:
        """Draws some of the samples."""


class Chunks:
    """Arrays of `count` samples computed so far, in files of `size` samples."""

    def __init__(self, folder: Place, count: int, size: int):
        self.folder = folder
        # The last chunk has what is left.
        starts = range(0, count, size)
        self.ranges = [range(start, min(start + size, count)) for start in starts]

    def claim(self, protocol: dict[str, Any]) -> None:
        """Makes the folder that of a protocol.

        Raises:
            UserError: if the folder is another protocol's, naming what differs.
        """
        claim(self.folder / PROTOCOL, protocol, cure="move it away")

    def _path(self, number: int) -> Place:
        rows = self.ranges[number]
        return self.folder / f"{rows.start:05d}-{rows.stop:05d}.npz"

    def missing(self) -> np.ndarray:
        """Tells which chunks have to be computed."""
        # Reading a whole chunk also finds the damaged ones.
        return np.array([self.read(i) is None for i in range(len(self.ranges))])

    def write(self, number: int, arrays: Arrays) -> None:
        """Stores a chunk, whole or not at all."""
        # NumPy wants a file to seek in, which a store has not.
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_bytes(self._path(number), buffer.getvalue())

    def read(self, number: int) -> Arrays | None:
        """Reads a chunk; None if it does not exist, or is damaged, which is logged."""
        path = self._path(number)
        if not path.is_file():
            return None
        data = read_bytes(path)
        try:
            with np.load(io.BytesIO(data)) as file:
                return dict(file)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            logging.warning("%s is damaged (%s) and made again", path, error)
            return None

    def read_all(self) -> Arrays:
        """Reads all the chunks and joins their arrays."""
        parts = [self.read(i) for i in range(len(self.ranges))]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def short_digest(protocol: dict[str, Any]) -> str:
    """Returns the first 8 digits of a protocol's SHA-256."""
    return json_sha256(protocol)[:8]


def name_of(part: Part) -> str:
    """Returns the name of a part's files."""
    # Captions of a protocol, or the source of the images.
    source = part.protocol.get("protocol") or part.protocol["data"]
    slug = re.sub(r"[^A-Za-z0-9]+", "_", source).strip("_")[:40]
    return f"{part.name}_{slug}_n{part.count}_{short_digest(part.protocol)}"


def run_part(part: Part, folder: Place, size: int) -> dict[str, Any]:
    """Computes the chunks that are missing, and measures; process 0 writes.

    Every process of a run calls it.

    Args:
        size: samples of a chunk.

    Returns:
        In process 0 what the JSON file says.
    """
    name = name_of(part)
    path = folder / f"{name}.json"
    begun = time.monotonic()
    is_there = np.array([processes.is_first() and path.is_file()])
    if processes.total(is_there).any():
        if not processes.is_first():
            return {}
        logging.info("%s is there; delete it to measure again", path)
        return read_json(path)
    chunks = Chunks(folder / name, part.count, size)
    # Eight digits may collide: another protocol's folder is refused.
    processes.first_does(lambda: chunks.claim(part.protocol))
    computed = _compute(part, chunks)
    middle = time.monotonic()
    result: dict[str, Any] = {}
    logging.info("%s: measuring", part.name)  # takes minutes, of many samples

    def measure() -> None:
        # From the files, not from memory: a resumed run measures the same bytes.
        arrays = chunks.read_all()
        found = part.measure(arrays)
        result.update(_describe(part, found))
        times = {"compute": middle - begun, "measure": time.monotonic() - middle}
        seconds = {key: round(value, 1) for key, value in times.items()}
        result["seconds"] = {**seconds, "computed_samples": computed}
        pictures.save_png(folder / f"{name}.png", part.picture(arrays))
        for end, value in found.files.items():
            write_json(folder / f"{name}.{end}.json", value)
        # Last: this file says that the part is done.
        write_json(path, result)

    processes.first_does(measure)
    return result


def _compute(part: Part, chunks: Chunks) -> int:
    """Computes the chunks that are missing, and returns how many samples they hold."""
    count = len(chunks.ranges)
    missing = chunks.missing() if processes.is_first() else np.zeros(count, bool)
    # All compute the same chunks, whatever they see of the disk.
    missing = processes.total(missing.astype(np.int32)).astype(bool)
    done = sum(len(r) for r, m in zip(chunks.ranges, missing, strict=True) if not m)
    if done:
        logging.info("%s goes on: %d of %d are there", part.name, done, part.count)
    begun = time.monotonic()
    computed = 0
    for number in np.flatnonzero(missing).tolist():
        rows = chunks.ranges[number]
        arrays = part.compute(rows)
        processes.first_does(lambda n=number, a=arrays: chunks.write(n, a))
        computed += len(rows)
        speed = computed / (time.monotonic() - begun)
        progress = part.name, done + computed, part.count, speed
        logging.info("%s %d/%d, %.1f samples/s", *progress)
    return computed


def _describe(part: Part, found: Measured) -> dict[str, Any]:
    """Returns the content of the JSON file, but for times."""
    result = {
        "name": name_of(part),
        "part": part.name,
        "metrics": found.metrics,
        "not_measured": found.not_measured,
        "protocol": part.protocol,
        "details": found.details,
        "rejected": part.protocol.get("left_out", {}),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    # As it will be read: tuples become lists, keys texts.
    return json.loads(json.dumps(result))


def show_results(results: Sequence[dict[str, Any]], folder: Place) -> None:
    """Prints the numbers as a table, and where the files are."""
    table = rich.table.Table(title=str(folder))
    table.add_column("part")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for result in results:
        for name, value in result["metrics"].items():
            table.add_row(result["part"], name, f"{value:.5g}")
        for name in result["not_measured"]:
            table.add_row(result["part"], name, "not measured")
    # Square brackets are text: of a path, and of an extra such as flowtok_jax[eval].
    console = rich.console.Console(markup=False)
    console.print(table)
    for result in results:
        lacking = result["not_measured"]
        for reason in dict.fromkeys(lacking.values()):
            names = ", ".join(name for name in lacking if lacking[name] == reason)
            line = f"not measured: {names}: {reason}"
            console.print(line, soft_wrap=True, highlight=False)
        path = folder / f"{result['name']}.json"
        console.print(f"protocol: {path}", soft_wrap=True, highlight=False)
