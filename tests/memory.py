"""Memory that a piece of work takes, decoders in C included."""

import contextlib
import pathlib

PROCESS = pathlib.Path("/proc/self")


def _megabytes(field: str) -> float:
    lines = (PROCESS / "status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(field))
    return int(line.split()[1]) / 1024


@contextlib.contextmanager
def at_most(megabytes: float):
    """Fails where the process's peak grows by more than so much."""
    (PROCESS / "clear_refs").write_text("5")  # the peak becomes what is held now
    before = _megabytes("VmRSS:")
    yield
    grown = _megabytes("VmHWM:") - before
    assert grown <= megabytes, f"took {grown:.0f} MB, expected at most {megabytes}"
