"""Weights that ship with the package are found by their name."""

import logging
import shutil

import pytest

from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime import paths
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.weights.place import open_weights
from tests.weights.pretrained_test import equal


@pytest.fixture
def asset(saved, tmp_path, monkeypatch):
    """The weights called tiny, as if they shipped; an empty working directory."""
    monkeypatch.setattr(paths, "ASSETS", tmp_path / "assets")
    found = shutil.copytree(saved, tmp_path / "assets" / "tiny")
    (tmp_path / "assets" / "text_to_image.png").touch()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return found


def test_shipped_weights_are_loaded_by_name_in_python(flowtok, asset):
    equal(FlowTok.from_pretrained("tiny").params, flowtok.params)


def test_shipped_weights_draw_into_a_folder_of_runs_and_describe(
    cli, asset, tmp_path, monkeypatch
):
    runs = tmp_path / "runs"
    monkeypatch.setattr("flowtok_jax.modes.arguments.RUNS", runs)
    before = sorted(asset.parent.rglob("*"))
    outcome = cli("--mode=sample", "--checkpoint=tiny", "--prompts=a red circle")
    assert outcome.status == 0, outcome.stderr
    folder = runs / "tiny-shipped" / "samples" / "0001"
    names = ["0000_a_red_circle_seed0.png", "grid.png"]
    assert outcome.stdout.splitlines() == [f"{folder}/{name}" for name in names]
    assert sorted(asset.parent.rglob("*")) == before
    outcome = cli("--mode=caption", "--checkpoint=tiny", f"--images={folder}/0*.png")
    assert outcome.status == 0, outcome.stderr


def test_a_folder_of_weights_here_goes_before_and_is_said(asset, tmp_path, caplog):
    shutil.copytree(asset, tmp_path / "here" / "tiny")
    with caplog.at_level(logging.INFO):
        weights = open_weights("tiny")
    assert (str(weights.place), weights.is_shipped) == ("tiny", False)
    assert caplog.messages == [f"tiny: the folder here, not the weights {asset}"]


@pytest.mark.parametrize("make", ["mkdir", "touch"])
def test_what_has_the_name_and_no_weights_may_mean_two_things(asset, tmp_path, make):
    getattr(tmp_path / "here" / "tiny", make)()
    with pytest.raises(UserError) as said:
        open_weights("tiny")
    expected = f"expected ./tiny for the one, {asset} for the others"
    assert str(said.value).endswith(expected)
    assert open_weights(asset).groups
    with pytest.raises(UserError, match="is a file|no config.json in"):
        FlowTok.from_pretrained("./tiny")


def test_beside_themselves_shipped_weights_mean_one_thing(asset, monkeypatch, caplog):
    monkeypatch.chdir(asset.parent)
    with caplog.at_level(logging.INFO):
        assert open_weights("tiny").is_shipped
    assert caplog.messages == []


def test_of_an_unknown_name_the_message_has_those_that_ship(asset):
    with pytest.raises(
        UserError, match=r"that ship with FlowTok \(tiny\), or a hub id"
    ):
        open_weights("tinny")
