"""The command that compares us with a folder of golden numbers."""

import json
import pathlib
import shutil
import sys
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtok_jax.convert import parity, state_dicts
from flowtok_jax.convert.goldens import Goldens
from flowtok_jax.convert.groups import convert, networks, read_sizes
from flowtok_jax.runtime.errors import UserError
from tests import tiny

FORWARD = "flowtok_tiny.forward"
TINY = [name for name in tiny.GOLDEN["files"] if "tiny" in name]


def compare(capsys, folder, *arguments):
    """Status, the lines by tensor, and the summary."""
    status = parity.main([f"--golden={folder}", *arguments])
    *lines, last = capsys.readouterr().out.splitlines()
    return status, {line.split()[1]: line for line in lines}, json.loads(last)


@pytest.fixture
def folder(tmp_path):
    """A copy of the folder with the numbers of one forward, to break."""
    for name in ("golden.json", "flowtok_tiny.manifest.json", f"{FORWARD}.npz"):
        shutil.copy(tiny.GOLDENS / name, tmp_path)
    rewrite(tmp_path / "golden.json", lambda g: g.update(files=[f"{FORWARD}.npz"]))
    return tmp_path


def rewrite(path, edit):
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values))


@pytest.fixture
def captions(tmp_path):
    """A folder with the ids of captions alone, and CLIP's vocabulary."""
    for name in ("golden.json", "clip_ids.json"):
        shutil.copy(tiny.GOLDENS / name, tmp_path)
    rewrite(tmp_path / "golden.json", lambda g: g.update(files=["clip_ids.json"]))
    tiny.write_clip_vocabulary(tmp_path / "clip_vocabulary")
    return tmp_path


def test_captions_have_the_ids_of_the_release_s_tokenizer(captions, capsys):
    status, lines, summary = compare(capsys, captions, "--only=clip_ids")
    assert status == 0
    assert list(lines) == ["clip_ids/ids"]
    assert summary["passed"] == 1


@pytest.mark.parametrize(("row", "place"), [(0, 1), (12, 2), (59, 76)])
def test_one_id_that_differs_fails_and_its_caption_is_named(
    captions, capsys, row, place
):
    def edit(values):
        values["rows"][row]["ids"][place] += 1

    rewrite(captions / "clip_ids.json", edit)
    status, lines, summary = compare(capsys, captions, "--only=clip_ids")
    assert status == 1
    assert summary["failed"] == ["clip_ids/ids", f"clip_ids/{row}"]
    assert "has other ids" in lines[f"clip_ids/{row}"]


def rewrite_arrays(folder, edit):
    path = folder / f"{FORWARD}.npz"
    with np.load(path) as file:
        arrays = dict(file)
    edit(arrays)
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("bn.running_var", 1.08, 0.06),
        ("bn.running_mean", 0.0, 0.1),
        ("norm.weight", 1.0, 0.1),
        ("norm.g", 1.0, 0.1),
        ("norm.b", 0.0, 0.1),
    ],
)
def test_the_rule_of_vectors(name, mean, std):
    values = tiny.FOLDER.weight(name, (9999,))
    assert values.dtype == np.float32
    np.testing.assert_allclose([values.mean(), values.std()], [mean, std], atol=5e-3)


def test_the_rule_of_matrices_and_of_what_is_not_drawn():
    kernel = tiny.FOLDER.weight("conv.weight", (64, 3, 5, 5))
    draws = tiny.draw("conv.weight", 64, 3, 5, 5)
    np.testing.assert_allclose(kernel, draws / np.sqrt(75), rtol=1e-6)
    state = tiny.state_dict("flowtok_tiny")
    np.testing.assert_allclose(state["t2t_temperature"], np.log(1 / 0.07), rtol=1e-6)
    assert state["pos_embed"][0, 0].tolist() == [0.0] * 32 + [1.0] * 32
    tables = tiny.state_dict("flowtitok_tiny")
    assert (tables["encoder.positional_embedding.freqs_cos"][0] == 1).all()
    assert (tables["decoder.positional_embedding.freqs_sin"][0] == 0).all()


