"""The whole recipe of the tokenizer, on a folder of other sizes, salt and schedules."""

import shutil

import numpy as np
import pytest

from tests import tiny
from tests.convert.parity_test import compare, rewrite

OTHER = tiny.GOLDENS / "titok"  # judges of other sizes too


@pytest.fixture
def folder(tmp_path):
    """A copy of the folder, to break."""
    return shutil.copytree(OTHER, tmp_path / "titok")


def rewrite_arrays(path, edit):
    with np.load(path) as file:
        arrays = dict(file)
    edit(arrays)
    np.savez(path, **arrays)


def damage(arrays):
    arrays["total"][5] *= 1.01
    arrays["kl"][0] += 1e-2
    arrays["tokenizer/decoder.ffn.0.bias"] *= 1.01
    arrays["lr"] = arrays["lr"][:-2]
    arrays["logits_real"] = np.append(arrays["logits_real"], 0.0)
    arrays["discriminator/blocks.2.0.bias"].fill(np.nan)
    arrays["tokenizer/latent_tokens"] = arrays["tokenizer/latent_tokens"][:-1]
    arrays["loss"] = arrays["total"]
    for name in ("gan", "lecam_real", "discriminator/block_in.0.weight"):
        del arrays[name]


@pytest.mark.slow
def test_what_is_damaged_fails_by_name_and_all_else_is_the_release_s(capsys, folder):
    """One run, as compiling takes most of its time."""
    with np.load(OTHER / "titok_train.npz") as file:
        stored = set(file)
    rewrite_arrays(folder / "titok_train.npz", damage)
    status, lines, summary = compare(capsys, folder, "--only=titok_train")
    assert status == 1
    short = {name.removeprefix("titok_train/") for name in summary["failed"]}
    assert short == {
        "total",
        "kl",
        "tokenizer/decoder.ffn.0.bias",
        "lr",
        "logits_real",
        "discriminator/blocks.2.0.bias",
        "tokenizer/latent_tokens",
        "loss",
        "gan",
        "lecam_real",
        "discriminator/block_in.0.weight",
    }
    assert {name.removeprefix("titok_train/") for name in lines} == stored | {"loss"}
    assert "missing in titok_train.npz" in lines["titok_train/lecam_real"]
    assert "is (1,) there and (3,) here" in lines["titok_train/lr"]


@pytest.mark.parametrize(
    ("edit", "failed"),
    [
        (lambda a: None, []),
        (lambda a: a["logits"].__setitem__((1, 3), 9.0), ["logits"]),
        (lambda a: a.pop("logits_from_256px"), ["logits_from_256px"]),
        (
            lambda a: [a.pop(k) for k in ("logits_from_96px", "resized_96")],
            ["logits_from_96px", "resized_96"],
        ),
        (
            lambda a: a.update(resized_80=a.pop("resized_96")[..., :-1]),
            ["logits_from_80px", "resized_80", "resized_96"],
        ),
    ],
    ids=["as it is", "changed", "missing", "no small image", "another side"],
)
def test_a_convnext_of_other_sizes(capsys, folder, edit, failed):
    rewrite_arrays(folder / "convnext.npz", edit)
    status, lines, summary = compare(capsys, folder, "--only=convnext")
    assert sorted(summary["failed"]) == [f"convnext/{name}" for name in failed]
    assert status == bool(failed)
    assert len(lines) >= 5


@pytest.mark.parametrize(
    ("name", "edit", "says"),
    [
        ("golden.json", lambda g: g["titok_train"].pop("training"), "no 'training'"),
        (
            "golden.json",
            lambda g: g["titok_train"]["training"].pop("lecam_decay"),
            "no 'lecam_decay'",
        ),
        ("golden.json", lambda g: g["titok_train"].pop("tokens"), "no 'tokens'"),
        (
            "discriminator.manifest.json",
            lambda m: m.pop("block_in.0.weight"),
            "discriminator.manifest.json has no 'block_in.0.weight'",
        ),
        (
            "lpips.manifest.json",
            lambda m: m.pop("lin0.model.1.weight"),
            "missing (1): lin0.model.1.weight",
        ),
        (
            "convnext.manifest.json",
            lambda m: m.update({"features.7.0.layer_scale": [3, 1, 1]}),
            "features.7.0.layer_scale",
        ),
        (
            "titok_train.manifest.json",
            lambda m: m.pop("latent_tokens"),
            "latent_tokens",
        ),
    ],
)
def test_a_folder_that_is_incomplete_fails_and_says_why(
    capsys, folder, name, edit, says
):
    rewrite(folder / name, edit)
    status, lines, summary = compare(capsys, folder, "--only=titok_train")
    assert status == 1
    assert summary["failed"] == ["titok_train"]
    assert says in lines["titok_train"]


def test_a_manifest_that_does_not_exist_is_absent(capsys, folder):
    (folder / "lpips.manifest.json").unlink()
    status, _, summary = compare(capsys, folder, "--only=titok_train")
    assert status == 1
    assert summary["absent"] == ["titok_train"]
