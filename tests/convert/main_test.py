"""The command that converts the release's files, and back."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from flowtok_jax.convert.groups import convert
from flowtok_jax.convert.state_dicts import read_state
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.weights.safetensors import read_safetensors, write_safetensors
from tests import run, tiny

PROMPTS = ["red circle", "a red square"]


@pytest.fixture(scope="session")
def converted(released, tmp_path_factory):
    """What the command wrote, in a process of its own, and what it said."""
    out = tmp_path_factory.mktemp("converted") / "tiny"
    arguments = [
        f"--flowtok={released}/flowtok.safetensors",
        f"--tokenizer={released}/tokenizer.safetensors",
        f"--clip={released}/clip",
        "--heads=dit=4,projector=4",
        f"--out={out}",
    ]
    process = subprocess.run(
        [sys.executable, "-m", "flowtok_jax.convert", *arguments],
        cwd=run.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return out, process


@pytest.fixture
def damaged(released, tmp_path):
    """A copy of the release's files, to break."""
    shutil.copytree(released, tmp_path / "files")
    return tmp_path / "files"


def change(path, edit):
    """Rewrites a safetensors file."""
    state = {name: np.array(x) for name, x in read_safetensors(path).items()}
    edit(state)
    path.unlink()
    write_safetensors(path, state)


def test_one_line_converts_and_one_line_draws(converted, cli, tmp_path):
    out, process = converted
    assert process.stdout.startswith(f"wrote {out} in ")
    assert "peak memory" in process.stdout
    assert "dit.heads=4" in process.stderr
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "vocabulary.json",
        "clip.safetensors",
        "t2i.safetensors",
        "tokenizer.safetensors",
    }
    prompts, options = f"--prompts={';'.join(PROMPTS)}", [f"--workdir={tmp_path}"]
    outcome = cli("--mode=sample", f"--checkpoint={out}", prompts, *options)
    assert outcome.status == 0
    assert len(list((tmp_path / "samples").glob("0001/*.png"))) == len(PROMPTS) + 1


def test_three_lines_of_python_draw_what_the_release_s_weights_draw(
    converted, released
):
    flowtok = FlowTok.from_pretrained(converted[0])
    images = flowtok.text_to_image(PROMPTS)
    assert images.shape == (2, 64, 64, 3)
    nets, params = tiny.golden_nets()
    clip = convert(
        "clip", read_state(released / "clip" / "model.safetensors"), {"clip": 4}
    )
    t2i = {name: params[name] for name in ("projector", "align_head", "dit")}
    tokenizer = {"tokenizer": params["tokenizer"]}
    ours = FlowTok(
        nets._replace(clip=flowtok.nets.clip),
        {"clip": clip, "t2i": t2i, "tokenizer": tokenizer},
        Vocabulary.load(str(released / "clip"), 77),
    )
    np.testing.assert_array_equal(images, ours.text_to_image(PROMPTS))


def test_captions_end_with_the_end_token_and_zeros(converted):
    flowtok = FlowTok.from_pretrained(converted[0])
    size = flowtok.nets.clip.vocab_size
    short, long = flowtok.vocabulary.encode(["red", "red " * 100])
    red = flowtok.vocabulary.tokenizer.token_to_id("red</w>")
    assert short.tolist() == [size - 2, red, size - 1] + [0] * 74
    assert long.tolist() == [size - 2] + [red] * 75 + [size - 1]


def test_the_config_has_the_sizes_and_what_to_compute_in(
    converted, command, flags, tmp_path
):
    config = json.loads((converted[0] / "config.json").read_text())
    assert config["groups"] == ["clip", "t2i", "tokenizer"]
    assert config["dit"]["width"] == 64
    assert config["clip"]["heads"] == 4  # as CLIP's own config.json says
    assert config["tokenizer"]["image_size"] == 64
    assert config["tokenizer"]["latent_scale"] == 1.0143
    assert config["sample"]["times"] == "release"
    assert config["compute"]["dtype"] == "float32"
    out = tmp_path / "half"
    assert command(*flags, f"--out={out}", "--dtype=bfloat16").status == 0
    assert FlowTok.from_pretrained(out).nets.dit.dtype == "bfloat16"


