"""Data sets for several tests."""

import pytest

from tests.data import made


@pytest.fixture
def planted(tmp_path):
    """A set of two tars, in a folder of its own, with every kind of broken record."""
    folder = tmp_path / "deep" / "er" / "set"
    folder.mkdir(parents=True)
    members = made.pairs(made.WHOLE)
    for key, (parts, _) in made.PLANTED.items():
        members += [(f"{key}.{ending}", data) for ending, data in parts.items()]
    made.write_tar(folder / "0.tar", members[:50])
    made.write_tar(folder / "1.tar", members[50:])
    return folder
