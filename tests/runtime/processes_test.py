"""How processes find one another, and what two of them do together."""

import errno
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import jax
import pytest

from flowtok_jax.runtime import processes
from flowtok_jax.runtime.errors import StoreError, UserError, WriteError
from flowtok_jax.weights.workdir import steps_of
from tests import run

TIME = "perf/images_per_sec"
CLUSTER = run.ROOT / "launch" / "local_cluster.sh"
SLURM = {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_PROCID": "0"}
OMPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1"}
GKE = {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"}


@pytest.mark.parametrize(
    ("environ", "has_tpu", "found"),
    [
        ({}, False, None),
        (SLURM, False, "slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, False, None),
        (OMPI, False, "ompi"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, False, None),
        (GKE, True, "gketpu"),
        (GKE, False, None),
        (GKE | {"TPU_WORKER_HOSTNAMES": "a"}, True, None),
        (
            GKE | {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"},
            True,
            "gketpu",
        ),
        (GKE | {"JAX_PLATFORMS": "cpu"}, True, None),
        ({}, True, "gcetpu"),
        ({"TPU_SKIP_MDS_QUERY": "1"}, True, None),
    ],
)
def test_a_cluster_is_found_where_there_is_one(monkeypatch, environ, has_tpu, found):
    known = ["libtpu"] if has_tpu else []
    monkeypatch.setattr(processes.glob, "glob", lambda _: known)
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda n: n in known)
    assert processes.find_cluster(environ) == found


def test_tasks_that_srun_did_not_start_train_alone_and_say_so(caplog):
    assert processes.find_cluster({"SLURM_NTASKS": "4"}) is None
    assert "SLURM_NTASKS is 4 but this process was not started by srun" in caplog.text


def test_an_open_mpi_that_does_not_tell_its_address_needs_one(monkeypatch):
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: False)
    with pytest.raises(UserError, match="expected --coordinator=HOST:PORT"):
        processes.find_cluster({"OMPI_COMM_WORLD_SIZE": "2"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 2, 0), "need --coordinator=HOST:PORT"),
        (("here", 2, 0), "--coordinator is 'here'; expected HOST:PORT"),
        (("here:1", 2, None), "--num_processes is 2 and --process_id None"),
        (("here:1", 2, 2), "--num_processes is 2 and --process_id 2; expected both"),
        (("here:1", None, 0), "--num_processes is None"),
    ],
)
def test_an_address_and_numbers_that_do_not_fit_are_refused(
    monkeypatch, arguments, message
):
    started = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **o: started.append(o))
    monkeypatch.delenv("OMPI_COMM_WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match=message):
        processes.start(*arguments, cluster_timeout=9)
    assert not started


def test_open_mpi_gives_the_numbers_beside_a_given_address(monkeypatch):
    started = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **o: started.append(o))
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    processes.start("here:1", None, None, cluster_timeout=9)
    (options,) = started
    assert (options["num_processes"], options["process_id"]) == (4, 3)
    assert options["initialization_timeout"] > 9


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_whose_cluster_does_not_come_says_what_to_start(tmp_path, index):
    """In seconds, instead of hanging."""
    address = [f"--coordinator=127.0.0.1:{run.free_port()}", f"--process_id={index}"]
    alone = [*address, "--num_processes=2", "--cluster_timeout=2"]
    process = run.start([*run.command(tmp_path / "run", "tokenizer"), *alone])
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1
    (line,) = stderr.splitlines()[-1:]
    assert line.startswith(f"error: process {index} of 2 at 127.0.0.1:")
    assert "waited 2 s and the others did not come; start the same command" in line
    assert not (tmp_path / "run").exists()


def test_of_several_processes_each_look_has_the_next_number_and_yes_stays_yes(
    monkeypatch,
):
    looks = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        processes.multihost_utils,
        "reached_preemption_sync_point",
        lambda number: looks.append(number) or number == 3,
    )
    preemption = processes.Preemption()
    assert [preemption.look() for _ in range(5)] == [False, False, True, True, True]
    assert looks == [1, 2, 3, 4, 5]