def test_what_a_whole_clip_has_more_is_left_out_and_named(damaged, command, tmp_path):
    more = {"vision_model.a": np.zeros(2), "logit_scale": np.zeros(())}
    path = damaged / "clip" / "model.safetensors"
    change(path, lambda state: state.update(more))
    outcome = command(f"--clip={damaged}/clip", f"--out={tmp_path}/out")
    assert outcome.status == 0
    assert "not converted: vision_model.a (image tower" in outcome.stderr
    assert "not converted: logit_scale" in outcome.stderr


@pytest.mark.parametrize(
    ("name", "edit", "says"),
    [
        (
            "tokenizer",
            lambda s: s["encoder.positional_embedding.freqs_cos"].__setitem__(
                (3, 3), 0.5
            ),
            "encoder.positional_embedding.freqs_cos of this state dict differs",
        ),
        (
            "flowtok",
            lambda s: s.update(renamed=s.pop("blocks.1.mlp.fc1.bias")),
            "not used (1): renamed; missing (1): blocks.1.mlp.fc1.bias",
        ),
        (
            "flowtok",
            lambda s: s.pop("x_embedder.weight"),
            "missing (1): x_embedder.weight",
        ),
        (
            "tokenizer",
            lambda s: s.pop("decoder.mask_token"),
            "missing (1): decoder.mask_token",
        ),
        (
            "flowtok",
            lambda s: s.update({"blocks.0.attn.qkv.bias": np.zeros(9, np.float32)}),
            "blocks.0.attn.qkv.bias is (9,), expected (192,)",
        ),
    ],
    ids=["value", "renamed", "missing", "missing_tokenizer", "size"],
)
def test_a_damaged_state_dict_is_named_and_nothing_written(
    damaged, command, flags, tmp_path, name, edit, says
):
    change(damaged / f"{name}.safetensors", edit)
    mine = [f.replace(str(damaged), "") for f in flags]
    mine = [*(f for f in mine if not f.startswith(f"--{name}="))]
    mine += [f"--{name}={damaged}/{name}.safetensors", f"--out={tmp_path}/new/out"]
    outcome = command(*mine)
    assert outcome.status == 2
    assert outcome.complaint.startswith(f"error: {damaged}/{name}.safetensors: ")
    assert says in outcome.complaint
    assert list(tmp_path.iterdir()) == [damaged]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("flowtok", b"PK\x03\x04 the rest is lost", "cut short or damaged"),
        ("flowtok", b"<html>Sign in</html>", "is a web page"),
        ("tokenizer", b"", "is empty"),
    ],
)
def test_a_damaged_file_is_named_and_nothing_written(
    damaged, command, flags, tmp_path, name, content, says
):
    path = damaged / f"{name}.pth"
    path.write_bytes(content)
    mine = [f for f in flags if not f.startswith(f"--{name}=")]
    outcome = command(*mine, f"--{name}={path}", f"--out={tmp_path}/out")
    assert outcome.status == 2
    assert outcome.complaint.startswith(f"error: {path} ")
    assert says in outcome.complaint
    assert list(tmp_path.iterdir()) == [damaged]


