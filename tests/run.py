"""The demo made tiny, through the command line: in another process or in this one."""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import socket
import subprocess
import sys
import time
import warnings

import pytest
from absl.testing import flagsaver

from flowtok_jax import main

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = str(ROOT / "configs" / "demo.py")
BLOCKS = {"depth": 1, "heads": 2}
TINY = {
    "latent.channels": 4,
    "clip": {"width": 16, **BLOCKS},
    "tokenizer.encoder": {"width": 16, **BLOCKS},
    "tokenizer.decoder": {"width": 16, **BLOCKS},
    "projector": {"mlp_width": 16, **BLOCKS},
    "text_decoder": {"mlp_width": 16, **BLOCKS},
    "align_head.width": 16,
    "dit": {"width": 16, **BLOCKS},
    "text.vocabulary_captions": 256,
    "data.prefetch": 2,
    "train": {"num_steps": 4, "batch_size": 8, "steps_per_call": 2},
    # More steps and checkpoints, for tests that interrupt this stage.
    "per_stage.text_tokenizer.train.num_steps": 32,
    "schedule.schedule": "constant",  # does not depend on num_steps
    "checkpoint.every": 4,
    "log": {"every": 2, "preview_every": 0, "preview_samples": 16},
    "eval.samples": 16,
    "sample": {"num_steps": 2, "batch_size": 16},
    "caption": {"num_steps": 2, "batch_size": 16},
}


def flags(**overrides) -> list[str]:
    """Flags that make the demo tiny, and others by the names of their keys."""
    found = []
    for key, value in (*TINY.items(), *overrides.items()):
        for name, part in value.items() if isinstance(value, dict) else [("", value)]:
            found.append(f"--config.{key}{'.' if name else ''}{name}={part}")
    return found


def command(workdir: pathlib.Path, stage: str = "", **overrides) -> list[str]:
    """Arguments of main that train the tiny demo, or one stage of it."""
    config = f"--config={CONFIG}{':' if stage else ''}{stage}"
    return [config, f"--workdir={workdir}", *flags(**overrides)]


def digest(workdir: pathlib.Path, stage: str) -> str:
    """Of the weights that a finished stage came to."""
    return json.loads((workdir / "summary.json").read_text())["params_sha256"][stage]


def start(arguments: list[str], **environ: str) -> subprocess.Popen:
    """`python -m flowtok_jax.main` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "flowtok_jax.main", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(process: subprocess.Popen, is_there, seconds: float = 300.0) -> None:
    """Returns when something is there; fails where the process ends before."""
    end = time.monotonic() + seconds
    while not is_there():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


@dataclasses.dataclass
class Outcome:
    """How a command ended, and what it said."""

    status: int
    stdout: str
    stderr: str

    @property
    def complaint(self) -> str:
        """The one line on stderr that says that something is wrong."""
        assert "Traceback" not in self.stderr
        lines = self.stderr.splitlines()
        (line,) = (x for x in lines if x.startswith(("error: ", "warning: ")))
        return line


@dataclasses.dataclass
class Demo:
    """A finished run of the tiny demo."""

    workdir: pathlib.Path
    outcome: Outcome

    @property
    def summary(self) -> dict:
        return json.loads((self.workdir / "summary.json").read_text())

    @property
    def metrics(self) -> list[dict]:
        return read_metrics(self.workdir)


def read_metrics(workdir: pathlib.Path) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def make_demo(workdir: pathlib.Path) -> Demo:
    """Runs all of it."""
    process = start(command(workdir))
    stdout, stderr = process.communicate(timeout=300)
    return Demo(workdir, Outcome(process.returncode, stdout, stderr))


@contextlib.contextmanager
def own_logging():
    """What a command sets of logging and warnings is as before, after the block."""
    known = logging.root.manager.loggerDict.values()
    loggers = [logging.root, *(x for x in known if isinstance(x, logging.Logger))]
    levels = {logger: logger.level for logger in loggers}
    handlers = list(logging.root.handlers)
    try:
        with warnings.catch_warnings():
            yield
    finally:
        logging.root.handlers[:] = handlers
        for logger, level in levels.items():
            logger.setLevel(level)


class Cli:
    """Calls main in this process, on its 8 devices, and with types checked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys):
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: str) -> Outcome:
        argv = ["main", *arguments]
        self._monkeypatch.chdir(ROOT)
        self._capsys.readouterr()
        with flagsaver.flagsaver(), own_logging(), warnings.catch_warnings():
            # Of ml_collections, where it loads a config file.
            warnings.filterwarnings("ignore", ".*load_module", DeprecationWarning)
            status = main.main(argv)
        return Outcome(status, *self._capsys.readouterr())