BUSY = """
import hashlib, sys, time
from flowtok_jax.runtime.processes import Preemption
with Preemption() as asked:
    print("ready", flush=True)
    {work}
    while not asked.look():
        time.sleep(0.01)
    print("looked", asked.interrupted, flush=True)
    time.sleep(60)
"""
# A minute in which Python runs no handler, as while a program compiles.
NATIVE = 'hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)'


def start_busy(work: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY.format(work=work)],
        cwd=run.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert "again: ends at once" in process.stderr.readline()
    return process


def test_a_first_interrupt_asks_to_end_and_a_second_one_ends():
    process = start_busy("pass")
    assert process.stdout.readline() == "looked True\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert stderr.endswith("KeyboardInterrupt\n")


def test_two_interrupts_end_what_python_cannot_interrupt():
    process = start_busy(NATIVE)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "interrupted; the same command goes on from here\n"


def test_after_a_run_signals_are_handled_as_before(monkeypatch):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with processes.Preemption() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked.interrupted
        assert asked.look()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_run_that_ignores_interrupts_goes_on_ignoring_them():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with processes.Preemption() as asked:
            signal.raise_signal(signal.SIGINT)
            assert not asked.look()
    finally:
        signal.signal(signal.SIGINT, before)


class BucketError(StoreError):
    """A kind of failure that other processes know by its parent only."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (UserError("a mistake"), UserError),
        (StoreError("503"), StoreError),
        (BucketError("503"), StoreError),
        (WriteError("no room"), WriteError),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), OSError),
        (OSError("odd"), OSError),
        (KeyError("bug"), RuntimeError),
        (ValueError(), RuntimeError),
        (UserError("long " * 1000), UserError),
    ],
    ids=repr,
)
def test_all_processes_fail_as_the_first_one_does(monkeypatch, error, kind):
    """Of two processes, one after the other; the broadcast is what the first said."""
    said = []

    def broadcast(message):
        if jax.process_index() == 0:
            said.append(message)
        return said[-1]

    def fail():
        raise error

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(processes.multihost_utils, "broadcast_one_to_all", broadcast)
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    with pytest.raises(type(error)) as first:
        processes.first_does(fail)
    assert first.value is error
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(kind) as second:
        processes.first_does(pytest.fail)
    assert type(second.value) is kind
    assert getattr(second.value, "errno", None) == getattr(error, "errno", None)
    assert str(error.args[-1] if error.args else "")[:9] in str(second.value)


def test_where_the_first_process_does_it_nothing_is_raised(monkeypatch):
    done = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        processes.multihost_utils, "broadcast_one_to_all", lambda message: message
    )
    processes.first_does(lambda: done.append(1))
    assert done == [1]


def start_two(workdir, stage, *flags, grace=30, **overrides) -> subprocess.Popen:
    """Two processes of 4 devices that train a stage of the tiny demo."""
    arguments = [*run.command(workdir, stage, **overrides), *flags]
    command = [CLUSTER, "--devices=4", f"--grace={grace}", "2", "--", *arguments]
    return subprocess.Popen(
        command,
        cwd=run.ROOT,
        env=os.environ | {"PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def train_two(*arguments, **overrides) -> None:
    process = start_two(*arguments, **overrides)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output


def curve(workdir, stage) -> list[dict]:
    """What was measured while a stage trained, without its speed."""
    lines = [line for line in run.read_metrics(workdir) if "lr" in line]
    return [
        {name: line[name] for name in line if name not in ("stage", TIME)}
        for line in lines
        if line["stage"] == stage
    ]


def assert_close(curve, wanted):
    assert len(curve) == len(wanted) > 1
    for a, b in zip(curve, wanted, strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_two_processes_and_then_one_of_all_devices_learn_what_one_device_does(
    demo, tmp_path, cli
):
    workdir = tmp_path / "run"
    shutil.copytree(demo.workdir, workdir)
    for stage in ("t2i", "i2t"):
        shutil.rmtree(workdir / "checkpoints" / stage)
    for name in ("metrics.jsonl", "summary.json"):
        (workdir / name).unlink()
    halves = {"train.num_steps": 2, "checkpoint.every": 0}
    train_two(workdir, "t2i", **{"mesh.fsdp": 4}, **halves)
    assert steps_of(workdir, "t2i") == [2]
    outcome = cli(*run.command(workdir, "t2i", **{"mesh.tensor": 2}))
    assert outcome.status == 0, outcome.stderr
    assert_close(curve(workdir, "t2i"), curve(demo.workdir, "t2i"))
    assert steps_of(workdir, "t2i") == [2, 4]


MESHES = {
    "data": {"mesh.data": 8},
    "fsdp": {"mesh.data": 1, "mesh.fsdp": 8},
    "tensor": {"mesh.data": 4, "mesh.tensor": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenizer", "t2i"])
def test_a_loss_curve_does_not_depend_on_mesh_or_processes(demo, tmp_path, stage):
    """20 steps on one device, on 8 in three meshes and in two processes of 4."""
    overrides = {"train.num_steps": 20, "log.every": 1, "train.steps_per_call": 1}
    frozen = tmp_path / "frozen"
    for group in ("clip", "tokenizer")[: 1 + (stage == "t2i")]:
        folder = frozen / "checkpoints" / group
        shutil.copytree(demo.workdir / "checkpoints" / group, folder)
    shutil.copy(demo.workdir / "vocabulary.json", frozen)
    overrides |= {"init_from": frozen}

    def train(name, **mesh):
        count = "8" if mesh else "1"
        process = run.start(
            run.command(tmp_path / name, stage, **overrides, **mesh),
            JAX_NUM_CPU_DEVICES=count,
        )
        _, stderr = process.communicate(timeout=600)
        assert process.returncode == 0, stderr
        return curve(tmp_path / name, stage)

    wanted = train("one")
    assert len(wanted) == 20
    for name, mesh in MESHES.items():
        assert_close(train(name, **mesh), wanted)
    train_two(tmp_path / "two", stage, **overrides, **{"mesh.fsdp": 2})
    assert_close(curve(tmp_path / "two", stage), wanted)


def pid_of(workdir, index: int) -> int:
    """Of a process started by `start_two`, told by its arguments."""
    wanted = {f"--workdir={workdir}", f"--process_id={index}"}
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_text().split("\0")
        except OSError:  # it ended meanwhile
            continue
        if wanted <= set(arguments) and "python" in arguments[0]:
            return int(path.parent.name)
    raise AssertionError(f"no process {index} runs in {workdir}")


STAGE = "text_tokenizer"
LONG = {
    "per_stage.text_tokenizer.train.num_steps": 400,
    "checkpoint.every": 20,
    "log.every": 20,
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The digest that two processes come to."""
    workdir = tmp_path_factory.mktemp("whole")
    train_two(workdir, STAGE, **LONG)
    return run.digest(workdir, STAGE)


