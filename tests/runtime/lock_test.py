"""A folder that one run at a time writes to: on a disk, and in a bucket in memory."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from flowtok_jax.runtime import lock
from flowtok_jax.runtime.errors import PlaceError, StoreError, UserError
from flowtok_jax.runtime.files import LOCK, to_place
from flowtok_jax.runtime.lock import locked
from tests import run
from tests.runtime import files_test

store = files_test.store
place = files_test.place

HOLD = """
import pathlib, sys, time
from flowtok_jax.runtime.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("has it", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def holder(folder):
    """Another process, which has the folder."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    options = {"cwd": run.ROOT, "text": True, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **options) as process:
        assert process.stdout.readline() == "has it\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_holder_is_told_of_the_first(tmp_path):
    folder = tmp_path / "runs" / "x"
    with locked(folder):
        with pytest.raises(UserError) as refused, locked(folder):
            pass
        said = str(refused.value)
        since = json.loads((folder / LOCK).read_text())["since"]
    mine = f"process {os.getpid()} on {socket.gethostname()} since {since}"
    assert said.startswith(f"{folder} is in use by {mine}; ")
    assert "another --workdir" in said
    # What was made for the lock only is gone.
    assert list(tmp_path.iterdir()) == []
    with locked(folder):
        (folder / "config.json").touch()
    assert [path.name for path in folder.iterdir()] == ["config.json"]


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_lock_dies_with_its_process(tmp_path, name):
    with holder(tmp_path) as process:
        with pytest.raises(UserError, match=f"by process {process.pid} on "):
            locked(tmp_path).__enter__()
        process.send_signal(getattr(signal, name))
        process.wait()
        with locked(tmp_path):
            held = json.loads((tmp_path / LOCK).read_text())
    assert held["process"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("text", ["", "{", '{"process": 1, "host": "x", "since": "y"}'])
def test_the_file_of_a_dead_run_locks_nothing(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()


def test_a_holder_that_has_not_said_its_name_yet_is_told_too(tmp_path):
    with (tmp_path / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="in use by another process; "):
            locked(tmp_path).__enter__()


def test_a_file_that_its_holder_removes_meanwhile_is_not_the_lock(
    tmp_path, monkeypatch
):
    flock = fcntl.flock
    removed = []

    def late(file, how):
        if not removed:
            removed.append(True)
            (tmp_path / LOCK).unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path), pytest.raises(UserError, match="is in use by process"):
        locked(tmp_path).__enter__()


# NFS without its lock daemon, Lustre mounted without flock, some FUSE file systems.
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_warns_and_goes_on(tmp_path, monkeypatch, caplog, number):
    def refuse(file, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path):
        assert (tmp_path / LOCK).exists()
    assert f"has no locks ({os.strerror(number)}); start no second" in caplog.text


def test_only_process_0_takes_the_lock_of_a_run_of_several(tmp_path, monkeypatch):
    with locked(tmp_path):  # by process 0
        monkeypatch.setattr(lock, "first_does", lambda function: None)
        with locked(tmp_path):  # by another
            assert (tmp_path / LOCK).exists()
        assert (tmp_path / LOCK).exists()


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("/proc/x", " (nothing can be made there); give another place"),
        ("/dev/null/x", ": /dev/null is a file; expected a directory"),
        (__file__, f": {__file__} is a file; expected a directory"),
    ],
)
def test_a_folder_that_cannot_be_written_is_said(folder, reason):
    with pytest.raises(PlaceError) as refused:
        locked(to_place(folder)).__enter__()
    assert str(refused.value) == f"{folder}/{LOCK} cannot be written{reason}"


@pytest.fixture
def quick(monkeypatch):
    """Leases whose holders beat, and are watched, in tenths of seconds."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 1.0)
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.05)


