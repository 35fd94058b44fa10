"""The tiny demo's weights as a pretrained directory."""

import shutil

import pytest

from configs import demo as demo_config
from flowtok_jax.weights import pretrained


@pytest.fixture(scope="session")
def saved(flowtok, tmp_path_factory):
    """The tiny demo's weights as a directory; read-only."""
    directory = tmp_path_factory.mktemp("saved") / "tiny"
    flowtok.save_pretrained(directory)
    return directory


@pytest.fixture
def mine(saved, tmp_path):
    """A copy of it, to break."""
    return shutil.copytree(saved, tmp_path / "mine")


@pytest.fixture
def config(saved):
    """A config that trains from it."""
    config = demo_config.get_config("t2i")
    config.update(pretrained.read_stored_config(saved).to_dict())
    config.init_from = str(saved)
    config.train.batch_size = 8
    return config