@pytest.mark.slow
def test_one_of_two_killed_ends_the_other_and_both_go_on_after(uninterrupted, tmp_path):
    """The other one ends with an error within 60 s, and not as if by a mistake (2)."""
    process = start_two(tmp_path, STAGE, grace=70, **LONG)
    run.wait_for(process, lambda: steps_of(tmp_path, STAGE))
    os.kill(pid_of(tmp_path, 1), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert "process 1 exited with status 137" in output
    assert "process 0 exited with status" in output
    assert "process 0 exited with status 2" not in output
    assert "stopping the others" not in output
    assert steps_of(tmp_path, STAGE)[-1] < 400
    train_two(tmp_path, STAGE, **LONG)
    assert run.digest(tmp_path, STAGE) == uninterrupted


@pytest.mark.slow
def test_sigterm_to_one_of_two_saves_in_both_and_they_go_on(uninterrupted, tmp_path):
    process = start_two(tmp_path, STAGE, **LONG)
    run.wait_for(process, lambda: steps_of(tmp_path, STAGE))
    os.kill(pid_of(tmp_path, 1), signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    marker = json.loads((tmp_path / "preempted.json").read_text())
    assert marker["step"] == steps_of(tmp_path, STAGE)[-1] < 400
    train_two(tmp_path, STAGE, **LONG)
    assert run.digest(tmp_path, STAGE) == uninterrupted
