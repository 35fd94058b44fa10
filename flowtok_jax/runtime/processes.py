"""Several processes as one run: how they find one another, and who writes.

A cluster is looked for where its scheduler says that there is one (Slurm's srun, Open
MPI, GKE, a Cloud TPU VM), or given by hand. Alone, a process is simply itself.
"""

import contextlib
import glob
import importlib.util
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from flowtok_jax.runtime.errors import StoreError, UserError, WriteError

# A process that is gone is noticed after so many seconds, and the others end.
HEARTBEAT_SECONDS = 30
SAY_SECONDS = 5.0
MESSAGE_BYTES = 2048
STOP_SECONDS = 3.0  # after a second Ctrl-C, until the process is ended by force
STOPPING = (
    "Ctrl-C: ends after the steps under way, and saves; again: ends at once, and goes "
    "back to the last checkpoint"
)

# Failures of process 0 that are of the same kind in all, by their names.
SHARED_FAILURES = {k.__name__: k for k in (StoreError, WriteError, UserError, OSError)}

STARTERS = (
    "start the same command on every worker: launch/tpu_pod.sh on Cloud TPU, "
    "launch/gpu_slurm.sh or srun on Slurm, launch/local_cluster.sh on one machine"
)


def find_cluster(environ: Mapping[str, str]) -> str | None:
    """Returns JAX's name of the cluster that the environment tells of.

    None if there is none, or one of a single process that needs no start.

    Raises:
        UserError: if it tells too little to find the other processes.
    """
    if int(environ.get("SLURM_NTASKS", 1)) > 1:
        if "SLURM_STEP_NODELIST" in environ and "SLURM_PROCID" in environ:
            return "slurm"
        logging.warning(
            "SLURM_NTASKS is %s but this process was not started by srun: it trains "
            "alone",
            environ["SLURM_NTASKS"],
        )
    if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        if "OMPI_MCA_orte_hnp_uri" in environ:
            return "ompi"
        if importlib.util.find_spec("mpi4py"):
            return "mpi4py"
        raise UserError(
            "this Open MPI does not say where process 0 runs; expected "
            "--coordinator=HOST:PORT (the number of processes is known), or mpi4py "
            "installed"
        )
    return _find_tpu(environ)


def _find_tpu(environ: Mapping[str, str]) -> str | None:
    devices = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    if not (devices and importlib.util.find_spec("libtpu")):
        return None
    if environ.get("JAX_PLATFORMS", "tpu").split(",")[0] != "tpu":
        return None
    hosts = environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES"))
    if hosts is None:
        return None if "TPU_SKIP_MDS_QUERY" in environ else "gcetpu"
    slices = int(environ.get("MEGASCALE_NUM_SLICES") or 1)
    return "gketpu" if "," in hosts or slices > 1 else None


def start(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    cluster_timeout: int,
) -> None:
    """Joins the other processes, where there are others; call before any computation.

    Of several the first one speaks: the others log from WARNING on.

    Args:
        coordinator: HOST:PORT of process 0; with the two numbers, instead of what the
            environment says.
        cluster_timeout: seconds to wait for the others.

    Raises:
        UserError: for arguments that do not fit together. Where the others do not come
            the process ends with a line of its own and status 1.
    """
    environ = os.environ
    if coordinator:
        if num_processes is None:
            num_processes = int(environ.get("OMPI_COMM_WORLD_SIZE", 0)) or None
            process_id = int(environ.get("OMPI_COMM_WORLD_RANK", 0))
        given = _check_given(coordinator, num_processes, process_id)
        what = f"process {process_id} of {num_processes} at {coordinator}"
    elif num_processes is not None or process_id is not None:
        raise UserError(
            "--num_processes and --process_id need --coordinator=HOST:PORT, the "
            "address of process 0"
        )
    else:
        found = find_cluster(environ)
        if found is None:
            return
        given = {"cluster_detection_method": found}
        what = f"this process, of a cluster found by {found},"
    with _impatient(what, cluster_timeout):
        jax.distributed.initialize(
            **given,
            # Ours ends first, with a clear line.
            initialization_timeout=cluster_timeout + 60,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    if not is_first():
        logging.getLogger().setLevel(logging.WARNING)


def _check_given(address: str, count: int | None, index: int | None) -> dict:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"--coordinator is {address!r}; expected HOST:PORT")
    if count is None or index is None or not 0 <= index < count:
        raise UserError(
            f"--num_processes is {count} and --process_id {index}; expected both, the "
            "second from 0 to the first - 1"
        )
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": index,
        "cluster_detection_method": "deactivate",
    }


