"""A demo-size run killed again and again, asked to end, and out of disk: minutes each.

.venv/bin/pytest -m slow tests/kill_test.py
"""

import random
import signal
import subprocess
import time

import orbax.checkpoint as ocp
import pytest

from flowtok_jax.runtime.digests import params_sha256
from flowtok_jax.tasks.adversarial import OWN
from flowtok_jax.weights.workdir import steps_of
from tests import run

STAGE = "tokenizer"
SIZES = {"train.num_steps": 300, "checkpoint.every": 10, "log.every": 10}
SIZES |= {"log.preview_every": 0, "log.preview_samples": 8}
FLAGS = [f"--config.{key}={value}" for key, value in SIZES.items()]
KILLS = 20
# A discriminator that begins inside a call of steps, and lines before and after it.
GAN = {"weight": 0.1, "start": 27, "lr": 1e-3, "width": 8, "stages": 1, "grid": 4}
GAN_FLAGS = [f"--config.loss.tokenizer.gan.{key}={x}" for key, x in GAN.items()]
GAN_FLAGS += ["--config.train.num_steps=80", "--config.train.batch_size=8"]
GAN_FLAGS += ["--config.log.every=5"]


def start(workdir, *flags) -> subprocess.Popen:
    config = f"--config={run.CONFIG}:{STAGE}"
    return run.start([config, f"--workdir={workdir}", *FLAGS, *flags])


def finish(workdir, *flags) -> str:
    """Trains to the end; the digest of the weights."""
    process = start(workdir, *flags)
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


def logged(workdir) -> int:
    """The last step in metrics.jsonl, 0 where there is none."""
    is_there = (workdir / "metrics.jsonl").is_file()
    rows = run.read_metrics(workdir) if is_there else []
    return max((row["step"] for row in rows), default=0)


def finish_both(workdir) -> dict[str, str]:
    """Trains to the end; digests of all that the last checkpoint holds, by name."""
    weights = finish(workdir, *GAN_FLAGS)
    folder = workdir / "checkpoints" / STAGE / str(steps_of(workdir, STAGE)[-1])
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(folder / "state")
    del state["key"]  # never changes
    digests = {name: params_sha256({name: leaves}) for name, leaves in state.items()}
    assert {"opt_state", *OWN} < digests.keys()
    assert float(state["lecam_real"]) != 0
    return digests | {"weights": weights}


@pytest.fixture(scope="module")
def uninterrupted_both(tmp_path_factory):
    return finish_both(tmp_path_factory.mktemp("both"))


@pytest.mark.slow
def test_killed_around_its_start_the_discriminator_comes_to_the_same_state(
    uninterrupted_both, tmp_path
):
    # The last step logged at the kill: the device is at those after it.
    moments = {
        "before the first checkpoint": 5,
        "just before the discriminator begins": 20,
        "right after it began": 30,
        "inside a save": 50,
        "late": 70,
    }
    for moment, step in moments.items():
        process = start(tmp_path, *GAN_FLAGS)
        run.wait_for(process, lambda step=step: logged(tmp_path) >= step)
        if moment == "inside a save":
            run.wait_for(process, lambda: saves(tmp_path))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, moment
        if moment == "before the first checkpoint":
            assert not steps_of(tmp_path, STAGE)
        assert saves(tmp_path) or moment != "inside a save"
    assert finish_both(tmp_path) == uninterrupted_both


@pytest.mark.slow
def test_asked_to_end_a_run_with_a_discriminator_goes_on(uninterrupted_both, tmp_path):
    process = start(tmp_path, *GAN_FLAGS)
    run.wait_for(process, lambda: logged(tmp_path) > GAN["start"])
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 0, stderr
    assert GAN["start"] < steps_of(tmp_path, STAGE)[-1] < 80
    assert finish_both(tmp_path) == uninterrupted_both


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
