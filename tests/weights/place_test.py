"""Trained weights at one place: opened once, read, refused, and trained from."""

import collections
import contextlib
import functools
import os
import sys

import jax
import numpy as np
import pytest

from flowtok_jax.models.build import make_nets
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import TASKS, abstract_group, abstract_groups
from flowtok_jax.train.loop import make_program
from flowtok_jax.train.start import inherit_vocabulary, load_start
from flowtok_jax.weights.place import load_groups, open_start, open_weights
from flowtok_jax.weights.workdir import open_vocabulary
from tests import run
from tests.weights.pretrained_test import edit_config, equal


def read(place, group, config):
    """A group of a place, for the networks of a config."""
    nets = make_nets(config)
    return open_weights(place).read(group, abstract_group(nets, group), nets)


def load(group, config):
    """What training of a group starts from."""
    return load_start(config, TASKS[group], make_nets(config), open_start, {})


class Disk:
    """The files opened and the folders listed while it is watched."""

    def __init__(self):
        self._is_watched = False
        self.seen = collections.Counter()

    def note(self, event, arguments):
        """Hears what Python says of every access, whatever library makes it."""
        if self._is_watched and event in ("open", "os.listdir", "os.scandir"):
            path = arguments[0]
            if isinstance(path, str | bytes | os.PathLike):
                self.seen[os.path.abspath(os.fsdecode(path))] += 1

    @contextlib.contextmanager
    def watched(self):
        self.seen.clear()
        self._is_watched = True
        try:
            yield
        finally:
            self._is_watched = False


@pytest.fixture(scope="module")
def disk():
    disk = Disk()
    sys.addaudithook(disk.note)  # stays to the end of the process
    return disk


def test_loading_a_workdir_asks_each_thing_once(demo, disk):
    with disk.watched():
        FlowTok.from_pretrained(demo.workdir)
    groups = {"clip", "tokenizer", "text_tokenizer", "t2i", "i2t"}
    folders = [demo.workdir / "checkpoints" / group for group in groups]
    asked = [demo.workdir, demo.workdir / "config.json", *folders]
    asked += [demo.workdir / "vocabulary.json", demo.workdir / "checkpoints"]
    assert {str(path): disk.seen[str(path)] for path in asked} == {
        str(path): 1 for path in asked
    }


def test_loading_a_pretrained_directory_asks_each_thing_once(saved, disk):
    with disk.watched():
        FlowTok.from_pretrained(saved)
    once = [saved, saved / "config.json", saved / "vocabulary.json"]
    assert {path.name: disk.seen[str(path)] for path in once} == {
        path.name: 1 for path in once
    }


def test_a_place_says_what_it_is(demo, saved, tmp_path):
    of_run, handed_on = open_weights(demo.workdir), open_weights(saved)
    assert (of_run.kind, handed_on.kind) == ("run", "pretrained")
    assert set(of_run.groups) == set(handed_on.groups) == set(of_run.steps)
    assert of_run.steps["text_tokenizer"] == 32
    assert handed_on.steps == {}
    assert of_run.make_nets() == handed_on.make_nets()
    empty = open_weights(tmp_path)
    assert (empty.kind, empty.groups, empty.has_vocabulary) == ("run", (), False)
    with pytest.raises(UserError, match=r"no config.json in .*make demo"):
        _ = empty.config


def test_a_changed_config_does_not_change_the_stored_one(saved):
    weights = open_weights(saved)
    weights.config.dit.heads = 99
    assert weights.config.dit.heads == 2


@pytest.mark.parametrize(
    ("section", "key", "group"),
    [
        (("dit",), "heads", "t2i"),
        (("projector",), "heads", "t2i"),
        (("tokenizer",), "latent_scale", "t2i"),
        (("dit",), "heads", "i2t"),
        (("clip",), "heads", "clip"),
        (("tokenizer", "decoder"), "heads", "tokenizer"),
        (("tokenizer",), "image_size", "tokenizer"),
        (("text_decoder",), "heads", "text_tokenizer"),
    ],
)
@pytest.mark.parametrize("kind", ["saved", "run"])
def test_what_no_shape_tells_must_be_as_it_was(
    saved, demo, config, section, key, group, kind
):
    place = saved if kind == "saved" else demo.workdir
    part = config
    for name in section:
        part = part[name]
    value = part[key]
    part[key] = 2 * value
    with pytest.raises(UserError) as error:
        read(place, group, config)
    name = ".".join((*section, key))
    assert f"{group} in {place} was made with {name} = {value}, this" in str(
        error.value
    )
    assert f"set --config.{name}={value}" in str(error.value)