@pytest.mark.parametrize(
    ("name", "count"),
    [("convnext", 5), pytest.param("titok_train", 60, marks=pytest.mark.slow)],
)
def test_the_second_judge_and_the_whole_recipe_are_the_release_s(capsys, name, count):
    status, lines, summary = compare(capsys, tiny.GOLDENS, f"--only={name}")
    assert summary["failed"] == []
    assert status == 0
    assert summary["passed"] == count


@pytest.mark.parametrize("name", [n.removesuffix(".npz") for n in TINY])
def test_every_tiny_tensor_is_within_its_tolerance(capsys, name):
    with np.load(tiny.GOLDENS / f"{name}.npz") as file:
        stored = set(file)
    status, lines, summary = compare(capsys, tiny.GOLDENS, f"--only={name}")
    assert status == 0
    assert summary["failed"] == []
    assert summary["passed"] == len(lines)
    assert 0 < summary["worst"]["relative"] <= summary["worst"]["tolerance"]
    outputs = {line.removeprefix(f"{name}/") for line in lines}
    assert outputs <= stored
    # What is not an output is an input.
    inputs = {"x", "t", "null", "null_single", "text", "eps", "image", "tokens"}
    assert stored - outputs <= inputs | {"image_tokens", "z0"}
    assert all("max_abs" in x and "rel_" in x for x in lines.values())
    others = {pathlib.PurePath(n).stem for n in tiny.GOLDEN["files"]} - {name}
    assert set(summary["not_selected"]) == others


@pytest.mark.parametrize(
    ("name", "outputs"),
    [("discriminator", 5), ("lpips", 1), ("inception", 4), ("fid", 1)],
)
def test_every_number_of_the_critics_is_within_its_tolerance(capsys, name, outputs):
    """At full size: there is no other."""
    status, lines, summary = compare(capsys, tiny.GOLDENS, f"--only={name}")
    assert status == 0
    assert summary["passed"] == len(lines) == outputs
    allowed = 1e-6 if name == "fid" else 1e-4
    assert summary["worst"]["tolerance"] == allowed
    assert summary["worst"]["relative"] <= allowed


