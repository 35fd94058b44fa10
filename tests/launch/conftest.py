"""Fake gcloud, kubectl, sbatch and the like, which record and answer."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
# All that reaches the world: none of the machine's own is ever called.
NAMES = ("gcloud", "git", "kubectl", "sbatch", "scontrol", "squeue", "srun")
FAKE = """#!{python} -SE
import json, pathlib, sys
here = pathlib.Path(__file__).parent
call = [pathlib.Path(__file__).name, *sys.argv[1:]]
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(call) + "\\n")
answers = json.loads((here / "answers").read_text())
for part, replies in answers:
    if part in " ".join(call):
        reply = replies[0]
        if len(replies) > 1:
            del replies[0]
            (here / "answers").write_text(json.dumps(answers))
        if isinstance(reply, int):
            sys.exit(reply)
        sys.stdout.write(reply)
        break
"""


class Fakes:
    """Runs launchers among fake programs."""

    def __init__(self, place: pathlib.Path):
        self.place = place
        place.mkdir()
        (place / "answers").write_text("[]")
        for name in NAMES:
            self.add(name, FAKE.format(python=sys.executable))

    def add(self, name: str, source: str) -> pathlib.Path:
        """Makes a program."""
        path = self.place / name
        path.write_text(source)
        path.chmod(0o755)
        return path

    def answer(self, answers: dict[str, list[str | int]]) -> None:
        """What calls with a key in them say, or exit with, in turn; the last stays."""
        (self.place / "answers").write_text(json.dumps(list(answers.items())))

    @property
    def calls(self) -> list[list[str]]:
        path = self.place / "calls"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines()]

    def environment(self, **variables: str) -> dict[str, str]:
        """This machine's variables, without what changes how launchers behave."""
        own = ("NAME", "ZONE", "PROJECT", "TYPE", "RUNTIME", "DEVICES", "XLA_FLAGS")
        kept = {
            key: value
            for key, value in os.environ.items()
            if key not in own and not key.startswith("SLURM_")
        }
        path = f"{self.place}:{os.environ['PATH']}"
        settings = {"PATH": path, "PYTHON": sys.executable, "POLL_SECONDS": "0"}
        return kept | settings | variables

    def run(self, script: str, *arguments: str, **variables: str):
        """A launcher's outcome."""
        with self.start(script, *arguments, **variables) as process:
            stdout, stderr = process.communicate(timeout=20)
        status = process.returncode
        return subprocess.CompletedProcess(process.args, status, stdout, stderr)

    @contextlib.contextmanager
    def start(self, script: str, *arguments: str, **variables: str):
        """A launcher that runs; nothing of it is left afterwards."""
        process = subprocess.Popen(
            ["bash", str(LAUNCH / script), *arguments],
            env=self.environment(**variables),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture
def fakes(tmp_path) -> Fakes:
    """Programs that record their arguments."""
    return Fakes(tmp_path / "bin")
