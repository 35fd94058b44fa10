"""Scalars and pictures of a run: metrics.jsonl and TensorBoard."""

import contextlib
import json
import logging
import math
import pathlib
import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping

import numpy as np

from flowtok_jax.runtime.errors import StoreError
from flowtok_jax.runtime.files import Place, is_remote, reaching, write_bytes

FILE, BOARD = "metrics.jsonl", "tb"
COPY_SECONDS = 60.0


class Metrics:
    """Writes what one stage measures; a context manager, silent but on process 0.

    `start_step` is where the run goes on: lines that an earlier, interrupted run wrote
    past it are dropped, since they will come again.

    A store cannot append: for a remote workdir the files are written to a temporary
    directory here, and those that grew are copied whole by `store`, at the end, and
    every COPY_SECONDS. TensorBoard's may lack its newest points until the end.
    """

    def __init__(self, workdir: Place, stage: str, *, start_step: int, writes: bool):
        self._workdir, self._stage = workdir, stage
        self._file, self._board = None, None
        self._copied, self._copied_at = {}, time.monotonic()
        if not writes:
            return
        self._here = workdir
        if is_remote(workdir):
            self._here = pathlib.Path(tempfile.mkdtemp(prefix="flowtok-"))
        with reaching(workdir):
            if (workdir / FILE).exists():
                lines = _before(workdir / FILE, stage, start_step)
                write_bytes(self._here / FILE, lines.encode())
        self._file = (self._here / FILE).open("a")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its protobuf files
            import tensorboardX
        self._board = tensorboardX.SummaryWriter(
            str(self._here / BOARD / stage),
            purge_step=start_step or None,
            filename_suffix=f".{start_step}",
        )

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind, *exception) -> None:
        if not self._file:
            return
        # On a full disk closing fails too, and its cause is on its way.
        with contextlib.suppress(*[OSError, StoreError] if kind else []):
            self._file.close()
            self._board.close()
            self._copy()
        if self._here != self._workdir:
            shutil.rmtree(self._here, ignore_errors=True)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, with null for NaN, and one point of each curve."""
        if not self._file:
            return
        known = {n: v if math.isfinite(v) else None for n, v in values.items()}
        line = {"stage": self._stage, "step": step, **known}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if time.monotonic() - self._copied_at >= COPY_SECONDS:
            try:
                self.store()
            except StoreError as error:
                logging.warning("%s; metrics are copied later", error)

    def images(self, step: int, grids: Mapping[str, np.ndarray]) -> None:
        """Pictures [h, w, 3], uint8."""
        if self._board:
            for name, grid in grids.items():
                self._board.add_image(name, grid, step, dataformats="HWC")

    def store(self) -> None:
        """Has everything so far in the workdir; to be called before a checkpoint.

        Raises:
            StoreError: where a remote workdir cannot be written.
        """
        if self._file:
            self._board.flush()
            self._copy()

    def _copy(self) -> None:
        if self._here == self._workdir:
            return
        self._copied_at = time.monotonic()
        board = self._here / BOARD / self._stage
        for path in (self._here / FILE, *board.iterdir()):
            size = path.stat().st_size
            if size != self._copied.get(path):
                name = path.relative_to(self._here).as_posix()
                write_bytes(self._workdir / name, path.read_bytes())
                self._copied[path] = size


def _before(path: Place, stage: str, step: int) -> str:
    """The lines of a file, without those of the stage past the step."""
    kept = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # half a line, of a killed run
        if entry["stage"] != stage or entry["step"] <= step:
            kept.append(line + "\n")
    return "".join(kept)
