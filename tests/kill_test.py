"""A demo-size run killed again and again, asked to end, and out of disk: minutes each.

.venv/bin/pytest -m slow tests/kill_test.py
"""

import random
import signal
import subprocess
import time

import pytest

from flowtok_jax.weights.workdir import steps_of
from tests import run

STAGE = "tokenizer"
SIZES = {"train.num_steps": 300, "checkpoint.every": 10, "log.every": 10}
SIZES |= {"log.preview_every": 0, "log.preview_samples": 8}
FLAGS = [f"--config.{key}={value}" for key, value in SIZES.items()]
KILLS = 20


def start(workdir) -> subprocess.Popen:
    config = f"--config={run.CONFIG}:{STAGE}"
    return run.start([config, f"--workdir={workdir}", *FLAGS])


def finish(workdir) -> str:
    """Trains to the end; the digest of the weights."""
    process = start(workdir)
    _, stderr = process.communicate(timeout=900)
    assert process.returncode == 0, stderr
    return run.digest(workdir, STAGE)


def saves(workdir) -> bool:
    """Whether a checkpoint is being written."""
    return any((workdir / "checkpoints" / STAGE).glob("*.orbax-checkpoint-tmp*"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return finish(tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
def test_killed_at_random_moments_a_run_comes_to_the_same_weights(
    uninterrupted, tmp_path
):
    rng, inside = random.Random(0), 0
    for kill in range(KILLS):
        process, reached = start(tmp_path), steps_of(tmp_path, STAGE)[-1:]
        if kill % 2:  # inside a save
            run.wait_for(process, lambda: saves(tmp_path))
        else:  # anywhere, before the start as well as after some steps
            end = time.monotonic() + rng.uniform(0, 20)
            while time.monotonic() < end and process.poll() is None:
                if steps_of(tmp_path, STAGE)[-1:] > reached:
                    time.sleep(rng.uniform(0, 0.5))
                    break
                time.sleep(0.01)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
        inside += saves(tmp_path)
    assert inside >= KILLS // 4
    assert finish(tmp_path) == uninterrupted


@pytest.mark.slow
def test_asked_to_end_a_run_saves_within_30_s_and_goes_on(uninterrupted, tmp_path):
    process = start(tmp_path)
    run.wait_for(process, lambda: steps_of(tmp_path, STAGE))
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, stderr
    assert (tmp_path / "preempted.json").is_file()
    assert steps_of(tmp_path, STAGE)[-1] < 300
    assert finish(tmp_path) == uninterrupted


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for some checkpoints only, which can be made larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return subprocess.run(command, capture_output=True, text=True)

    made = mount("size=16m")
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.strip()}")
    yield folder, lambda size: mount(f"remount,size={size}")
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_reported_and_the_earlier_checkpoint_survives(
    uninterrupted, small_disk
):
    folder, resize = small_disk
    workdir = folder / "run"
    FLAGS.append("--config.checkpoint.keep=100")
    process = start(workdir)
    _, stderr = process.communicate(timeout=900)
    FLAGS.pop()
    assert process.returncode == 2
    *_, line = stderr.splitlines()
    assert line.startswith(f"error: a checkpoint of {STAGE} could not be written to")
    whole = steps_of(workdir, STAGE)[-1]
    assert f"(No space left on device); that of step {whole} is whole; make" in line
    assert resize("1g").returncode == 0
    assert finish(workdir) == uninterrupted