def test_in_a_bucket_a_second_holder_is_told_of_the_first(place, store, quick):
    with locked(place):
        with pytest.raises(UserError, match=f"run is in use by process {os.getpid()} "):
            locked(place).__enter__()
        assert (place / LOCK).exists()
    assert not (place / LOCK).exists()
    with locked(place):
        assert (place / LOCK).exists()


@pytest.mark.parametrize(
    "text", ["", '{"process": 1, "host": "h", "since": "s", "token": "t", "beat": 3}']
)
def test_in_a_bucket_the_lease_of_a_dead_run_is_taken_over(place, store, quick, text):
    (place / LOCK).write_text(text)
    begun = time.monotonic()
    with locked(place):
        assert time.monotonic() - begun > 0.9
        assert json.loads((place / LOCK).read_text())["process"] == os.getpid()


def test_in_a_bucket_a_run_that_ends_while_it_is_watched_is_waited_for(
    place, store, quick
):
    (place / LOCK).write_text("{}")
    timer = threading.Timer(0.3, (place / LOCK).unlink)
    timer.start()
    begun = time.monotonic()
    with locked(place):
        assert time.monotonic() - begun < 0.9
    timer.join()


def test_a_run_whose_lease_another_took_ends_at_once(place, store, quick, monkeypatch):
    ended = threading.Event()
    said = []

    def leave(status):
        said.append(status)
        ended.set()
        threading.Event().wait()  # as no code runs after the real one

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(os, "write", lambda file, text: said.append(text.decode()))
    theirs = {"process": 7, "host": "h", "since": "s", "token": "theirs"}
    with locked(place):
        (place / LOCK).write_text(json.dumps(theirs))
        assert ended.wait(10)
    assert said[0].startswith(f"error: {place} is in use by process 7 on h since s; ")
    assert said[1] == 1
    # It is the other's to remove.
    assert json.loads((place / LOCK).read_text()) == theirs


def test_a_lease_outlasts_a_failure_of_the_store(place, store, quick, monkeypatch):
    with locked(place):
        monkeypatch.setattr(store, "failure", OSError("503"))
        time.sleep(0.4)
        monkeypatch.setattr(store, "failure", None)
        before = json.loads((place / LOCK).read_text())["beat"]
        time.sleep(0.4)
        assert json.loads((place / LOCK).read_text())["beat"] > before


def test_a_bucket_that_refuses_at_the_start_is_a_mistake(place, store, monkeypatch):
    monkeypatch.setattr(store, "failure", OSError("Forbidden"))
    with pytest.raises(UserError, match=f"{LOCK} cannot be read or written") as refused:
        locked(place).__enter__()
    assert not isinstance(refused.value, StoreError)


def test_a_second_run_on_a_workdir_ends_in_one_line_and_the_first_goes_on(tmp_path):
    command = run.command(tmp_path / "run", "tokenizer")
    first = run.start(command)
    run.wait_for(first, (tmp_path / "run" / LOCK).exists)
    second = run.start(command)
    stdout, stderr = second.communicate(timeout=300)
    assert second.returncode == 2, stderr
    assert stdout == ""
    assert f"is in use by process {first.pid} on " in stderr.splitlines()[-1]
    _, stderr = first.communicate(timeout=300)
    assert first.returncode == 0, stderr
    steps = [x["step"] for x in run.read_metrics(tmp_path / "run") if "loss/total" in x]
    assert steps == [2, 4]
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert not names & {LOCK, "preempted.json"}


def test_a_workdir_in_use_is_sampled_from_and_not_trained_in(cli, demo, tmp_path):
    config = demo.workdir / "config.json"
    before = config.stat().st_mtime_ns
    with locked(demo.workdir):
        refused = cli(*run.command(demo.workdir))
        drawn = cli(
            "--mode=sample",
            f"--checkpoint={demo.workdir}",
            f"--workdir={tmp_path}",
            "--prompts=a red circle",
        )
    assert refused.status == 2
    assert f"{demo.workdir} is in use by process " in refused.complaint
    assert config.stat().st_mtime_ns == before
    assert drawn.status == 0
