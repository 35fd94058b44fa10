"""The bounds of the other tests hold: of work, of waiting and of memory."""

import os

import numpy as np
import pytest

from tests.fuzz import bounds
from tests.fuzz.bounds import Hang, bounded, fresh


def work() -> None:
    """Works without end."""
    while True:
        sum(range(1000))


def test_an_example_that_works_without_end_is_ended():
    with pytest.raises(Hang), bounded(seconds=1):
        work()


def test_an_example_that_waits_without_end_is_ended(monkeypatch):
    monkeypatch.setattr(bounds, "PATIENCE", 1)
    with fresh() as root:
        os.mkfifo(root / "pipe")
        with pytest.raises(Hang), bounded(seconds=1):
            (root / "pipe").read_bytes()


def test_memory_is_refused_over_the_bound_alone():
    with pytest.raises(MemoryError), bounded(megabytes=100):
        np.ones(200 << 20, np.uint8)
    with bounded(megabytes=400):
        assert np.ones(200 << 20, np.uint8).all()
    assert np.ones(200 << 20, np.uint8).all()