@contextlib.contextmanager
def _impatient(what: str, timeout: int) -> Iterator[None]:
    """Says what is waited for, and ends the process where it does not come.

    From another thread: JAX waits in native code, and aborts when it gives up.
    """
    done = threading.Event()

    def watch():
        if done.wait(min(SAY_SECONDS, timeout)):
            return
        logging.info("%s waits for the others, %d s at most", what, timeout)
        if not done.wait(timeout - min(SAY_SECONDS, timeout)):
            text = f"error: {what} waited {timeout} s and the others did not come; "
            os.write(2, f"{text}{STARTERS}\n".encode())
            os._exit(1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def is_first() -> bool:
    """Says whether this process is the one that writes and speaks for all."""
    return jax.process_index() == 0


def first_does(function: Callable[[], object]) -> None:
    """Has process 0 call the function, while the others wait.

    Raises:
        Exception: in process 0 what the function raises, in the others one of the same
            kind, so that all end with the same status: a store's failure stays one
            that may be tried again, and a full disk stays an OSError of that number.
            A bug is a RuntimeError in the others.
    """
    if jax.process_count() == 1:
        function()
        return
    failure: Exception | None = None
    if is_first():
        try:
            function()
        except Exception as error:  # the others have to hear of it, whatever it is
            failure = error
    message = _pack_failure(failure).ljust(MESSAGE_BYTES, b"\0")
    # Arrays of one size and type are all that can be broadcast.
    padded = np.frombuffer(message, np.uint8)
    heard = bytes(multihost_utils.broadcast_one_to_all(padded)).rstrip(b"\0")
    if failure is not None:
        raise failure
    if heard:
        raise _unpack_failure(heard)


def _pack_failure(failure: Exception | None) -> bytes:
    """Encodes an exception as class, error number and text; nothing for none."""
    if failure is None:
        return b""
    number = ""
    text = str(failure)
    if isinstance(failure, OSError) and failure.errno is not None:
        number = str(failure.errno)
        text = f"{failure.strerror} (process 0: {failure.filename})"
    # A kind that others do not know is told by its nearest parent.
    names = (kind.__name__ for kind in type(failure).__mro__)
    name = next((n for n in names if n in SHARED_FAILURES), type(failure).__name__)
    return "\0".join((name, number, text)).encode()[:MESSAGE_BYTES]


def _unpack_failure(message: bytes) -> Exception:
    """Makes the exception that another process's failure is here."""
    # Zeros at the end were cut off with the padding.
    name, number, text, *_ = (message.decode(errors="replace") + "\0\0").split("\0")
    if name in SHARED_FAILURES:
        return SHARED_FAILURES[name](*[int(number)] if number else [], text)
    return RuntimeError(f"process 0 failed: {name}: {text}")


def total(values: np.ndarray) -> np.ndarray:
    """Sums the values of all processes, each of which has to call it."""
    if jax.process_count() == 1:
        return values
    return multihost_utils.process_allgather(values).sum(0)


def total_counts(counts: Mapping[str, int], names: Sequence[str]) -> dict[str, int]:
    """Sums counts by name over all processes, which have to call it; leaves out 0.

    Args:
        counts: this process's, such as a Counter.
        names: all that may be counted, in the same order everywhere.
    """
    totals = total(np.array([counts[name] for name in names]))
    found = zip(names, totals.tolist(), strict=True)
    return {name: count for name, count in found if count}


class Preemption:
    """A listener for SIGTERM and Ctrl-C, with the same answer in all processes.

    A context manager, one for a whole run. Among several processes it is JAX that
    listens to SIGTERM, which Ctrl-C becomes: one of them is enough, and all end after
    the same look. A second Ctrl-C is a KeyboardInterrupt.

    Attributes:
        noted: whether to end, as of the last look where there are several processes.
        interrupted: whether Ctrl-C came to this process.
    """

    def __init__(self):
        self.noted = False
        self.interrupted = False
        self._looks = 0
        self._held = contextlib.ExitStack()

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is not threading.main_thread():
            return self
        if jax.process_count() == 1:
            self._listen(signal.SIGTERM, self._note)
        # Of a run in the background, or under nohup, the shell has it ignored.
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self._listen(signal.SIGINT, self._interrupt)
            self._held.enter_context(_hearing_interrupts())
        return self

    def __exit__(self, *exception) -> None:
        self._held.close()

    def _listen(self, number: int, handler: Callable[..., None]) -> None:
        before = signal.signal(number, handler)
        self._held.callback(signal.signal, number, before)

    def _note(self, *_) -> None:
        self.noted = True

    def _interrupt(self, *_) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        if jax.process_count() == 1:
            self.noted = True
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    def look(self) -> bool:
        """Says whether to end now; every process has to look as often as the others."""
        if jax.process_count() > 1:
            self._looks += 1  # JAX wants numbers that rise by one, whatever the step
            reached = multihost_utils.reached_preemption_sync_point(self._looks)
            self.noted = self.noted or reached
        return self.noted


@contextlib.contextmanager
def _hearing_interrupts() -> Iterator[None]:
    """Answers each Ctrl-C at once, by a line and, the second time, by the end.

    Python runs a signal's handler only between two steps of its own, and compiling one
    program may take minutes. The number of a signal comes through a pipe meanwhile.
    """
    source, target = os.pipe()
    os.set_blocking(target, False)
    before = signal.set_wakeup_fd(target, warn_on_full_buffer=False)
    done = threading.Event()

    def listen() -> None:
        count = 0
        while numbers := os.read(source, 64):
            count += numbers.count(signal.SIGINT)
            if count == 1:
                logging.warning(STOPPING)
            # Whole or not at all: what a killed run leaves behind is sound.
            elif count > 1 and not done.wait(STOP_SECONDS):
                os.write(2, b"interrupted; the same command goes on from here\n")
                os._exit(130)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        signal.set_wakeup_fd(before)
        os.close(target)  # which ends the thread
        thread.join()
        os.close(source)
