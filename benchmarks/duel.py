"""Two processes that work in turn, each timed by itself, over pipes.

A worker is a script that calls `serve`; a `Side` starts one and asks for calls. Both
need numpy only, since the worker of another code runs in another environment.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

INPUTS = "inputs.npz"
LOG_LINES = 5  # of a worker that ended, in the message of its end


class WorkerError(Exception):
    """A worker that ended before it answered."""


class Entry(NamedTuple):
    """A program of one side.

    Attributes:
        answer: runs it, and returns its outputs by name.
        call: runs it once, to its end; what is timed.
        about: what the report says of the side.
    """

    answer: Callable[[], Mapping[str, Any]]
    call: Callable[[], Any]
    about: dict[str, Any]


class Side:
    """A worker that has been started and has stored its outputs.

    Raises:
        WorkerError: where it ends before it is ready.
    """

    def __init__(self, name: str, command: Sequence[str], folder: pathlib.Path):
        self.name = name
        self._folder = folder
        self._log = (folder / f"{name}.log").open("w")
        self._process = subprocess.Popen(
            [*command, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        try:
            self.about = self._read()
        except BaseException:
            self.close()
            raise

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            told = (self._folder / f"{self.name}.log").read_text().splitlines()
            last = " | ".join(told[-LOG_LINES:])
            raise WorkerError(f"{self.name} ended with status {status}: {last}")
        return json.loads(line)

    def outputs(self) -> dict[str, np.ndarray]:
        """Reads the outputs that the worker stored."""
        with np.load(self._folder / f"{self.name}.npz") as arrays:
            return dict(arrays)

    def time(self) -> dict[str, float]:
        """Runs one call; returns its seconds by the clock and of the cores."""
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the end of its output tells what became of it
        return self._read()

    def close(self) -> None:
        """Ends the worker."""
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._log.close()


@contextlib.contextmanager
def opened(
    commands: Mapping[str, Sequence[str]], folder: pathlib.Path
) -> Iterator[list[Side]]:
    """Yields one side for each command, started one after the other."""
    with contextlib.ExitStack() as stack:
        sides = []
        for name, command in commands.items():
            sides.append(Side(name, command, folder))
            stack.callback(sides[-1].close)
        yield sides


def time_in_turn(
    sides: Sequence[Side], *, seconds: float, least: int, most: int
) -> dict[str, dict[str, list[float]]]:
    """Times one call of each side after the other, in rounds.

    Other work on the machine comes and goes, and so meets all sides alike; the side
    that begins changes from round to round.

    Args:
        seconds: time of all calls together after which no other round begins.
        least: rounds at the least.
        most: rounds at the most.
    """
    found = {side.name: {"cpu": [], "wall": []} for side in sides}
    for side in sides:
        side.time()  # warms up
    spent = 0.0
    for turn in range(most):
        if turn >= least and spent >= seconds:
            break
        for side in sides if turn % 2 == 0 else reversed(sides):
            took = side.time()
            spent += took["wall"]
            for clock, values in found[side.name].items():
                values.append(took[clock])
    return found


def serve(
    name: str,
    make: Callable[[pathlib.Path, dict[str, Any], dict[str, np.ndarray]], Entry],
) -> None:
    """Makes a side's program, stores its outputs, and runs a call for each line read.

    Args:
        make: makes the program of the folder, the specification of its spec.json, and
            the inputs.
    """
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    folder = pathlib.Path(sys.argv[-1])
    spec = json.loads((folder / "spec.json").read_text())
    if spec["cores"]:
        # Before the libraries start the threads whose number follows from it.
        cores = sorted(os.sched_getaffinity(0))[: spec["cores"]]
        os.sched_setaffinity(0, cores)
    with np.load(folder / INPUTS) as arrays:
        entry = make(folder, spec, dict(arrays))
    np.savez(folder / f"{name}.npz", **entry.answer())

    def reply(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    reply(entry.about)
    for _ in sys.stdin:
        begun = time.perf_counter()
        spent = time.process_time()
        entry.call()
        cpu = time.process_time() - spent
        reply({"cpu": cpu, "wall": time.perf_counter() - begun})
