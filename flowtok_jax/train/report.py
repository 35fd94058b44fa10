"""What is said of the steps while they run: scalars, speed, steps that were skipped."""

import logging
import time
from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from flowtok_jax.data.records import REASONS, RejectCounter
from flowtok_jax.runtime import processes
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.train.log import Metrics
from flowtok_jax.train.progress import Progress


def is_due(step: int, every: int) -> bool:
    """Whether something done every so many steps, 0 for never, is done at this one."""
    return every > 0 and step % every == 0


class Report:
    """What the host says of the steps: it reads a call's scalars one call later.

    Args:
        rejects: of this process's data.
        seconds: spent on the stage by earlier runs.
        skipped: steps that were skipped by them.
    """

    def __init__(
        self,
        config: ConfigDict,
        schedule: optax.Schedule,
        metrics: Metrics,
        progress: Progress,
        rejects: RejectCounter,
        *,
        seconds: float,
        skipped: int,
    ):
        self._config, self._schedule = config, schedule
        self._metrics, self._progress = metrics, progress
        self._rejects = rejects
        self._pending, self._skipped = None, skipped
        self._last = None  # step and time from which images are counted
        self._window = np.zeros(2)  # images and seconds since the last logged line
        self._begun = time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        """Spent on the stage so far, earlier runs included."""
        return time.monotonic() - self._begun

    def call(self, step: int, scalars: dict[str, Any]) -> None:
        """Notes the call that ends at a step, and reads the one before."""
        before, self._pending = self._pending, (step, scalars)
        if before:
            self._read(*before)

    def flush(self) -> None:
        """Reads the newest call too, which waits for the device."""
        if self._pending:
            self._read(*self._pending)
            self._pending = None

    def start_clock(self, step: int) -> None:
        """Speed is counted from here: what came before was no training."""
        self._last = (step, time.monotonic())

    def store(self) -> None:
        """Makes what was noted so far outlast this machine, before a checkpoint."""
        self._metrics.store()

    def values(self, step: int, scalars: dict, pictures: dict) -> None:
        """Notes what an evaluation found."""
        self._metrics.scalars(step, scalars)
        self._metrics.images(step, pictures)

    def rejected(self) -> dict[str, Any]:
        """Records that could not be used, since this run started: how many for each
        reason, in all processes, and the first names that process 0 met.
        """
        counts = self._rejected()
        if not counts:
            return {}
        if self._rejects.counts:
            logging.warning("records replaced by others: %s", self._rejects.describe())
        return {"counts": counts, "first": self._rejects.names}

    def _rejected(self) -> dict[str, int]:
        """Counts of all processes, which have to ask together."""
        counts = np.array([self._rejects.counts[reason] for reason in REASONS])
        totals = processes.total(counts)
        found = zip(REASONS, totals.tolist(), strict=True)
        return {reason: count for reason, count in found if count}

    def _read(self, step: int, scalars: dict[str, Any]) -> None:
        values = {name: float(v) for name, v in jax.device_get(scalars).items()}
        in_a_row = int(values.pop("skipped_in_a_row"))
        if self._last:  # the first call compiles: it tells no speed
            last, then = self._last
            images = (step - last) * self._config.train.batch_size
            self._window += images, time.monotonic() - then
            values["perf/images_per_sec"] = self._window[0] / self._window[1]
        self.start_clock(step)
        skipped = int(values["skipped"])
        values["lr"] = float(self._schedule(max(0, step - 1 - skipped)))
        self._progress.update(step, values)
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
