"""local_cluster.sh and process.sh with a fake main: flags, output, status, signals."""

import os
import signal
import subprocess
import sys

import pytest

# A main that says its flags, then does what its process should.
MAIN = """#!/usr/bin/env bash
trap 'echo saved; exit 0' TERM
process=0
for flag in "$@"; do
  [[ $flag != --process_id=* ]] || process=${{flag#*=}}
done
echo "args $*"
echo "devices $JAX_NUM_CPU_DEVICES on $JAX_PLATFORMS"
go_on() {{ while :; do sleep 0.05; done; }}
case $process in
  0) {0} ;;
  *) {1} ;;
esac
"""


@pytest.fixture
def cluster(fakes):
    """Runs local_cluster.sh with two processes that do these things."""

    def run(first: str, second: str, *options: str):
        python = fakes.add("main", MAIN.format(first, second))
        return fakes.run(
            "local_cluster.sh", *options, "2", "--", "--a=b c", PYTHON=str(python)
        )

    return run


def test_each_process_gets_its_flags_and_its_lines_are_marked(cluster):
    outcome = cluster("echo out", "printf err >&2", "--devices=4", "--port=1234")
    assert outcome.returncode == 0
    lines = outcome.stdout.splitlines()
    flags = "-m flowtok_jax.main --coordinator=127.0.0.1:1234 --num_processes=2"
    for process, last in ((0, "out"), (1, "err")):
        mark = f"[{process}] "
        assert [x.removeprefix(mark) for x in lines if x.startswith(mark)] == [
            f"args {flags} --process_id={process} --a=b c",
            "devices 4 on cpu",
            last,
        ]


def test_a_free_port_is_found(cluster):
    outcome = cluster("true", "true")
    ports = {
        part.rpartition(":")[2]
        for part in outcome.stdout.split()
        if part.startswith("--coordinator=127.0.0.1:")
    }
    assert len(ports) == 1
    assert 20000 <= int(ports.pop()) < 32768


def test_the_first_failure_is_the_status(cluster):
    outcome = cluster("sleep 0.5; exit 4", "exit 3")
    assert outcome.returncode == 3
    assert outcome.stderr.splitlines() == [
        "process 1 exited with status 3",
        "process 0 exited with status 4",
    ]


def test_the_others_are_stopped_after_a_failure(cluster):
    outcome = cluster("go_on", "exit 3", "--grace=0")
    assert outcome.returncode == 3
    assert "[0] saved" in outcome.stdout
    assert "stopping the others" in outcome.stderr


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)]
)
def test_signals_reach_all(fakes, number, status):
    python = fakes.add("main", MAIN.format("go_on", "go_on"))
    arguments = ("local_cluster.sh", "2", "--", "--a=b")
    with fakes.start(*arguments, PYTHON=str(python)) as process:
        started = set()
        while len(started) < 2:
            line = process.stdout.readline()
            assert line, "it ended before it was told to"
            if "devices" in line:
                started.add(line[:3])
        if number == signal.SIGINT:  # as from a terminal, to the whole group
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        stdout, _ = process.communicate(timeout=20)
    assert sorted(stdout.splitlines()) == ["[0] saved", "[1] saved"]
    assert process.returncode == status


def test_jax_takes_the_number_of_devices_from_the_variable():
    code = "import jax; assert jax.device_count() == 3"
    variables = {"JAX_NUM_CPU_DEVICES": "3", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], env=os.environ | variables, check=True)


@pytest.mark.parametrize(
    ("does", "told", "status"),
    [("true", False, 0), ("exit 2", False, 2), ("go_on", True, 143)],
)
def test_a_process_that_was_stopped_differs_from_a_finished_one(
    fakes, does, told, status
):
    python = fakes.add("main", MAIN.format(does, "true"))
    with fakes.start("process.sh", "gpu", "--a=b", PYTHON=str(python)) as process:
        assert process.stdout.readline() == "args -m flowtok_jax.main --a=b\n"
        if told:
            process.send_signal(signal.SIGTERM)
        stdout, _ = process.communicate(timeout=20)
    assert ("saved" in stdout) == told
    assert process.returncode == status
