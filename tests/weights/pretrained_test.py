"""Directories of trained weights: written, read and refused."""

import errno
import json
import shutil

import jax
import numpy as np
import pytest

from configs import default, demo, i2t
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.models.build import make_nets
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.config import config_from_json
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.weights import pretrained
from flowtok_jax.weights.safetensors import read_safetensors, write_safetensors

PROMPTS = ["a red circle at the top left", "a blue square at the top right"]
GROUPS = ("clip", "i2t", "t2i", "text_tokenizer", "tokenizer")


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
    described = pretrained.make_stored_config(
        nets, sample={}, caption={}, text_scale=1.0
    )
    text = json.dumps(described)
    assert make_nets(config_from_json(text)) == nets


def test_weights_of_before_there_were_keys_have_their_defaults(
    flowtok, saved, tmp_path
):
    older = shutil.copytree(saved, tmp_path / "older")

    def forget(values):
        for section, key in (("compute", "layout"), ("clip", "trained_along")):
            del values[section][key]

    edit_config(older, forget)
    assert FlowTok.from_pretrained(older).nets == flowtok.nets


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
    outcome = cli(
        "--mode=caption", f"--images={tmp_path}/samples/0001/0*.png", *options
    )
    assert outcome.status == 0
    assert len(outcome.stdout.splitlines()) == 1


def test_other_options_come_from_a_config(saved, config):
    config.sample.num_steps = 3
    assert FlowTok.from_pretrained(saved, config).sample.num_steps == 3


@pytest.mark.parametrize("is_there", [True, False])
def test_without_text_to_image_a_caption_has_no_other_candidates(
    mine, cli, caplog, tmp_path, is_there
):
    def edit(values):
        values["caption"].update({"candidates": 3, "source": "sample"})
        if not is_there:
            values["groups"].remove("t2i")

    edit_config(mine, edit)
    if not is_there:
        (mine / "t2i.safetensors").unlink()
    flowtok = FlowTok.from_pretrained(mine)
    assert flowtok.caption.candidates == (3 if is_there else 1)
    warned = [m for m in caplog.messages if "an image gets one caption" in m]
    assert len(warned) == (not is_there)
    outcome = cli(
        "--mode=eval",
        "--config=configs/eval.py",
        f"--checkpoint={mine}",
        f"--workdir={tmp_path / 'eval'}",
        "--config.data.eval=shapes:held_out",
        "--config.eval.samples=4",
        "--config.eval.parts=i2t",
    )
    assert outcome.status == 0, outcome.stderr
    files = (tmp_path / "eval" / "eval").glob("i2t_*.json")
    (path,) = (p for p in files if p.name.count(".") == 1)  # and not .captions.json
    protocol = json.loads(path.read_text())["protocol"]
    assert protocol["sampler"]["candidates"] == flowtok.caption.candidates
    assert ("t2i" in protocol["weights"]["sha256"]) == is_there
    flowtok.params.pop("t2i", None)
    with pytest.raises(UserError, match="train stage t2i first"):
        flowtok.image_to_text(np.zeros((1, 32, 32, 3)), candidates=2, source="sample")


def test_half_precision_halves_the_files_and_rounds_by_a_bound(
    flowtok, saved, tmp_path
):
    flowtok.save_pretrained(tmp_path / "half", dtype="float16")
    for group in GROUPS:
        file = f"{group}.safetensors"
        stored = read_safetensors(tmp_path / "half" / file)
        assert {x.dtype for x in stored.values()} == {np.dtype(np.float16)}
        sizes = [(place / file).stat().st_size for place in (tmp_path / "half", saved)]
        assert sizes[0] < 0.8 * sizes[1]
    loaded = FlowTok.from_pretrained(tmp_path / "half")

    def close(got, wanted):
        assert got.dtype == np.float32
        bound = np.maximum(np.abs(wanted) * 2.0**-11, 2.0**-25)
        assert (np.abs(got - wanted) <= bound).all()

    jax.tree.map(close, loaded.params, flowtok.params)
    # Stored once, the numbers are those of float16, and stored again are the same.
    loaded.save_pretrained(tmp_path / "again", dtype="float16")
    for group in GROUPS:
        first, again = (
            (tmp_path / name / f"{group}.safetensors").read_bytes()
            for name in ("half", "again")
        )
        assert first == again


def test_what_half_precision_cannot_hold_is_refused_by_name(flowtok, tmp_path):
    params = jax.tree.map(np.array, flowtok.params)
    params["t2i"]["dit"]["embed"]["bias"][3] = 70000
    large = FlowTok(flowtok.nets, params, flowtok.vocabulary)
    message = (
        "^t2i: dit/embed/bias has 70000; float16 goes up to 65504: save as float32"
    )
    with pytest.raises(UserError, match=message):
        large.save_pretrained(tmp_path / "out", dtype="float16")
    assert not list(tmp_path.iterdir())
    large.save_pretrained(tmp_path / "out")
    with pytest.raises(UserError, match="dtype is 'int8'; expected one of float32, fl"):
        large.save_pretrained(tmp_path / "more", dtype="int8")


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


@pytest.mark.parametrize(
    "fault",
    [
        KeyboardInterrupt("stopped"),
        OSError(errno.ENOSPC, "No space left on device"),
        UserError("stopped"),
    ],
    ids=["interrupt", "full", "mistake"],
)
def test_a_save_that_stops_leaves_nothing(flowtok, tmp_path, fault):
    def stop():
        raise fault

    groups = {"clip": lambda: flowtok.params["clip"], "t2i": stop}
    wanted = UserError if isinstance(fault, OSError) else type(fault)
    with pytest.raises(wanted, match="stopped|No space left on device"):
        pretrained.save(tmp_path / "new" / "out", {}, groups, flowtok.vocabulary)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: (d / "t2i.safetensors").unlink(), "t2i.safetensors does not exist"),
        (lambda d: (d / "vocabulary.json").unlink(), "vocabulary.json does not exist"),
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
            "has weights of gan; known are",
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
            r"i2t.safetensors does not fit .* dit/embed/bias is \(16,\), expected",
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


def test_a_vocabulary_of_another_model_is_refused(flowtok):
    words = Vocabulary.train([" ".join(map(str, range(99)))], 99, 16)
    with pytest.raises(UserError, match="vocabulary has 99 tokens, more than the 64"):
        FlowTok(flowtok.nets, flowtok.params, words)
