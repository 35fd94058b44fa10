"""What a command line means for a config, its weights and its folder."""

import types
import warnings

import pytest
from absl.testing import flagsaver

from configs import demo, h, tokenizer
from flowtok_jax.main import parse_flags
from flowtok_jax.modes.arguments import Arguments
from flowtok_jax.runtime.errors import UserError
from tests import run


def arguments(named="", config=None, changes=(), **flags) -> Arguments:
    values = {
        "workdir": None,
        "checkpoint": None,
        "minutes": None,
        "config": config,
        "lora": [],
        **flags,
    }
    return Arguments(types.SimpleNamespace(**values), named, list(changes))


@pytest.mark.parametrize(
    ("named", "config", "workdir"),
    [
        ("configs/demo.py", demo.get_config(), "runs/demo"),
        ("configs/demo.py:t2i", demo.get_config("t2i"), "runs/demo"),
        ("configs/h.py", h.get_config(), "runs/h"),
        ("/elsewhere/configs/h.py:2", h.get_config("2"), "runs/h-2"),
        ("my tokenizer.py:256", tokenizer.get_config("256"), "runs/my tokenizer-256"),
    ],
)
def test_without_a_workdir_a_run_has_one_by_its_config(named, config, workdir, caplog):
    with caplog.at_level("INFO"):
        assert str(arguments(named, config).workdir()) == workdir
    assert caplog.messages == [f"workdir: {workdir} (--workdir=DIR for another)"]


def test_a_given_workdir_is_taken_without_a_word(caplog):
    given = arguments("configs/demo.py", demo.get_config(), workdir="/x/y")
    assert str(given.workdir()) == "/x/y"
    assert caplog.messages == []


def test_weights_are_those_of_the_checkpoint_else_of_the_workdir(tmp_path):
    places = {name: tmp_path / name for name in ("checkpoint", "workdir")}
    for place in places.values():
        place.mkdir()
    flags = {name: str(place) for name, place in places.items()}
    assert arguments(**flags).weights.place == places["checkpoint"]
    assert arguments(**flags).output() == places["workdir"]
    assert arguments(workdir=flags["workdir"]).weights.place == places["workdir"]
    assert arguments(checkpoint=flags["checkpoint"]).output() == places["checkpoint"]


def test_weights_of_a_config_are_in_the_workdir_that_it_trains_in(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    given = arguments("configs/demo.py", demo.get_config())
    with pytest.raises(UserError, match="checkpoint runs/demo does not exist"):
        _ = given.weights
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert str(given.weights.place) == "runs/demo"


def test_a_config_takes_its_sizes_from_the_workdir_that_it_trained_in(
    demo, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "finetune").symlink_to(demo.workdir)
    with flagsaver.flagsaver(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # absl's config_flags loads by an old method
        parsed = parse_flags(["main", f"--config={run.ROOT}/configs/finetune.py"])
        config = parsed.weights_config()
    assert config.dit.to_dict() == parsed.weights.config.dit.to_dict()


def test_flags_change_the_config_of_a_pretrained_directory_which_has_no_stages():
    changes = ["--config.sample.num_steps=3", "--config.compute.quantize=int8"]
    config = arguments(changes=changes, checkpoint="emoji").weights_config()
    assert "stages" not in config
    assert (config.sample.num_steps, config.compute.quantize) == (3, "int8")


def test_the_guidance_of_a_distilled_flow_is_not_a_flag():
    scale = "--config.sample.scale=3"
    with pytest.raises(UserError, match="scale is 3.0, and the distilled flow has its"):
        arguments(changes=[scale], checkpoint="emoji").weights_config()
    changes = [scale, "--config.sample.solver=euler"]
    assert arguments(changes=changes, checkpoint="emoji").weights_config()


def test_folders_below_home_are_found_and_none_is_made_named_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    given = arguments(workdir="~/out", checkpoint="~/weights")
    assert given.workdir() == given.output() == tmp_path / "out"
    assert given.weights.place == tmp_path / "weights"
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    "start", ["~/demo", "{home}/demo/", "demo", "file://{home}/demo"]
)
def test_one_place_may_be_written_in_several_ways(start, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    config = h.get_config()
    config.init_from = "~/demo"
    start = start.replace("{home}", str(tmp_path))
    given = arguments("configs/h.py", config, checkpoint=start)
    monkeypatch.setattr(given, "config", lambda: config)
    assert given.training_config().init_from == start
    config.init_from = "~/another"
    with pytest.raises(UserError, match="differ; training starts from one place"):
        given.training_config()
