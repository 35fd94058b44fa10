"""The frame of every command: logging, compiled programs, errors, exit status.

Exit status: 0 for success; 1 where some inputs failed or a store may work again on the
next try; 2 for a user's mistake; 130 after Ctrl-C. A traceback means a bug.
"""

import argparse
import logging
import os
import shlex
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
from absl import flags

from flowtok_jax.runtime import processes
from flowtok_jax.runtime.compilation_cache import use_compilation_cache
from flowtok_jax.runtime.errors import StoreError, UserError, WriteError
from flowtok_jax.runtime.files import BAD_DISK, NO_ROOM

WIDTH = 80  # columns of help
SCRIPT = "flowtok"  # the command that an installation brings

# Their own log level, where the root's would let through what only we can act on.
QUIET_LIBRARIES = ("jax", "grain", "httpx", "huggingface_hub", "fsspec")
# What these log as an error they raise as well, and we report.
SILENT_LIBRARIES = ("absl", "orbax", "asyncio", "concurrent.futures", "gcsfs")

# name, type, default, help: the same flags for absl's and for argparse's commands
CLUSTER_FLAGS: Sequence[tuple[str, type, Any, str]] = (
    (
        "coordinator",
        str,
        None,
        "HOST:PORT of process 0 of several that work together; on Slurm, Open MPI, GKE "
        "and Cloud TPU they find one another without it.",
    ),
    ("num_processes", int, None, "Number of processes, beside --coordinator."),
    ("process_id", int, None, "Number of this one, from 0, beside --coordinator."),
    ("cluster_timeout", int, 60, "Seconds to wait for the others at the start."),
)


class _OneLine(logging.Formatter):
    """A message as a person reads it, with its level from WARNING on."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        return f"{record.levelname.lower()}: {text}"


class _StderrHandler(logging.StreamHandler):
    """A handler that writes to what sys.stderr is by then: above a bar, if one stands.

    The class of the standard library keeps the stderr of its start.
    """

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


def set_up_logging() -> None:
    """Shows our messages from INFO on and libraries' from WARNING on, on stderr."""
    handler = _StderrHandler()
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in SILENT_LIBRARIES:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"(orbax|tensorboardX|google)\b")


def define_cluster_flags() -> None:
    """Defines the cluster's flags for a command of absl's."""
    for name, kind, default, text in CLUSTER_FLAGS:
        define = flags.DEFINE_string if kind is str else flags.DEFINE_integer
        define(name, default, text)


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the cluster's flags to a command of argparse's."""
    for name, kind, default, text in CLUSTER_FLAGS:
        parser.add_argument(f"--{name}", type=kind, default=default, help=text)


def join_processes(values: Any) -> None:
    """Makes this process one of several, where flags or a cluster say so.

    Args:
        values: parsed flags that have those of CLUSTER_FLAGS as attributes.
    """
    processes.start(**{name: getattr(values, name) for name, *_ in CLUSTER_FLAGS})


def make_command_parser(module: str, description: str) -> argparse.ArgumentParser:
    """Makes the parser of a command `python -m MODULE`."""
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def wrap_text(text: str, start: str) -> list[str]:
    """Wraps a text at WIDTH columns; `start` opens the first line.

    The other lines are indented as it, or by four spaces.
    """
    indent = start if start.isspace() else " " * 4
    joined = " ".join(text.split())
    return textwrap.wrap(
        joined,
        WIDTH,
        initial_indent=start,
        subsequent_indent=indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def say(line: str) -> None:
    """Writes a result to stdout at once, so that a pipe sees it while we work on."""
    # What a terminal cannot show is escaped there, as Python does on stderr.
    encoding = sys.stdout.encoding or "utf-8"
    shown = line.encode(encoding, "backslashreplace").decode(encoding)
    sys.stdout.write(shown + "\n")
    sys.stdout.flush()


def typed_command() -> str:
    """Returns this process's command line, to be typed again."""
    program, *arguments = sys.argv
    is_script = os.path.basename(program) == SCRIPT
    words = [SCRIPT] if is_script else ["python", "-m", "flowtok_jax.main"]
    return shlex.join([*words, *arguments])


def run_command(
    command: Callable[[], int | None],
    interrupted: str = "interrupted; the same command goes on from here",
) -> int:
    """Runs a command and turns the way it ends into an exit status.

    Args:
        command: returns the status, None for 0; a user's mistake is a UserError.
        interrupted: the line that Ctrl-C ends in.
    """
    set_up_logging()
    use_compilation_cache()
    try:
        return command() or 0
    except StoreError as error:
        _end_at_once(f"error: {error}", 1)
    except WriteError as error:
        _end_at_once(f"error: {error}", 2)
    except UserError as error:
        return _end(f"error: {error}", 2)
    except KeyboardInterrupt:
        return _end(interrupted, 130)
    except BrokenPipeError:  # as of `| head`, which has read what it wanted
        _end_at_once("", 141)
    except OSError as error:
        if error.errno in NO_ROOM:
            text = f"error: {error}; make room, and the same command goes on"
            _end_at_once(text, 2)
        if error.filename is None and error.errno not in BAD_DISK:
            _raise_alone()
        # A disk that fails, a folder without permission: no bug, wherever it shows.
        text = f"error: {error.filename or 'a file'} cannot be read or written"
        _end_at_once(f"{text} ({error.strerror})", 2)
    except Exception:
        _raise_alone()


def _end(text: str, status: int) -> int:
    """Says the last line; one process of several ends here and now.

    At exit JAX would wait for the other processes, which wait for this one.
    """
    if jax.distributed.is_initialized():
        _end_at_once(text, status)
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
    return status


def _end_at_once(text: str, status: int) -> NoReturn:
    """Ends the process before libraries write, and complain again, at exit."""
    if text:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    os._exit(status)


def _raise_alone() -> NoReturn:
    """Raises the bug again; one process of several ends at once, as do the others."""
    if jax.distributed.is_initialized():
        traceback.print_exc()
        _end_at_once("error: this process failed; the others end within a minute", 1)
    raise  # noqa: PLE0704 - called while an exception is handled
