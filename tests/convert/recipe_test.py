"""The whole recipe of the tokenizer, on a folder of other sizes, salt and schedules."""

import shutil

import numpy as np
import pytest

from flowtok_jax.convert import recipe
from flowtok_jax.convert.goldens import Check, Goldens, ParityReport
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


@pytest.mark.parametrize(
    ("name", "step", "error", "fails"),
    [
        ("total", 3, 5e-5, True),  # strict: the discriminator's first step is that one
        ("total", 4, 5e-5, False),
        ("total", 4, 2e-3, True),
        ("logits_fake", 3, 5e-5, True),
        ("gan", 0, 1e-9, True),  # where the release has 0
        ("discriminator_lr", 3, 2e-5, True),
    ],
)
def test_errors_are_small_until_the_discriminator_learns(name, step, error, fails):
    check = Check(Goldens(OTHER), "titok_train", ParityReport())
    logs = [
        {ours: check.arrays[n][i] for ours, n in recipe.SCALARS.items()}
        | {"loss/convnext": 0.1 * check.arrays["convnext"][i]}
        for i in range(7)
    ]
    value = check.arrays[name][step]
    ours = next(key for key, n in recipe.SCALARS.items() if n == name)
    logs[step][ours] = value * (1 + error) if value else error
    training = check.goldens.value("titok_train")["training"]
    recipe._compare_logs(check, training, logs)
    failed = set(check.report.failed) - {"titok_train/perceptual"}
    assert failed == ({f"titok_train/{name}"} if fails else set())


def test_a_sum_of_both_signs_may_come_near_0():
    check = Check(Goldens(OTHER), "titok_train", ParityReport())
    check.arrays = {"logits_fake": np.array([1e-4, 0.5])}
    for error, fails in ((5e-7, 0), (5e-6, 1)):
        got = check.arrays["logits_fake"] + [error, 0.0]
        check.compare("logits_fake", got, 1e-5, each=True, floor=0.1)
        assert len(check.report.failed) == fails
