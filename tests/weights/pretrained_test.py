"""Directories of trained weights: written, found, read, refused, and trained from."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from configs import default, demo, i2t
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.models.build import make_nets
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import TASKS, abstract_group
from flowtok_jax.train.loop import make_program
from flowtok_jax.weights import place as weights
from flowtok_jax.weights import pretrained
from flowtok_jax.weights.safetensors import read_safetensors, write_safetensors
from flowtok_jax.weights.workdir import open_vocabulary
from tests import run

PROMPTS = ["a red circle at the top left", "a blue square at the top right"]
GROUPS = ("clip", "i2t", "t2i", "text_tokenizer", "tokenizer")


def networks(config, group):
    """The networks of a config, and the shapes of a group."""
    nets = make_nets(config)
    return nets, abstract_group(nets, group)


@pytest.fixture(scope="module")
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
    config = demo.get_config("t2i")
    config.update(pretrained.read_config(saved).to_dict())
    config.init_from = str(saved)
    config.train.batch_size = 8
    return config


def edit_config(directory, edit):
    path = directory / "config.json"
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


def equal(got, wanted):
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


@pytest.mark.parametrize("made", [default.get_config, demo.get_config, i2t.get_config])
def test_a_description_of_networks_makes_them_again(made):
    config = made()
    config.compute.update({"dtype": "bfloat16", "remat": "full", "attention": "cudnn"})
    nets = make_nets(config)
    described = pretrained.make_config(nets, sample={}, caption={}, text_scale=1.0)
    text = json.dumps(described)
    assert make_nets(pretrained.config_from_json(text)) == nets


def test_saved_weights_draw_and_caption_the_same(flowtok, saved):
    loaded = FlowTok.from_pretrained(saved)
    assert {path.name for path in saved.iterdir()} == {
        "config.json",
        "vocabulary.json",
        *(f"{group}.safetensors" for group in GROUPS),
    }
    equal(loaded.params, flowtok.params)
    assert (loaded.sample, loaded.caption) == (flowtok.sample, flowtok.caption)
    assert loaded.text_scale == flowtok.text_scale
    images = loaded.text_to_image(PROMPTS)
    np.testing.assert_array_equal(images, flowtok.text_to_image(PROMPTS))
    assert loaded.image_to_text(images) == flowtok.image_to_text(images)


def test_the_command_line_takes_a_directory(saved, cli, tmp_path):
    options = [f"--checkpoint={saved}", f"--workdir={tmp_path}"]
    outcome = cli("--mode=sample", "--prompts=a red circle at the top left", *options)
    assert outcome.status == 0
    outcome = cli("--mode=caption", f"--images={tmp_path}/samples/0*.png", *options)
    assert outcome.status == 0
    assert len(outcome.stdout.splitlines()) == 1


def test_other_options_come_from_a_config(saved, config):
    config.sample.num_steps = 3
    assert FlowTok.from_pretrained(saved, config).sample.num_steps == 3


def test_saving_needs_a_directory_of_its_own(flowtok, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "mine").write_text("precious")
    for directory in (tmp_path / "old", tmp_path / "old" / "mine"):
        with pytest.raises(UserError, match="exists already"):
            flowtok.save_pretrained(directory)
    assert (tmp_path / "old" / "mine").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    flowtok.save_pretrained(tmp_path / "empty")
    assert FlowTok.from_pretrained(tmp_path / "empty").params.keys() == set(GROUPS)


@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError, UserError])
def test_a_save_that_stops_leaves_nothing(flowtok, tmp_path, fault):
    def stop():
        raise fault("no space left")

    groups = {"clip": lambda: flowtok.params["clip"], "t2i": stop}
    wanted = UserError if fault is OSError else fault
    with pytest.raises(wanted, match="no space left"):
        pretrained.save(tmp_path / "new" / "out", {}, groups, flowtok.vocabulary)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: (d / "t2i.safetensors").unlink(), "t2i.safetensors is not there"),
        (lambda d: (d / "vocabulary.json").unlink(), "vocabulary.json is not there"),
        (lambda d: (d / "config.json").unlink(), "config.json cannot be read"),
        (lambda d: (d / "config.json").write_text("{"), "config.json cannot be read"),
        (
            lambda d: (d / "clip.safetensors").write_bytes(
                (d / "clip.safetensors").read_bytes()[:-8]
            ),
            "clip.safetensors is not a whole safetensors file",
        ),
        (lambda d: edit_config(d, lambda c: c.pop("groups")), "lists no groups"),
        (lambda d: edit_config(d, lambda c: c.pop("dit")), "config.json .*dit"),
        (
            lambda d: edit_config(d, lambda c: c["dit"].update(size=3)),
            "config.json .*size",
        ),
        (
            lambda d: edit_config(d, lambda c: c.update(groups=["t2i", "gan"])),
            "config.json lists groups gan",
        ),
        (
            lambda d: edit_config(d, lambda c: c["groups"].remove("tokenizer")),
            "has clip, i2t, t2i, text_tokenizer only, and not tokenizer",
        ),
        (
            lambda d: edit_config(d, lambda c: c["groups"].remove("text_tokenizer")),
            "and not text_tokenizer",
        ),
        (
            lambda d: edit_config(d, lambda c: c["dit"].update(width=32)),
            r"i2t.safetensors does not fit .* dit/embed/bias is \(16,\), wanted",
        ),
        (
            lambda d: edit_config(d, lambda c: c["clip"].update(vocab_size=8)),
            "clip.safetensors does not fit the config: wrong shape .*embedding",
        ),
    ],
)
def test_a_damaged_directory_is_refused_by_name(mine, damage, says):
    damage(mine)
    with pytest.raises(UserError, match=says):
        FlowTok.from_pretrained(mine)


def test_arrays_more_or_less_are_named(mine):
    path = mine / "i2t.safetensors"
    arrays = {name: np.array(x) for name, x in read_safetensors(path).items()}
    arrays["dit/more"] = arrays.pop("dit/embed/bias")
    path.unlink()
    write_safetensors(path, arrays)
    with pytest.raises(UserError) as error:
        FlowTok.from_pretrained(mine)
    assert str(error.value).endswith(
        "does not fit the config: not used (1): dit/more; missing (1): dit/embed/bias"
    )


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
        weights.read_group(place, make_nets(config), group, networks(config, group)[1])
    name = ".".join((*section, key))
    assert f"{group} in {place} was made with {name} = {value}, this" in str(
        error.value
    )
    assert f"set --config.{name}={value}" in str(error.value)


def test_a_run_of_other_sizes_is_refused_by_name(demo, config):
    config.align_head.width = 24
    with pytest.raises(UserError, match="ema does not fit the config: wrong shape"):
        weights.read_group(
            demo.workdir, make_nets(config), "t2i", networks(config, "t2i")[1]
        )


def test_a_vocabulary_of_another_model_is_refused(flowtok):
    words = Vocabulary.train([" ".join(map(str, range(99)))], 99, 16)
    with pytest.raises(UserError, match="vocabulary has 99 tokens, more than the 64"):
        FlowTok(flowtok.nets, flowtok.params, words)


# The hub.


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
    with pytest.raises(UserError, match="somebody/else is no directory here .*cache"):
        FlowTok.from_pretrained("somebody/else", local_files_only=True)


@pytest.mark.parametrize("source", ["nowhere", "a/b/c", "/nowhere/at all"])
def test_what_is_neither_directory_nor_id_is_named(source):
    with pytest.raises(UserError, match="does not exist; wanted a directory, or a hub"):
        FlowTok.from_pretrained(source)


def test_a_file_is_no_directory(saved):
    with pytest.raises(UserError, match="t2i.safetensors is a file; wanted the dir"):
        FlowTok.from_pretrained(saved / "t2i.safetensors")


# Training from them.


@pytest.mark.parametrize("kind", ["saved", "run"])
def test_training_starts_from_the_group_that_is_there(
    saved, demo, flowtok, config, kind, tmp_path
):
    config.init_from = str(saved if kind == "saved" else demo.workdir)
    nets = make_nets(config)
    frozen = {
        group: weights.load_group(
            group, nets, abstract_group(nets, group), config, tmp_path
        )
        for group in ("clip", "tokenizer")
    }
    equal(frozen, {group: flowtok.params[group] for group in frozen})
    start = weights.load_start("t2i", nets, abstract_group(nets, "t2i"), config)
    state = make_program(config, TASKS["t2i"], nets, frozen).start(start)
    equal(state.params, flowtok.params["t2i"])
    equal(state.ema, state.params)
    assert int(state.step) == 0


def test_a_group_that_is_not_there_starts_afresh_and_says_so(mine, config, caplog):
    edit_config(mine, lambda c: c["groups"].remove("t2i"))
    config.init_from = str(mine)
    with caplog.at_level("INFO"):
        assert weights.load_start("t2i", *networks(config, "t2i"), config) is None
    assert f"t2i starts afresh: {mine} does not have it" in caplog.text
    config.init_from = ""
    assert weights.load_start("t2i", *networks(config, "t2i"), config) is None


def test_a_start_of_other_sizes_or_heads_is_refused(config):
    config.dit.heads = 4
    with pytest.raises(UserError, match="dit.heads = 2, this config has 4"):
        weights.load_start("t2i", *networks(config, "t2i"), config)
    config.dit.update({"heads": 2, "width": 32})
    with pytest.raises(UserError, match="does not fit the config: wrong shape"):
        weights.load_start("t2i", *networks(config, "t2i"), config)


def test_a_start_may_go_on_at_another_image_size(config):
    config.tokenizer.image_size = 64
    nets = make_nets(config)
    assert (
        weights.load_start("tokenizer", nets, abstract_group(nets, "tokenizer"), config)
        is not None
    )


def test_a_place_to_start_from_that_is_not_there_is_named(config):
    config.init_from = "nowhere"
    with pytest.raises(UserError, match="init_from = nowhere does not exist"):
        weights.load_start("t2i", *networks(config, "t2i"), config)


def test_the_vocabulary_comes_with_the_weights(saved, flowtok, config, tmp_path):
    config.text.vocabulary = str(tmp_path / "nowhere")
    vocabulary = open_vocabulary(tmp_path, config)
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