def test_another_salt_and_other_sizes(capsys, folder):
    """Our own velocity of a model with fewer blocks and other weights."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(b"other/any")))
    check = {"name": "any", "first_5_draws": rng.standard_normal(5, "f4").tolist()}
    rewrite(folder / "golden.json", lambda g: g.update(salt="other", rule_check=check))
    rewrite(folder / "golden.json", lambda g: g["flowtok_tiny"].update(depth=1))
    shapes = tiny.manifest("flowtok_tiny").items()
    shapes = {k: s for k, s in shapes if not k.startswith(("blocks.1", "blocks.2"))}
    (folder / "flowtok_tiny.manifest.json").write_text(json.dumps(shapes))
    state = Goldens(folder).state("flowtok_tiny")
    dit = convert("t2i", state, tiny.HEADS)["dit"]
    nets = networks(read_sizes("t2i", shapes, tiny.HEADS))
    assert nets.dit.depth == 1
    with np.load(folder / f"{FORWARD}.npz") as file:
        inputs = [jnp.asarray(file[name]) for name in ("x", "t", "null")]
    velocity = jax.jit(nets.dit.apply)({"params": dit}, *inputs)
    rewrite_arrays(folder, lambda a: a.update(velocity=np.asarray(velocity)))
    status, lines, summary = compare(capsys, folder)
    assert status == 1  # the other outputs are still those of the first salt
    assert lines[f"{FORWARD}/velocity"].startswith("ok")
    assert len(summary["failed"]) == 3


def nudge(arrays):
    arrays["velocity"].flat[7] += 1e-2


@pytest.mark.parametrize(
    ("edit", "tensor", "says"),
    [
        (nudge, "velocity", "max_abs  1.00e-02"),
        (lambda a: a["text_mean"].fill(np.nan), "text_mean", "rel_l2       nan"),
        (lambda a: a.pop("text_logvar"), "text_logvar", "missing in"),
        (lambda a: a.update(speed=a["velocity"]), "speed", "is not known here"),
        (
            lambda a: a.update(velocity=a["velocity"][:1]),
            "velocity",
            "is (1, 77, 16) there and (2, 77, 16) here",
        ),
    ],
    ids=["changed", "nan", "missing", "unknown", "shape"],
)
def test_a_changed_golden_file_fails_by_name(capsys, folder, edit, tensor, says):
    rewrite_arrays(folder, edit)
    status, lines, summary = compare(capsys, folder)
    assert status == 1
    assert summary["failed"] == [f"{FORWARD}/{tensor}"]
    assert lines[f"{FORWARD}/{tensor}"].startswith("FAIL")
    assert says in lines[f"{FORWARD}/{tensor}"]


def test_a_renamed_tensor_is_both_missing_and_unknown(capsys, folder):
    rewrite_arrays(folder, lambda a: a.update(v=a.pop("velocity")))
    status, lines, summary = compare(capsys, folder)
    assert status == 1
    assert set(summary["failed"]) == {f"{FORWARD}/velocity", f"{FORWARD}/v"}


def cut(folder):
    path = folder / f"{FORWARD}.npz"
    path.write_bytes(path.read_bytes()[:-999])


def flip(folder):
    path = folder / f"{FORWARD}.npz"
    data = path.read_bytes()
    path.write_bytes(data[:9999] + bytes([data[9999] ^ 1]) + data[10000:])


def manifest(edit):
    return lambda f: rewrite(f / "flowtok_tiny.manifest.json", edit)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, f"{FORWARD}.npz is damaged"),
        (flip, f"{FORWARD}.npz is damaged"),
        (
            lambda f: (f / f"{FORWARD}.npz").write_text("<html>"),
            f"{FORWARD}.npz is damaged",
        ),
        (lambda f: rewrite_arrays(f, lambda a: a.pop("x")), "has no 'x'"),
        (
            lambda f: rewrite_arrays(f, lambda a: a.update(x=a["x"][..., :3])),
            "cannot be computed",
        ),
        (
            manifest(lambda m: m.update(y=m.pop("x_embedder.bias"))),
            "not used (1): y; missing (1): x_embedder.bias",
        ),
        (manifest(lambda m: m.update({"x_embedder.bias": [3]})), "x_embedder.bias"),
        (
            lambda f: rewrite(
                f / "golden.json", lambda g: g["flowtok_tiny"].update(depth=4)
            ),
            "says dit.depth of flowtok_tiny is 4, its manifest 3",
        ),
        (
            lambda f: rewrite(
                f / "golden.json", lambda g: g["flowtok_tiny"].pop("heads")
            ),
            "flowtok_tiny has no 'heads'",
        ),
        (
            lambda f: rewrite(f / "golden.json", lambda g: g.pop("flowtok_tiny")),
            "has no 'flowtok_tiny'",
        ),
    ],
)
def test_a_file_that_cannot_be_compared_fails_by_name(capsys, folder, damage, says):
    damage(folder)
    status, lines, summary = compare(capsys, folder)
    assert status == 1
    assert FORWARD in summary["failed"]
    assert says in lines[FORWARD]


def test_a_file_of_no_known_kind_is_said_and_fails(capsys, folder):
    names = [f"{FORWARD}.npz", "fid.npz", "audio.npz"]
    rewrite(folder / "golden.json", lambda g: g.update(files=names))
    status, lines, summary = compare(capsys, folder)
    assert status == 1
    assert summary["failed"] == ["audio"]
    assert summary["absent"] == ["fid"]
    assert "is listed in golden.json, and absent" in lines["fid"]
    assert "is of no known kind" in lines["audio"]
    status, _, summary = compare(capsys, folder, "--only=flowtok_tiny")
    assert status == 0
    assert summary["not_selected"] == ["fid", "audio"]


@pytest.mark.parametrize("name", [f"{FORWARD}.npz", "flowtok_tiny.manifest.json"])
def test_a_file_that_does_not_exist_is_absent_and_has_not_failed(capsys, folder, name):
    names = [f"{FORWARD}.npz", "fid.npz"]
    shutil.copy(tiny.GOLDENS / "fid.npz", folder)
    rewrite(folder / "golden.json", lambda g: g.update(files=names))
    complete = compare(capsys, folder, "--only=fid")
    assert complete[0] == 0
    (folder / name).unlink()
    status, lines, summary = compare(capsys, folder)
    assert status == 1  # what was not compared has not passed
    assert lines[FORWARD].startswith("absent ")
    assert f"{folder / name} " in lines[FORWARD]
    assert summary["absent"] == [FORWARD]
    assert summary["failed"] == []
    assert summary["passed"] == complete[2]["passed"] > 0


def test_a_file_that_is_not_listed_is_said(capsys, folder):
    shutil.copy(folder / f"{FORWARD}.npz", folder / "more.npz")
    status, _, summary = compare(capsys, folder)
    assert status == 0
    assert summary["not_listed"] == ["more"]


def test_a_released_file_is_compared_with_the_rule(capsys, folder, monkeypatch):
    path = folder / "flowtok_tiny.pth"
    path.write_bytes(b"not read without PyTorch")
    monkeypatch.setattr(state_dicts, "has_torch", lambda: False)
    status, lines, summary = compare(capsys, folder)
    assert status == 0
    assert "not read: PyTorch is not installed" in lines[path.name]
    assert summary["not_read"] == [path.name]


def test_a_released_file_of_other_weights_fails(capsys, folder):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    state = tiny.state_dict("flowtok_tiny")
    tensors = {name: torch.from_numpy(np.array(x)) for name, x in state.items()}
    torch.save(tensors, folder / "flowtok_tiny.pth")
    assert compare(capsys, folder)[0] == 0
    tensors["x_embedder.bias"][3] += 1e-3
    torch.save(tensors, folder / "flowtok_tiny.pth")
    status, _, summary = compare(capsys, folder)
    assert status == 1
    assert summary["failed"] == ["flowtok_tiny.pth"]
    del tensors["x_embedder.bias"]
    torch.save(tensors, folder / "flowtok_tiny.pth")
    status, lines, _ = compare(capsys, folder)
    assert status == 1
    assert "missing (1): x_embedder.bias" in lines["flowtok_tiny"]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda f: shutil.rmtree(f),
            "golden.json does not exist; expected --golden=DIR",
        ),
        (lambda f: (f / "golden.json").write_text("{"), "golden.json cannot be read"),
        (lambda f: rewrite(f / "golden.json", lambda g: g.pop("salt")), "no 'salt'"),
        (
            lambda f: rewrite(f / "golden.json", lambda g: g.update(salt="x")),
            "rule_check of .* fails: blocks.0.attn.qkv.weight draws",
        ),
    ],
)
def test_what_is_no_folder_of_goldens_is_a_user_s_mistake(capsys, folder, damage, says):
    damage(folder)
    with pytest.raises(UserError, match=says):
        Goldens(folder)
    assert parity.main([f"--golden={folder}"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_only_must_name_something(capsys, folder):
    assert parity.main([f"--golden={folder}", "--only=flowtok_big"]) == 2
    error = capsys.readouterr().err
    assert "--only=flowtok_big is no file of golden.json; expected one of" in error
    assert parity.main([f"--golden={folder}", "--only=,"]) == 2
    rewrite(folder / "golden.json", lambda g: g.update(files=[]))
    assert parity.main([f"--golden={folder}"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("model", ["FlowTok-", "FlowTiTok-"])
def test_full_sizes(capsys, model):
    """Minutes, and 9 GB of memory."""
    folder = pathlib.Path(parity.GOLDEN)
    if not folder.is_dir():
        pytest.skip(f"no golden numbers of full sizes in {folder}")
    listed = json.loads((folder / "golden.json").read_text())["files"]
    names = [n.removesuffix(".npz") for n in listed if n.startswith(model)]
    assert names
    status, _, summary = compare(capsys, folder, f"--only={','.join(names)}")
    sys.stdout.write(json.dumps(summary) + "\n")
    assert status == 0
