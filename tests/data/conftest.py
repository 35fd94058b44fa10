"""Data sets for several tests."""

import pytest

from tests.data import made


@pytest.fixture
def planted(tmp_path):
    """A set of two tars, in a folder of its own, with every kind of broken record."""
    return made.write_planted(tmp_path / "deep" / "er" / "set")
