"""Lock of a folder that one run at a time writes to.

On local disks and NFS the operating system holds the lock of the file LOCK (flock), and
drops it when the process ends, however it ends. The file that a killed run leaves
behind locks nothing.

In a bucket LOCK is a lease: an object that only one run can make, and that its holder
writes anew every BEAT_SECONDS. An object that stays as it is for WATCH_SECONDS is that
of a killed run. No clocks are compared.
"""

import contextlib
import datetime
import errno
import fcntl
import io
import json
import logging
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import fsspec
from etils import epath

from flowtok_jax.runtime.errors import StoreError, UserError
from flowtok_jax.runtime.files import (
    LOCK,
    Place,
    absent_folders,
    is_remote,
    reaching,
    read_bytes,
    remove_empty,
    write_json,
    writing,
)
from flowtok_jax.runtime.processes import first_does

BEAT_SECONDS = 15.0
WATCH_SECONDS = 60.0
LOOK_SECONDS = 5.0  # between two looks at a lease that may be a dead run's
# What the kernel says of a lock that is taken: flock's answer, and that of some NFS.
TAKEN = (errno.EAGAIN, errno.EACCES)

Holder = dict[str, Any]


@contextlib.contextmanager
def locked(folder: Place) -> Iterator[None]:
    """Keeps a folder for this run, until the end of the block.

    The folder is made where there is none, and removed again if it stays empty. Every
    process of a run calls it; process 0 takes the lock for all.

    Raises:
        UserError: where another process has the folder, saying which; or where the
            lock cannot be written.
    """
    take = _leased if is_remote(folder) else _flocked
    with contextlib.ExitStack() as held:
        first_does(lambda: held.enter_context(take(folder)))
        yield


def _describe_self() -> Holder:
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
    }


def _tell(holder: Holder | None) -> str:
    """Names the holder of a lock, as far as its file says."""
    if not holder:
        return "another process"
    return "process {process} on {host} since {since}".format_map(holder)


def _refusal(folder: Place, holder: Holder | None) -> UserError:
    return UserError(
        f"{folder} is in use by {_tell(holder)}; wait for its end, or give another "
        "--workdir"
    )


def _parse(data: bytes) -> Holder | None:
    """Reads what a lock says of its holder; None while it is being written."""
    try:
        return json.loads(data)
    except ValueError:
        return None


@contextlib.contextmanager
def _flocked(folder: pathlib.Path) -> Iterator[None]:
    path = folder / LOCK
    made = absent_folders(folder)
    try:
        with writing(path):
            folder.mkdir(parents=True, exist_ok=True)
            file = _open_locked(path)
            file.truncate(0)
            file.write(json.dumps(_describe_self()).encode())
        with file:
            try:
                yield
            finally:
                # Still locked: whoever opens it now sees that it is the file no more.
                with contextlib.suppress(OSError):
                    path.unlink()
    finally:
        remove_empty(made)


def _open_locked(path: pathlib.Path) -> io.FileIO:
    """Opens the file of a lock and takes the lock."""
    while True:
        # Not emptied yet: what it says may be of the run that holds it.
        file = io.FileIO(path, "a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in TAKEN:
                file.seek(0)
                with file:
                    raise _refusal(path.parent, _parse(file.read())) from error
            logging.warning(
                "%s has no locks (%s); start no second run there",
                path.parent,
                error.strerror,
            )
        # A run that just ended may have removed it after it was opened here.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


@contextlib.contextmanager
def _leased(folder: epath.Path) -> Iterator[None]:
    path = folder / LOCK
    mine = _describe_self() | {"token": secrets.token_hex(8), "beat": 0}
    try:
        with reaching(path):
            _take_lease(path, mine)
    except StoreError as error:  # at the start it is a mistake, not bad luck
        raise UserError(str(error)) from error
    ended = threading.Event()
    beats = threading.Thread(target=_beat, args=(path, mine, ended), daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join(BEAT_SECONDS)
        with contextlib.suppress(StoreError), reaching(path):
            if _is_mine(path, mine):
                path.unlink()


def _take_lease(path: epath.Path, mine: Holder) -> None:
    """Makes the object of a lease, once there is none or only a dead run's."""
    store = fsspec.filesystem("gcs")
    data = json.dumps(mine).encode()
    while True:
        try:
            store.pipe_file(str(path), data, mode="create")
            return
        except FileExistsError:
            there = _read_lease(path)
        # The answer to a first try may have been lost on the way.
        if there == mine:
            return
        if there is not None and _stays(path, there):
            path.unlink(missing_ok=True)


def _stays(path: epath.Path, there: Holder) -> bool:
    """Watches a lease, and says whether it is a dead run's.

    Raises:
        UserError: where its holder lives.
    """
    logging.info(
        "%s was in use by %s; looking for %.0f s whether it still is",
        path.parent,
        _tell(there),
        WATCH_SECONDS,
    )
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
        now = _read_lease(path)
        if now is None:  # its run has just ended
            return False
        if now != there:
            raise _refusal(path.parent, now)
    return True


def _read_lease(path: epath.Path) -> Holder | None:
    try:
        return _parse(read_bytes(path)) or {}
    except FileNotFoundError:
        return None


def _is_mine(path: epath.Path, mine: Holder) -> bool:
    there = _read_lease(path)
    return there is not None and there.get("token") == mine["token"]


def _beat(path: epath.Path, mine: Holder, ended: threading.Event) -> None:
    """Writes the lease anew until the end; ends the process that lost it."""
    while not ended.wait(BEAT_SECONDS):
        # A store that fails now may work at the next beat.
        with contextlib.suppress(StoreError):
            there = _read_lease(path)
            if there and there.get("token") != mine["token"]:
                # It was out of reach for so long that it was taken for dead. At once:
                # nothing more may be written there.
                os.write(2, f"error: {_refusal(path.parent, there)}\n".encode())
                os._exit(1)
            mine["beat"] += 1
            write_json(path, mine)
