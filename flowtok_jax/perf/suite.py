"""A suite of measurements that a budget of minutes ends, and the same command resumes.

Every row is in bench_suite.json as soon as it is measured, its failure too. A row that
was begun twice and is not there ended the process, as does a device's driver that
crashes, or a limit on the command's time; it counts as failed.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flowtok_jax.perf.machine import describe_machine
from flowtok_jax.perf.suite_rows import OutOfTimeError, Tried
from flowtok_jax.perf.suite_table import MATMUL, SuiteRow
from flowtok_jax.perf.work import CURE
from flowtok_jax.runtime.errors import UserError, reason_of
from flowtok_jax.runtime.files import Place, json_sha256, read_json, write_json

FILE = "bench_suite.json"
BEGINNINGS = 2  # of a row that does not come to an end
LOST = "the device does not answer any more"

# RowTimer.measure, or a test's own.
Measure = Callable[[SuiteRow, Tried, Callable[[], None]], dict[str, Any]]


class SuiteFile:
    """The rows measured so far, in a file that each row writes anew as a whole.

    Attributes:
        rows: results by the row's name.
    """

    def __init__(self, path: Place, suite: str, settings: Any):
        """Reads the file, where there is one.

        Args:
            settings: what the figures depend on beside suite and machine.

        Raises:
            UserError: where the file is of another suite, machine or config.
        """
        self._path = path
        self._head = {
            "suite": suite,
            "machine": describe_machine(jax.devices()[:1]),
            "settings": json_sha256(settings),
        }
        stored = read_json(path) if path.is_file() else {}
        self.rows = {row["name"]: row for row in stored.get("rows", [])}
        self._tried = {
            name: {int(batch): gib for batch, gib in tried.items()}
            for name, tried in stored.get("tried", {}).items()
        }
        self._begun = stored.get("begun", {})
        self._check(stored)

    def _check(self, stored: dict[str, Any]) -> None:
        own = self._describe(self._head)
        for name, value in (self._describe(stored) if stored else {}).items():
            if value != own[name]:
                raise UserError(
                    f"{self._path} is of another {name}: got {value}, expected "
                    f"{own[name]}; give another --workdir"
                )

    @staticmethod
    def _describe(head: dict[str, Any]) -> dict[str, Any]:
        machine = {k: head["machine"][k] for k in ("device_kind", "jax", "jaxlib")}
        return {"suite": head["suite"], **machine, "config": head["settings"][:8]}

    def save(self) -> None:
        """Writes the file, whole or not at all."""
        progress = {"tried": self._tried, "begun": self._begun}
        rows = {"rows": list(self.rows.values())}
        write_json(self._path, self._head | rows | progress)

    def begin(self, name: str) -> int:
        """Notes that a row begins; returns how often it began before."""
        before = self._begun.get(name, 0)
        self._begun[name] = before + 1
        self.save()
        return before

    def leave(self, name: str) -> None:
        """Forgets that a row has begun, which ends without figures for good reason."""
        self._begun.pop(name, None)
        self.save()

    def finish(self, name: str, result: dict[str, Any]) -> None:
        """Keeps a row's result."""
        self.rows[name] = {"name": name} | result
        self._begun.pop(name, None)
        self._tried.pop(name, None)
        self.save()

    def tried(self, name: str) -> Tried:
        """Returns the batches that a row tried, to be added to."""
        return self._tried.setdefault(name, {})

    def report(self, names: Sequence[str]) -> dict[str, Any]:
        """Returns machine and rows, in the order of the names; MFU by the measured
        peak beside."""
        rows = [self.rows[name] for name in names if name in self.rows]
        peaks = {
            row["dtype"]: row["tflops_per_sec"]
            for row in rows
            if row["kind"] == MATMUL and "reason" not in row
        }
        for row in rows:
            if row["kind"] != MATMUL and "reason" not in row:
                peak = peaks.get(row["dtype"])
                row["mfu_by_matmul"] = peak and row["tflops_per_sec"] / peak
        left = [name for name in names if name not in self.rows]
        return self._head | {"matmul_tflops": peaks, "rows": rows, "left": left}


def _is_alive() -> bool:
    """Says whether the device still computes after a failure."""
    try:
        return float(jnp.ones(2).sum()) == 2
    except jax.errors.JaxRuntimeError:
        return False


def _reason(error: Exception) -> str:
    """Returns why a row failed, in one line."""
    if isinstance(error, UserError):
        return str(error).removesuffix(f"; {CURE}")
    return f"{type(error).__name__}: {reason_of(error)}"


def run_suite(
    rows: Sequence[SuiteRow], measure: Measure, file: SuiteFile, minutes: float
) -> dict[str, Any]:
    """Measures the rows that the file does not have, while there is time.

    A row is begun if the time that the longest of its kind took is left; the first row
    of a command always is, so that every command gets on.

    Args:
        minutes: after which no row is begun.

    Returns:
        The report.
    """
    deadline = time.monotonic() + 60 * minutes
    names = [row.name for row in rows]
    measured = 0
    for number, row in enumerate(rows, 1):
        if row.name in file.rows:
            continue
        took = [
            done["row_seconds"]
            for done in file.rows.values()
            if done["kind"] == row.kind
        ]
        if measured and time.monotonic() + max(took, default=0) > deadline:
            continue
        if not _measure(row, measure, file, deadline):
            continue
        measured += 1
        text = _one_line(file.rows[row.name])
        logging.info("%d of %d: %s: %s", number, len(rows), row.name, text)
        if file.rows[row.name].get("reason", "").endswith(LOST):
            break
    report = file.report(names)
    file.save()
    return report | {"measured_now": measured}


def _one_line(result: dict[str, Any]) -> str:
    if "reason" in result:
        return f"failed: {result['reason']}"
    rate = f"{result['tflops_per_sec']:.3g} TFLOP/s"
    return f"{rate} ({result['row_seconds']:.0f} s)"


def _measure(row: SuiteRow, measure: Measure, file: SuiteFile, deadline: float) -> bool:
    """Measures a row into the file; False where the time was not enough."""
    tries = 0

    def check_time() -> None:
        nonlocal tries
        file.save()
        # One try a command at least.
        if tries and time.monotonic() > deadline:
            raise OutOfTimeError
        tries += 1

    begun = time.monotonic()
    try:
        if file.begin(row.name) >= BEGINNINGS:
            raise UserError(f"the process ended {BEGINNINGS} times while measuring it")
        result = measure(row, file.tried(row.name), check_time)
    except (KeyboardInterrupt, OutOfTimeError) as error:
        file.leave(row.name)
        if isinstance(error, KeyboardInterrupt):
            raise
        return False
    except Exception as error:  # whatever a driver or a compiler may raise
        reason = _reason(error)
        result = {"reason": reason if _is_alive() else f"{reason}; {LOST}"}
    seconds = round(time.monotonic() - begun, 1)
    file.finish(row.name, row._asdict() | {"row_seconds": seconds} | result)
    return True