def test_all_that_differs_is_said_at_once(demo, config):
    config.tokenizer.encoder.heads = 4
    config.tokenizer.decoder.heads = 1
    with pytest.raises(UserError) as error:
        read(demo.workdir, "tokenizer", config)
    assert (
        "was made with tokenizer.encoder.heads = 2, tokenizer.decoder.heads = 2, this "
        "config has 4, 1; set --config.tokenizer.encoder.heads=2 "
        "--config.tokenizer.decoder.heads=2, or start"
    ) in str(error.value)
    config.clip.heads = 1
    nets = make_nets(config)
    wanted = abstract_groups(nets, ("clip", "tokenizer"))
    with pytest.raises(UserError) as error:
        load_groups(wanted, nets, [open_weights(demo.workdir)])
    first, *lines = str(error.value).splitlines()
    assert first == "the weights do not fit this config; 2 things are wrong:"
    assert [line.split()[0] for line in lines] == ["clip", "tokenizer"]


def test_a_run_of_other_sizes_is_refused_by_name(demo, config):
    config.align_head.width = 24
    with pytest.raises(UserError, match="ema does not fit the config: wrong shape"):
        read(demo.workdir, "t2i", config)


@pytest.mark.parametrize("kind", ["saved", "run"])
def test_training_starts_from_the_group_that_is_there(
    saved, demo, flowtok, config, kind, tmp_path
):
    config.init_from = str(saved if kind == "saved" else demo.workdir)
    nets = make_nets(config)
    wanted = abstract_groups(nets, ("clip", "tokenizer"))
    places = [open_weights(tmp_path), open_start(config.init_from)]
    frozen = load_groups(wanted, nets, places)
    equal(frozen, {group: flowtok.params[group] for group in frozen})
    start = load("t2i", config)
    state = make_program(config, TASKS["t2i"], nets, frozen).start(start)
    equal(state.params, flowtok.params["t2i"])
    equal(state.ema, state.params)
    assert int(state.step) == 0


def test_a_group_that_is_not_there_starts_afresh_and_says_so(mine, config, caplog):
    edit_config(mine, lambda c: c["groups"].remove("t2i"))
    config.init_from = str(mine)
    with caplog.at_level("INFO"):
        assert load("t2i", config) is None
    assert f"t2i starts afresh: {mine} does not have it" in caplog.text
    config.init_from = ""
    assert load("t2i", config) is None


def test_a_start_of_other_sizes_or_heads_is_refused(config):
    config.dit.heads = 4
    with pytest.raises(UserError, match="dit.heads = 2, this config has 4"):
        load("t2i", config)
    config.dit.update({"heads": 2, "width": 32})
    with pytest.raises(UserError, match="does not fit the config: wrong shape"):
        load("t2i", config)


def test_a_start_may_go_on_at_another_image_size(config):
    config.tokenizer.image_size = 64
    assert load("tokenizer", config) is not None


def test_a_place_to_start_from_that_is_not_there_is_named(config):
    config.init_from = "nowhere"
    with pytest.raises(UserError, match="init_from = nowhere does not exist"):
        load("t2i", config)


def test_the_vocabulary_comes_with_the_weights(saved, flowtok, config, tmp_path):
    config.text.vocabulary = str(tmp_path / "nowhere")
    inherited = inherit_vocabulary(config, lambda: open_start(config.init_from))
    vocabulary = open_vocabulary(tmp_path, config, lambda: inherited)
    wanted = flowtok.vocabulary.tokenizer.get_vocab()
    assert vocabulary.tokenizer.get_vocab() == wanted
    assert (tmp_path / "vocabulary.json").is_file()


def test_the_command_line_fine_tunes_and_the_result_stands_by_itself(
    saved, flowtok, cli, tmp_path
):
    workdir = tmp_path / "run"
    still = {"schedule": {"lr": 0.0}, "train.num_steps": 1, "log.preview_samples": 2}
    arguments = run.command(workdir, "t2i", **still)
    outcome = cli(*arguments, f"--checkpoint={saved}")
    assert outcome.status == 0, outcome.stderr
    FlowTok.from_pretrained(workdir).save_pretrained(tmp_path / "tuned")
    loaded = FlowTok.from_pretrained(tmp_path / "tuned").params
    wanted = {group: flowtok.params[group] for group in ("clip", "t2i", "tokenizer")}
    # The average of equal numbers is off by rounding.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(close, loaded, wanted)


def test_training_starts_from_one_place(saved, cli, tmp_path):
    arguments = run.command(tmp_path / "run", "t2i", init_from="elsewhere")
    outcome = cli(*arguments, f"--checkpoint={saved}")
    assert outcome.status == 2
    assert "init_from=elsewhere differ" in outcome.complaint
    assert not (tmp_path / "run").exists()
