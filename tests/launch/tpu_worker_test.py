"""tpu_worker.sh in a copy of the repository: how main's end becomes a state."""

import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

from tests.launch.conftest import LAUNCH, ROOT

MAIN = """#!/usr/bin/env bash
trap 'exit 0' TERM
echo "args $*"
{}
"""
GO_ON = "while :; do sleep 0.05; done"
UV = """#!/usr/bin/env bash
echo "$*" >> "{calls}"
[[ "$*" != *venv* ]] || mkdir -p .venv
"""


class Worker:
    """A worker whose main does this."""

    def __init__(self, fakes, root):
        self.fakes, self.root = fakes, root
        shutil.copytree(LAUNCH, root / "launch")
        for name in ("pyproject.toml", "requirements-tpu.txt"):
            shutil.copy(ROOT / name, root)

    def __call__(self, *arguments: str, main: str = GO_ON) -> str:
        python = self.fakes.add("main", MAIN.format(main))
        log = self.root / "said"  # not a pipe, which main would hold open
        with log.open("w") as said:
            subprocess.run(
                ["bash", str(self.root / "launch" / "tpu_worker.sh"), *arguments],
                env=self.fakes.environment(PYTHON=str(python), LIBTPU_INIT_ARGS=""),
                stdout=said,
                check=True,
                timeout=20,
            )
        return log.read_text()

    def pid(self, what: str) -> int:
        """Of `process`, process.sh, or of `supervise` above it."""
        if what == "process":
            return int((self.root / "runs/worker/pid").read_text())
        return int((self.root / "runs/worker/state").read_text().split()[1])

    def lives(self, pid: int) -> bool:
        """Whether a process is there, and is not only waiting to be counted out."""
        try:
            return bool(pathlib.Path(f"/proc/{pid}/cmdline").read_bytes())
        except FileNotFoundError:
            return False

    def wait_for(self, state: str) -> None:
        end = time.monotonic() + 10
        while (found := self("status")) != f"worker is {state}\n":
            assert time.monotonic() < end, found
            time.sleep(0.02)


@pytest.fixture
def worker(fakes, tmp_path):
    """A worker; nothing of it is left running."""
    worker = Worker(fakes, tmp_path / "flowtok_jax")
    yield worker
    worker("stop")


def test_runs_until_it_is_stopped(worker):
    assert worker("status") == "worker is none\n"
    worker("start", "--a=b c")
    assert worker("status") == "worker is running\n"
    worker("stop")
    assert worker("status") == "worker is stopped\n"
    assert worker("follow") == "args -m flowtok_jax.main --a=b c\n"


def test_start_stops_what_is_there(worker):
    worker("start", "--a=1")
    old = worker.pid("process")
    worker("start", "--a=2")
    assert not worker.lives(old)
    assert worker("status") == "worker is running\n"


@pytest.mark.parametrize(
    ("does", "state"), [("exit 0", "finished"), ("exit 2", "failed-2")]
)
def test_an_end_of_its_own(worker, does, state):
    worker("start", "--a=b", main=does)
    worker.wait_for(state)


def test_sigterm_from_elsewhere_is_no_end(worker):
    worker("start", "--a=b")
    for what in ("supervise", "process"):  # as a machine that shuts down: to all
        os.kill(worker.pid(what), signal.SIGTERM)
    worker.wait_for("terminated")


def test_what_is_left_of_a_killed_run_is_stopped(worker):
    worker("start", "--a=b")
    process = worker.pid("process")
    os.kill(worker.pid("supervise"), signal.SIGKILL)
    worker.wait_for("lost")
    worker("start", "--a=b")
    assert not worker.lives(process)
    assert worker("status") == "worker is running\n"


def test_a_run_of_before_the_machine_restarted_is_lost(worker):
    worker("start", "--a=b")
    state = worker.root / "runs/worker/state"
    state.write_text(f"running {worker.pid('supervise')} another-boot\n")
    assert worker("status") == "worker is lost\n"


def test_setup_installs_once(worker, tmp_path):
    calls = tmp_path / "pip"
    worker.fakes.add("python3", UV.format(calls=calls))
    worker("setup")
    lines = calls.read_text().splitlines()
    assert lines[-1].endswith("--python .venv/bin/python -r requirements-tpu.txt")
    worker("setup")
    assert calls.read_text().splitlines() == lines
    (worker.root / "pyproject.toml").write_text("[project]\n")
    worker("setup")
    assert calls.read_text().splitlines() == lines * 2
