"""The log of a run: metrics.jsonl, TensorBoard, previews, tables of parameters."""

import contextlib
import json
import logging
import math
import pathlib
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from flowtok_jax.array_types import Params
from flowtok_jax.data.records import REASONS, RejectCounter
from flowtok_jax.runtime import processes
from flowtok_jax.runtime.errors import StoreError, UserError
from flowtok_jax.runtime.files import (
    Place,
    is_remote,
    reaching,
    save_png,
    write_bytes,
    writing,
)
from flowtok_jax.train.progress import Progress, SourceWatch

METRICS = "metrics.jsonl"
BOARD = "tb"
PARAMETERS = "parameters"
PREVIEWS = "previews"
COPY_SECONDS = 60.0  # between two copies of the files to a remote workdir


class Metrics:
    """The files of one stage's measurements, a context manager silent but on process 0.

    A bucket cannot append: for a remote workdir the files are written to a temporary
    directory here, and those that grew are copied whole by `store`, at the end, and
    every COPY_SECONDS. TensorBoard's files may lack their newest points until the end.

    Args:
        start_step: the step at which the run goes on. Lines of later steps, which an
            interrupted run wrote, are dropped, since they will come again.
    """

    def __init__(self, workdir: Place, stage: str, *, start_step: int, writes: bool):
        self._workdir = workdir
        self._stage = stage
        self._file = None
        self._board = None
        self._copied = {}  # file -> its size when it was last copied
        self._copied_at = time.monotonic()
        self._said = False  # where the previews are
        if not writes:
            return
        self._here = workdir
        if is_remote(workdir):
            self._here = pathlib.Path(tempfile.mkdtemp(prefix="flowtok-"))
        with reaching(workdir):
            if (workdir / METRICS).exists():
                lines = _before(workdir / METRICS, stage, start_step)
                write_bytes(self._here / METRICS, lines.encode())
        with writing(self._here / METRICS):
            self._file = (self._here / METRICS).open("a")
            self._board = Board(self._here / BOARD / stage, start_step)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind, *exception) -> None:
        if not self._file:
            return
        # On a full disk closing fails too, and its cause is on its way.
        with (
            contextlib.suppress(*[OSError, StoreError] if kind else []),
            writing(self._here / METRICS),
        ):
            self._file.close()
            self._board.close()
            self._copy()
        if self._here != self._workdir:
            shutil.rmtree(self._here, ignore_errors=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line of metrics.jsonl and one point of each curve."""
        if not self._file:
            return
        # JSON has no NaN: null stands for it.
        known = {n: v if math.isfinite(v) else None for n, v in values.items()}
        line = {"stage": self._stage, "step": step, **known}
        with writing(self._here / METRICS):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            self._board.scalars(step, values)
        if time.monotonic() - self._copied_at >= COPY_SECONDS:
            try:
                self.store()
            except StoreError as error:
                logging.warning("%s; metrics are copied later", error)

    def images(self, step: int, grids: Mapping[str, np.ndarray]) -> None:
        """Shows pictures [h, w, 3], uint8, in TensorBoard, and writes them as PNG.

        The files are PREVIEWS/STAGE/step_000500_NAME.png in the workdir.
        """
        if not self._board:
            return
        with writing(self._here / METRICS):
            self._board.images(step, grids)
        folder = self._workdir / PREVIEWS / self._stage
        for name, grid in grids.items():
            try:
                save_png(folder / f"step_{step:06d}_{name}.png", grid)
            except StoreError as error:  # no reason to end a run
                logging.warning("%s; this preview is in TensorBoard only", error)
            if not self._said:
                self._said = True
                logging.info("%s: previews are in %s", self._stage, folder)

    def store(self) -> None:
        """Brings everything so far into the workdir; to be called before a checkpoint.

        Raises:
            StoreError: where a remote workdir cannot be written.
        """
        if self._file:
            with writing(self._here / METRICS):
                self._board.flush()
            self._copy()

    def _copy(self) -> None:
        if self._here == self._workdir:
            return
        self._copied_at = time.monotonic()
        board = self._here / BOARD / self._stage
        for path in (self._here / METRICS, *board.iterdir()):
            size = path.stat().st_size
            if size != self._copied.get(path):
                name = path.relative_to(self._here).as_posix()
                write_bytes(self._workdir / name, path.read_bytes())
                self._copied[path] = size


class Board:
    """A file of TensorBoard's, written on the caller's thread.

    tensorboardX's own SummaryWriter has a thread for that, which a full disk ends, and
    whoever adds points then waits for it for ever.

    Args:
        start_step: hides points of later steps in earlier files.
    """

    def __init__(self, folder: pathlib.Path, start_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its protobuf files are deprecated
            from tensorboardX import event_file_writer, proto, summary
        self._summary = summary
        self._proto = proto.event_pb2
        self._file = event_file_writer.EventsWriter(
            str(folder / "events"), f".{start_step}"
        )
        if start_step:
            start = self._proto.SessionLog(status=self._proto.SessionLog.START)
            self._write(start_step, session_log=start)

    def _write(self, step: int, **content) -> None:
        event = self._proto.Event(wall_time=time.time(), step=step, **content)
        self._file.write_event(event)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one point to each curve."""
        for name, value in values.items():
            self._write(step, summary=self._summary.scalar(name, value))

    def images(self, step: int, grids: Mapping[str, np.ndarray]) -> None:
        """Adds pictures [h, w, 3], uint8."""
        for name, grid in grids.items():
            picture = self._summary.image(name, grid, dataformats="HWC")
            self._write(step, summary=picture)

    def flush(self) -> None:
        """Brings everything so far to the disk."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _before(path: Place, stage: str, step: int) -> str:
    """Reads the lines of a file, without the stage's lines past the step."""
    kept = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # a killed run left half a line
        if entry["stage"] != stage or entry["step"] <= step:
            kept.append(line + "\n")
    return "".join(kept)


def is_due(step: int, every: int) -> bool:
    """Returns whether something done every so many steps, 0 for never, is due."""
    return every > 0 and step % every == 0


class StepReport:
    """The host's account of the steps, which reads a call's scalars one call later.

    So the device computes a call while the host reads the one before.

    Args:
        stage: whose steps are made.
        rates: learning rates by the number of optimiser steps made.
        rejects: of this process's data.
        seconds: spent on the stage by earlier runs.
        skipped: steps that were skipped by them.
    """

    def __init__(
        self,
        config: ConfigDict,
        stage: str,
        rates: Callable[[int], dict[str, float]],
        metrics: Metrics,
        progress: Progress,
        rejects: RejectCounter,
        *,
        seconds: float,
        skipped: int,
    ):
        self._config = config
        self._rates = rates
        self._metrics = metrics
        self._progress = progress
        self._watch = SourceWatch(stage, config.schedule.warmup_steps)
        self._rejects = rejects
        self._pending = None
        self._skipped = skipped
        self._last = None  # step and time from which images are counted
        self._window = np.zeros(2)  # images and seconds since the last logged line
        self._begun = time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        """Time spent on the stage so far, earlier runs included."""
        return time.monotonic() - self._begun

    def call(self, step: int, scalars: dict[str, Any]) -> None:
        """Notes the call that ends at a step, and reads the one before."""
        before = self._pending
        self._pending = (step, scalars)
        if before:
            self._read(*before)

    def flush(self) -> None:
        """Reads the newest call too, which waits for the device."""
        if self._pending:
            self._read(*self._pending)
            self._pending = None

    def start_clock(self, step: int) -> None:
        """Restarts the clock of the speed: what came before was no training."""
        self._last = (step, time.monotonic())

    def doing(self, what: str) -> None:
        """Shows what is done between two steps."""
        self._progress.doing(what)

    def store(self) -> None:
        """Stores what was noted so far, so that it outlasts this machine."""
        self._metrics.store()

    def values(self, step: int, scalars: dict, pictures: dict) -> None:
        """Notes what an evaluation found."""
        self._metrics.scalars(step, scalars)
        self._metrics.images(step, pictures)

    def rejected(self) -> dict[str, Any]:
        """Returns the records that could not be used since this run started.

        Their number for each reason, in all processes, and the first names that process
        0 met.
        """
        counts = self._rejected()
        if not counts:
            return {}
        if self._rejects.counts:
            logging.warning("records replaced by others: %s", self._rejects.describe())
        return {"counts": counts, "first": self._rejects.names}

    def _rejected(self) -> dict[str, int]:
        return processes.total_counts(self._rejects.counts, REASONS)

    def _read(self, step: int, scalars: dict[str, Any]) -> None:
        values = {name: float(v) for name, v in jax.device_get(scalars).items()}
        in_a_row = int(values.pop("skipped_in_a_row"))  # for us, not for the files
        if self._last:  # the first call compiles, and tells no speed
            last, then = self._last
            images = (step - last) * self._config.train.batch_size
            self._window += images, time.monotonic() - then
            values["perf/images_per_sec"] = self._window[0] / self._window[1]
        self.start_clock(step)
        skipped = int(values["skipped"])
        # The rate of the step just made: skipped steps did not count in the schedule.
        values |= self._rates(max(0, step - 1 - skipped))
        self._progress.update(step, values)
        self._watch.see(step, values)
        end = self._config.train.num_steps
        if step == end or is_due(step, self._config.log.every):
            counts = {f"data/rejected/{r}": n for r, n in self._rejected().items()}
            self._metrics.scalars(step, values | counts)
            self._window[:] = 0
        self._check_skipped(step, skipped, in_a_row)

    def _check_skipped(self, step: int, skipped: int, in_a_row: int) -> None:
        if skipped > self._skipped:
            logging.warning(
                "by step %d %d steps were skipped, %d in a row at the end: loss or "
                "gradient was not finite",
                step,
                skipped,
                in_a_row,
            )
        self._skipped = skipped
        if in_a_row >= self._config.train.max_skipped_in_a_row:
            raise UserError(
                f"loss or gradient was not finite in the {in_a_row} steps up to {step} "
                "(train.max_skipped_in_a_row = "
                f"{self._config.train.max_skipped_in_a_row}); the weights are those of "
                f"step {step - in_a_row}; the last checkpoint stays; lower schedule.lr "
                "or set optimizer.clip_norm"
            )


def _count(params: Params) -> str:
    """Counts parameters, for a line of 80 columns."""
    count = parameter_overview.count_parameters(params)
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.1f}k"


def log_parameters(workdir: Place, stage: str, params: Params) -> None:
    """Logs the size of a stage's networks, and writes a table of all their arrays.

    The table, PARAMETERS/STAGE.txt in the workdir, has shapes, dtypes and shardings.

    Args:
        params: parameters by network, or their shapes.
    """
    sizes = ", ".join(f"{name} {_count(net)}" for name, net in params.items())
    logging.info("%s: %s parameters (%s)", stage, _count(params), sizes)
    if processes.is_first():
        table = parameter_overview.get_parameter_overview(
            params, include_stats="sharding"
        )
        path = workdir / PARAMETERS / f"{stage}.txt"
        write_bytes(path, f"{table}\n".encode())
