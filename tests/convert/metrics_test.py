"""The command that converts the weights of metrics' networks."""

import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.weights.nets import load_metric_net
from flowtok_jax.weights.safetensors import read_safetensors, write_safetensors
from tests import tiny


def sha256(path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The files that a user has, of the rule's weights: LPIPS in its two files."""
    directory = tmp_path_factory.mktemp("given")
    write_safetensors(directory / "inception.safetensors", tiny.state_dict("inception"))
    vgg, lins = {"classifier.0.weight": np.zeros(2, np.float32)}, {}
    for name, array in tiny.state_dict("lpips").items():
        if name.startswith("net."):
            vgg["features." + name.split(".", 2)[2]] = array
        elif name.startswith("lin"):
            lins |= {name: array, name.replace("lin", "lins.", 1): array}
    write_safetensors(directory / "vgg16.safetensors", vgg)
    write_safetensors(directory / "lins.safetensors", lins)
    tiny.write_clip(directory / "clip")
    return directory


@pytest.fixture(scope="module")
def lpips_file(tmp_path_factory):
    """LPIPS in one file, with the fixed arrays."""
    path = tmp_path_factory.mktemp("whole") / "lpips.safetensors"
    write_safetensors(path, tiny.state_dict("lpips"))
    return path


def test_three_networks_load_from_what_one_command_wrote(given, command, tmp_path):
    out = tmp_path / "metrics"
    outcome = command(
        f"--inception={given}/inception.safetensors",
        f"--lpips={given}/vgg16.safetensors,{given}/lins.safetensors",
        f"--clip_score={given}/clip",
        f"--out={out}",
    )
    assert outcome.status == 0
    assert outcome.stdout.startswith(f"wrote {out} in ")
    names = ("inception", "lpips", "clip")
    assert {path.name for path in out.iterdir()} == {
        "metrics.json",
        "vocabulary.json",
        *(f"{name}.safetensors" for name in names),
    }
    entries = json.loads((out / "metrics.json").read_text())
    assert tuple(entries) == names
    assert entries["lpips"]["sources"] == {
        name: sha256(given / name) for name in ("vgg16.safetensors", "lins.safetensors")
    }
    nets = {name: load_metric_net(name, str(out)) for name in names}
    for name, net in nets.items():
        assert net.sha256 == sha256(out / f"{name}.safetensors")
        assert net.sha256 == entries[name]["sha256"]
    inception, lpips = (tiny.state_dict(name) for name in ("inception", "lpips"))
    layer = nets["inception"].params["Mixed_6b"]["branch7x7_2"]
    source = inception["Mixed_6b.branch7x7_2.conv.weight"]
    np.testing.assert_array_equal(layer["conv"]["kernel"], source.transpose(2, 3, 1, 0))
    source = inception["Mixed_6b.branch7x7_2.bn.running_var"]
    np.testing.assert_array_equal(layer["var"], source)
    params = nets["lpips"].params
    source = lpips["net.slice4.19.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["conv3_1"]["kernel"], source)
    source = lpips["lin3.model.1.weight"].ravel()
    np.testing.assert_array_equal(params["weights3"], source)
    for dropped in ("num_batches_tracked", "fc.bias", "classifier.0.weight", "lins.0"):
        assert dropped in outcome.stderr


def test_convnext_is_converted_from_torchvision_s_file(command, tmp_path):
    state = tiny.state_dict("convnext")
    write_safetensors(tmp_path / "convnext_small-0.safetensors", state)
    out = tmp_path / "metrics"
    outcome = command(
        f"--convnext={tmp_path}/convnext_small-0.safetensors", f"--out={out}"
    )
    assert outcome.status == 0
    blocks = load_metric_net("convnext", str(out)).params["stage2"]
    source = state["features.5.26.block.3.weight"]
    np.testing.assert_array_equal(blocks["dense1"]["kernel"][26], np.transpose(source))
    source = state["features.5.26.layer_scale"]
    np.testing.assert_array_equal(blocks["scale"][26], np.ravel(source))
    kernel = np.transpose(state["features.5.26.block.0.weight"], (2, 3, 1, 0))
    np.testing.assert_array_equal(blocks["conv"]["kernel"][26], kernel)
    damaged = dict(state)
    del damaged["features.5.26.layer_scale"]
    write_safetensors(tmp_path / "less.safetensors", damaged)
    outcome = command(f"--convnext={tmp_path}/less.safetensors", f"--out={out}2")
    assert outcome.status == 2
    assert "features.5.26.layer_scale" in outcome.complaint


def test_a_converted_clip_embeds_as_its_source(given, command, tmp_path):
    out = tmp_path / "metrics"
    outcome = command(f"--clip_score={given}/clip", f"--out={out}")
    assert outcome.status == 0
    net = load_metric_net("clip", str(out))
    assert net.module.image_size == 32
    golden = tiny.golden("clip_tiny")
    images = tiny.uniform("clip/images", 4, 3, 32, 32).transpose(0, 2, 3, 1)
    inputs = jnp.asarray(images), jnp.asarray(golden["caption_ids"])
    image, text = jax.jit(net.module.apply)({"params": net.params}, *inputs)
    assert tiny.relative_error(image, golden["image_embeds"]) < 1e-5
    assert tiny.relative_error(text, golden["text_embeds"]) < 1e-5
    vocabulary = Vocabulary.load(str(out), 16)
    ids = vocabulary.encode(["ab"])[0]
    assert ids[[0, 3]].tolist() == [118, 119]


def test_lpips_in_one_file_is_that_of_two(given, lpips_file, command, tmp_path):
    two = f"{given}/lins.safetensors,{given}/vgg16.safetensors"
    for name, files in (("one", lpips_file), ("two", two)):
        assert command(f"--lpips={files}", f"--out={tmp_path}/{name}").status == 0
    one, two = (
        read_safetensors(tmp_path / name / "lpips.safetensors")
        for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    for key, array in one.items():
        np.testing.assert_array_equal(array, two[key])


def shift(state):
    state["scaling_layer.shift"] = state["scaling_layer.shift"] + 0.1


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (
            lambda s: s.pop("lin2.model.1.weight"),
            "missing (1): lin2.model.1.weight; VGG",
        ),
        (lambda s: s.update(extra=s["lin0.model.1.weight"]), "not used (1): extra"),
        (
            lambda s: s.update(x=s.pop("net.slice1.0.bias")),
            "not used (1): x; missing (1): net.slice1.0.bias",
        ),
        (
            lambda s: s.update({"net.slice5.24.bias": np.zeros(3, np.float32)}),
            "net.slice5.24.bias is (3,), expected (512,)",
        ),
        (shift, "scaling_layer.shift of this state dict is [0.07"),
    ],
    ids=["missing", "extra", "renamed", "shape", "fixed"],
)
def test_what_does_not_fit_is_named_and_nothing_written(command, tmp_path, edit, says):
    state = tiny.state_dict("lpips")
    edit(state)
    path = tmp_path / "lpips.safetensors"
    write_safetensors(path, state)
    outcome = command(f"--lpips={path}", f"--out={tmp_path}/new/out")
    assert outcome.status == 2
    assert outcome.complaint.startswith(f"error: {path}: ")
    assert says in outcome.complaint
    assert list(tmp_path.iterdir()) == [path]


def text_only(clip):
    path = clip / "model.safetensors"
    state = {k: np.array(x) for k, x in read_safetensors(path).items()}
    path.unlink()
    kept = {k: x for k, x in state.items() if k.startswith("text_model.")}
    write_safetensors(path, kept)


def edit_config(tower, values):
    def edit(clip):
        path = clip / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {f"{tower}_config": values}))

    return edit


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (text_only, "no CLIP with both towers: vision_model.embeddings.patch"),
        (
            edit_config("vision", {"hidden_act": "gelu"}),
            "hidden_act of the vision tower is 'gelu'",
        ),
        (edit_config("vision", {}), "the vision tower is 48 wide and has 0 heads"),
        (lambda clip: (clip / "vocab.json").unlink(), "has no vocabulary"),
    ],
    ids=["text_only", "activation", "heads", "vocabulary"],
)
def test_a_clip_that_cannot_score_is_refused(command, tmp_path, damage, says):
    clip = tmp_path / "clip"
    tiny.write_clip(clip)
    damage(clip)
    outcome = command(f"--clip_score={clip}", f"--out={tmp_path}/out")
    assert outcome.status == 2
    assert says in outcome.complaint
    assert list(tmp_path.iterdir()) == [clip]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--inception=nowhere.pth"],
            "error: nowhere.pth does not exist; expected a file",
        ),
        (["--inception=a", "--flowtok=b"], "go to a directory of their own"),
        (["--lpips=a", "--heads=clip=4"], "--heads and --dtype are for the model's"),
        (["--lpips=a", "--dtype=bfloat16"], "--heads and --dtype are for the model's"),
    ],
)
def test_a_mistake_in_the_flags_ends_in_one_line(
    command, monkeypatch, tmp_path, arguments, says
):
    monkeypatch.chdir(tmp_path)
    outcome = command(*arguments, "--out=out")
    assert outcome.status == 2
    assert says in outcome.complaint
    assert not list(tmp_path.iterdir())


def test_a_name_in_two_files_is_refused(given, command, tmp_path):
    files = f"{given}/lins.safetensors,{given}/lins.safetensors"
    outcome = command(f"--lpips={files}", f"--out={tmp_path}/out")
    assert outcome.status == 2
    assert (
        "has lin0.model.1.weight, which a file before it has too" in outcome.complaint
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("is_right", [True, False])
def test_a_file_whose_name_has_another_digest_is_warned_of(
    lpips_file, command, tmp_path, is_right
):
    digest = sha256(lpips_file)[:8] if is_right else "0123abcd"
    path = tmp_path / f"lpips-{digest}.safetensors"
    path.symlink_to(lpips_file)
    outcome = command(f"--lpips={path}", f"--out={tmp_path}/out")
    assert outcome.status == 0
    assert ("its name says 0123abcd" in outcome.stderr) != is_right