def test_files_that_do_not_belong_together_are_named(damaged, command, flags, tmp_path):
    vocab = json.loads((damaged / "clip" / "vocab.json").read_text())
    (damaged / "clip" / "vocab.json").write_text(json.dumps(vocab | {"more": 192}))
    mine = [*flags[:2], f"--clip={damaged}/clip", flags[3], f"--out={tmp_path}/out"]
    outcome = command(*mine)
    assert outcome.status == 2
    assert (
        "has 193 tokens (start 190, end 191), the text tower has 192"
        in outcome.complaint
    )
    narrow = dict(width=16, depth=1, heads=4, vocab_size=192)
    state = tiny.clip_state_dict({"latent": {"tokens": 77}, "clip": narrow})
    (damaged / "clip" / "model.safetensors").unlink()
    write_safetensors(damaged / "clip" / "model.safetensors", state)
    outcome = command(*mine)
    assert outcome.status == 2
    assert "clip.width is 32 in " in outcome.complaint
    assert f"and 16 in {damaged}/clip: they do not belong" in outcome.complaint
    assert list(tmp_path.iterdir()) == [damaged]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "expected one of --out=DIR and --to_release=FILE"),
        (["--out=x", "--to_release=y.pth"], "expected one of --out=DIR and"),
        (["--out=x"], "no weights named; expected --flowtok=FILE"),
        (["--out=x", "--heads=dit=4,head=2", "--flowtok=y"], "'head=2' is not"),
        (["--out=x", "--heads=dit=four", "--flowtok=y"], "'dit=four' is not"),
        (["--out=x", "--flowtok=nowhere.pth"], "nowhere.pth does not exist"),
        (["--out=x", "--clip=nowhere"], "nowhere does not exist; expected a"),
        (["--to_release=y.pth"], "needs --checkpoint=DIR"),
    ],
)
def test_a_mistake_in_the_flags_ends_in_one_line(
    command, monkeypatch, tmp_path, arguments, says
):
    monkeypatch.chdir(tmp_path)
    outcome = command(*arguments)
    assert outcome.status == 2
    assert says in outcome.complaint
    assert not list(tmp_path.iterdir())


def test_heads_that_no_shape_tells_are_asked_for(command, flags, tmp_path):
    outcome = command(flags[0], f"--out={tmp_path}/out")
    assert outcome.status == 2
    assert "--heads=dit=N" in outcome.complaint


def test_a_directory_with_something_in_it_is_left_as_it_is(command, flags, tmp_path):
    (tmp_path / "mine").write_text("precious")
    outcome = command(*flags, f"--out={tmp_path}")
    assert outcome.status == 2
    assert f"{tmp_path} exists already" in outcome.complaint
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert command(*flags, f"--out={tmp_path}/mine").status == 2
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize(
    ("group", "name"),
    [("t2i", "flowtok"), ("tokenizer", "tokenizer"), ("clip", "clip")],
)
def test_there_and_back_again_is_exact(
    converted, released, command, tmp_path, group, name
):
    target = tmp_path / "back.safetensors"
    place = f"--checkpoint={converted[0]}"
    outcome = command(place, f"--to_release={target}", f"--group={group}")
    assert outcome.status == 0
    folder = released / "clip" / "model" if group == "clip" else released / name
    wanted, got = read_state(folder.with_suffix(".safetensors")), read_state(target)
    assert got.keys() == wanted.keys()
    for key, array in wanted.items():
        np.testing.assert_array_equal(got[key], array, err_msg=key)


def test_a_run_s_weights_go_to_the_release_s_names(demo, command, tmp_path):
    target = tmp_path / "mine.safetensors"
    outcome = command(f"--checkpoint={demo.workdir}", f"--to_release={target}")
    assert outcome.status == 0
    state = read_state(target)
    params = FlowTok.from_pretrained(demo.workdir).params["t2i"]
    kernel = params["dit"]["embed"]["kernel"]
    np.testing.assert_array_equal(state["x_embedder.weight"], np.asarray(kernel).T)
    assert state["pos_embed"].shape == (1, 16, 16)


def test_to_release_writes_only_what_is_there(converted, command, tmp_path):
    (tmp_path / "mine.safetensors").write_text("precious")
    place = f"--checkpoint={converted[0]}"
    outcome = command(place, f"--to_release={tmp_path}/mine.safetensors")
    assert outcome.status == 2
    assert "exists already" in outcome.complaint
    outcome = command(f"--checkpoint={tmp_path}", f"--to_release={tmp_path}/a.bin")
    assert outcome.status == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]
