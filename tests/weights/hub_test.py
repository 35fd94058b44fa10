"""Weights by a hub id, and by a path that is neither directory nor id."""

import shutil

import pytest

from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.errors import UserError
from tests.weights.pretrained_test import equal


@pytest.fixture
def hub(saved, tmp_path, monkeypatch):
    """The hub's cache with one repository in it; the network is not to be touched."""
    folder = tmp_path / "models--somebody--flowtok-tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    shutil.copytree(saved, folder / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    def no_network(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", no_network)


def test_a_hub_id_is_read_from_the_cache(flowtok, hub):
    loaded = FlowTok.from_pretrained("somebody/flowtok-tiny", local_files_only=True)
    equal(loaded.params, flowtok.params)


def test_a_hub_id_that_is_not_in_the_cache_is_named(hub):
    with pytest.raises(UserError, match="somebody/else does not exist here .*cache"):
        FlowTok.from_pretrained("somebody/else", local_files_only=True)


def test_a_checkpoint_may_be_a_hub_id(cli, hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    sample = ["--mode=sample", "--prompts=a red circle"]
    sample.append("--checkpoint=somebody/flowtok-tiny")
    complaint = cli(*sample).complaint  # the cache is no place for pictures
    assert "no folder to write to named; expected --workdir=DIR" in complaint
    outcome = cli(*sample, f"--workdir={tmp_path}/out")
    assert outcome.status == 0, outcome.stderr
    assert (tmp_path / "out" / "samples" / "0001" / "grid.png").is_file()


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", "/nowhere/at all"])
def test_what_is_neither_directory_nor_id_is_named(source):
    with pytest.raises(UserError, match="does not exist; expected .* or a hub id"):
        FlowTok.from_pretrained(source)


def test_a_file_is_no_directory(saved):
    with pytest.raises(UserError, match="t2i.safetensors is a file; expected the dir"):
        FlowTok.from_pretrained(saved / "t2i.safetensors")


def test_a_mistyped_path_is_not_asked_of_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "other").mkdir()
    with pytest.raises(UserError) as said:
        FlowTok.from_pretrained("runs/dmeo")
    expected = "runs/dmeo does not exist in the folder runs; did you mean runs/demo? "
    assert str(said.value).startswith(expected)
    assert "`hf download runs/dmeo --local-dir=runs/dmeo`" in str(said.value)
    with pytest.raises(UserError, match="the folder runs; The hub's repository"):
        FlowTok.from_pretrained("runs/xyz")


def test_a_repository_in_the_cache_is_found_beside_a_folder_of_its_owner(
    flowtok, hub, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somebody").mkdir()
    equal(FlowTok.from_pretrained("somebody/flowtok-tiny").params, flowtok.params)
