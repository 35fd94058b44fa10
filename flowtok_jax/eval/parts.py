"""What an evaluation is made of: a part computes arrays of some samples at a time, and
measures them when all are there.
"""

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from flowtok_jax.data.records import BadRecord
from flowtok_jax.eval.chunks import Arrays

SHOWN, COLUMNS = 16, 8  # samples that the picture shows
NO_WEIGHTS = (
    "eval.weights names no metric weights; wanted a directory made by `python -m "
    "flowtok_jax.convert --inception=FILE --lpips=FILES --clip_score=DIR --out=DIR`"
)


def rejected(bad: Sequence[BadRecord]) -> np.ndarray:
    """Records that were left out, as an array beside the others: reason, tab, name."""
    return np.array([f"{record.reason}\t{record.name}" for record in bad], np.str_)


class Measured(NamedTuple):
    """Numbers by name; what could not be measured, and why; what to say beside them;
    and what has a JSON file of its own, by the end of its name.
    """

    metrics: dict[str, float]
    not_measured: dict[str, str] = {}
    details: dict[str, Any] = {}
    files: dict[str, Any] = {}

    def merge(self, other: "Measured") -> "Measured":
        """Both together."""
        return Measured(*(a | b for a, b in zip(self, other, strict=True)))


class Part(abc.ABC):
    """Something to evaluate.

    Attributes:
        name: of GROUPS in modes/eval.py.
        protocol: all that the numbers depend on, for JSON.
        count: of samples.
    """

    name: str
    protocol: dict[str, Any]
    count: int

    @abc.abstractmethod
    def compute(self, rows: range) -> Arrays:
        """Arrays of the samples with these numbers; every process calls it.

        `shown` has up to SHOWN images for the picture, `rejected` what was left out.
        """

    @abc.abstractmethod
    def measure(self, arrays: Arrays) -> Measured:
        """The numbers, of all the samples' arrays; process 0 alone calls it."""

    @abc.abstractmethod
    def picture(self, arrays: Arrays) -> np.ndarray:
        """Some of the samples, as an image."""
