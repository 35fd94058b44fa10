"""Tests of generated examples, each under a bound of seconds and of memory."""

import contextlib
import pathlib
import re
import resource
import signal
import tempfile
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

from flowtok_jax.data.captions import SPACES
from flowtok_jax.data.records import BROKEN, REASONS, BadRecord, Record, Records
from flowtok_jax.data.sources import make_records, parse_sources
from flowtok_jax.runtime.errors import UserError

SECONDS = 10  # of the processor, for one example; most take milliseconds
PATIENCE = 12  # times as many on the clock, on a machine that does other work too
MEGABYTES = 1024  # that an example may add to what the process has
MORE = 10  # times as many examples behind the marker `slow`


class Hang(BaseException):
    """An example that took too long; no `except Exception` swallows it."""


@contextlib.contextmanager
def bounded(seconds: int = SECONDS, megabytes: int = MEGABYTES) -> Iterator[None]:
    """Ends a block that takes too long, and refuses it more memory than allowed."""

    def stop(*_):
        raise Hang(f"over {seconds} s of work, or {PATIENCE} times as much of waiting")

    # What is written to, not reserved: every thread reserves far more than it uses.
    status = pathlib.Path("/proc/self/status").read_text()
    used = int(re.search(r"VmData:\s+(\d+) kB", status)[1]) << 10
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    before = [
        signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)
    ]
    resource.setrlimit(resource.RLIMIT_DATA, (used + (megabytes << 20), hard))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(PATIENCE * seconds)  # of what waits, as for the other end of a pipe
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        signal.signal(signal.SIGPROF, before[0])
        signal.signal(signal.SIGALRM, before[1])


def odd(examples: int, **strategies: SearchStrategy) -> Callable:
    """Makes a test of a function of generated values: the same few in each run, and
    behind the marker `slow` many that differ from run to run.
    """

    def decorate(function: Callable) -> Callable:
        def once(**values):
            with bounded():
                function(**values)

        @pytest.mark.parametrize(
            "times", [1, pytest.param(MORE, marks=pytest.mark.slow)]
        )
        def test(times: int):
            options = settings(
                max_examples=examples * times,
                derandomize=times == 1,
                database=None,
                deadline=None,  # `bounded` has one
                suppress_health_check=list(HealthCheck),
                print_blob=False,
            )
            options(given(**strategies)(once))()

        test.__name__ = function.__name__
        test.__doc__ = function.__doc__
        return test

    return decorate


@contextlib.contextmanager
def fresh() -> Iterator[pathlib.Path]:
    """Yields an empty directory of an example's own."""
    with tempfile.TemporaryDirectory(prefix="odd") as name:
        yield pathlib.Path(name)


def check_error(error: UserError) -> None:
    """Checks that an error can be printed, and is one line of readable length."""
    text = str(error)
    assert text.strip()
    assert "\n" not in text, text
    assert len(text) < 3000, text


def check_bad(bad: BadRecord) -> None:
    """Checks that a reason is one of the list, and that no lack of memory is behind."""
    assert bad.reason in REASONS
    assert bad.name
    cause = bad
    while cause is not None:
        assert not isinstance(cause, MemoryError), bad
        cause = cause.__cause__ or cause.__context__


def opened(function: Callable, *arguments, **options):
    """Returns what a function returns, or None where a UserError says why not."""
    try:
        return function(*arguments, **options)
    except UserError as error:
        check_error(error)
        return None


def open_records(spec: str, **options) -> Records:
    """Opens the records of a source string of one source.

    Raises:
        UserError: if the string or what it names is wrong.
    """
    (part,) = parse_sources(spec)
    return make_records(part, image_size=8, seed=0, **options)


def read_all(records: Records) -> tuple[list[Record], list[BadRecord]]:
    """Reads every record, and returns the usable and the rejected ones."""
    usable = []
    rejected = []
    for found in records.read_many(range(len(records))):
        if isinstance(found, BadRecord):
            check_bad(found)
            assert found.reason in BROKEN
            rejected.append(found)
        else:
            check_record(found)
            usable.append(found)
    assert len(usable) + len(rejected) == len(records)
    return usable, rejected


def check_record(record: Record) -> None:
    """Checks that captions are texts to train on: not empty, and UTF-8."""
    assert record.name
    assert record.captions + record.recaptions
    for text in record.captions + record.recaptions:
        assert text.strip()
        assert text == text.strip(SPACES)
        text.encode()
