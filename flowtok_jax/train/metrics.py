"""Scalars and pictures of a run: metrics.jsonl and TensorBoard."""

import contextlib
import json
import math
import pathlib
import warnings
from collections.abc import Mapping

import numpy as np

from flowtok_jax.workdir import write_text

FILE = "metrics.jsonl"


class Metrics:
    """Writes what one stage measures; a context manager, silent but on process 0.

    `start_step` is where the run goes on: lines that an earlier, interrupted run wrote
    past it are dropped, since they will come again.
    """

    def __init__(
        self, workdir: pathlib.Path, stage: str, *, start_step: int, writes: bool
    ):
        self._stage, self._file, self._board = stage, None, None
        if not writes:
            return
        path = workdir / FILE
        if path.exists():
            _drop_after(path, stage, start_step)
        self._file = path.open("a")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its protobuf files
            import tensorboardX
        self._board = tensorboardX.SummaryWriter(
            str(workdir / "tb" / stage), purge_step=start_step or None
        )

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, kind, *exception) -> None:
        if self._file:
            # On a full disk closing fails too, and its cause is on its way.
            with contextlib.suppress(*[OSError] if kind else []):
                self._file.close()
                self._board.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics.jsonl, with null for NaN, and one point of each curve."""
        if self._file:
            known = {n: v if math.isfinite(v) else None for n, v in values.items()}
            line = {"stage": self._stage, "step": step, **known}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def images(self, step: int, grids: Mapping[str, np.ndarray]) -> None:
        """Pictures [h, w, 3], uint8."""
        if self._board:
            for name, grid in grids.items():
                self._board.add_image(name, grid, step, dataformats="HWC")


def _drop_after(path: pathlib.Path, stage: str, step: int) -> None:
    kept = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # half a line, of a killed run
        if entry["stage"] != stage or entry["step"] <= step:
            kept.append(line + "\n")
    write_text(path, "".join(kept))
