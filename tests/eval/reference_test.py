"""Reference statistics: made by the command, read from files of ours and of others."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from flowtok_jax.eval import reference
from flowtok_jax.eval.reference import check_fits, read_reference
from flowtok_jax.runtime.errors import UserError
from tests import run
from tests.eval import fake
from tests.eval.features_test import by_hand, extractor

COUNT = 30
UNIT = {"mu": np.zeros(2), "sigma": np.eye(2)}
NPY = b"\x93NUMPY\1\0v\0{'descr': '<f8', 'fortran_order': False, 'shape': (0,)}"


def write_images(folder, count=COUNT, seed=0):
    """PNG files of different sizes, as arrays too."""
    rng, found = np.random.default_rng(seed), []
    folder.mkdir(parents=True)
    for i in range(count):
        shape = (*rng.integers(20, 60, 2), 3)
        found.append(rng.integers(0, 256, shape, np.uint8) // (1 + i % 3))
        Image.fromarray(found[-1]).save(folder / f"{i:03d}.png")
    return found


@pytest.fixture
def make(monkeypatch, capsys):
    """Runs the command in this process; status, what it said, and the complaint."""
    monkeypatch.setattr(reference, "load_metric_net", fake.load_metric_net)

    def call(*arguments):
        with run.own_logging():
            status = reference.main([*arguments, "--batch=2", "--threads=2"])
        stdout, stderr = capsys.readouterr()
        return status, json.loads(stdout) if stdout else None, stderr

    return call


def assert_statistics(file, images, end=""):
    features, _ = by_hand(images)
    exact = features.astype(np.float64)
    assert int(file[f"n{end}"]) == len(images)
    np.testing.assert_allclose(file[f"mu{end}"], exact.mean(0), rtol=1e-6, atol=1e-6)
    covariance = np.cov(exact.T)
    scale = 1e-6 * np.abs(covariance).max()
    np.testing.assert_allclose(file[f"sigma{end}"], covariance, atol=scale)


def test_statistics_of_a_folder_are_numpys(make, tmp_path, monkeypatch):
    monkeypatch.setattr("flowtok_jax.eval.reference.BLOCK", 13)
    images, out = write_images(tmp_path / "a" / "b"), tmp_path / "new" / "ref.npz"
    flags = f"--images={tmp_path}/a", f"--out={out}", "--weights=DIR"
    status, said, stderr = make(*flags, "--features")
    assert status == 0
    assert stderr.splitlines() == [
        f"reference: {n} of {COUNT} images" for n in (13, 26)
    ]
    digest = read_reference(out).digest()
    assert said == {"images": COUNT, "rejected": {}, "sha256": digest}
    with np.load(out) as file:
        assert set(file) == {"mu", "sigma", "n", "resize", "net", "features"}
        assert_statistics(file, images)
        np.testing.assert_allclose(file["features"], by_hand(images)[0], atol=1e-5)
        assert (str(file["resize"]), str(file["net"])) == ("clean", fake.SHA256)
    before = out.read_bytes()
    make(*flags, "--features", "--limit=10")
    found = read_reference(out)
    assert found.whole.count == 10
    assert found.digest() != digest
    assert before != out.read_bytes()


def test_broken_images_are_counted_and_left_out(make, tmp_path):
    images, out = write_images(tmp_path / "set"), tmp_path / "ref.npz"
    (tmp_path / "set" / "004.png").write_bytes(b"")
    whole = (tmp_path / "set" / "009.png").read_bytes()
    (tmp_path / "set" / "009.png").write_bytes(whole[:-500])
    (tmp_path / "set" / "notes.txt").write_text("no image by its name")
    flags = f"--images={tmp_path}/set/*", f"--out={out}", "--weights=DIR"
    status, said, stderr = make(*flags)
    assert status == 0
    assert said["rejected"] == {"empty_file": 1, "truncated_image": 1}
    assert f"empty_file 1, first {tmp_path}/set/004.png" in stderr
    with np.load(out) as file:
        assert_statistics(file, [x for i, x in enumerate(images) if i not in (4, 9)])


def test_statistics_of_each_folder(make, tmp_path):
    first = write_images(tmp_path / "set" / "animals")
    second = write_images(tmp_path / "set" / "food", 12, seed=1)
    flags = f"--images={tmp_path}/set", f"--out={tmp_path}/ref.npz", "--weights=DIR"
    make(*flags, "--by_folder")
    with np.load(tmp_path / "ref.npz") as file:
        assert_statistics(file, [*first, *second])
        assert_statistics(file, first, "/animals")
        assert_statistics(file, second, "/food")
    found = read_reference(tmp_path / "ref.npz")
    assert set(found.groups) == {"animals", "food"}


def test_a_source_of_data_and_legacy_resizing(make, tmp_path):
    flags = "--images=shapes:seen", f"--out={tmp_path}/ref.npz", "--weights=random"
    status, said, stderr = make(*flags, "--resize=legacy", "--size=24", "--limit=20")
    assert status == 0, stderr
    assert said["images"] == 20
    found = read_reference(tmp_path / "ref.npz")
    assert (found.resize, found.net) == ("legacy", "random")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"images": "{tmp}/empty"}, "empty has no image; expected a folder of them"),
        ({"images": "{tmp}/*.png"}, "*.png has no image; expected a folder"),
        ({"images": "{tmp}/one"}, "1 images that can be read; statistics need 2"),
        ({"images": "shapes@2"}, "has latents or weights; expected images, each once"),
        ({"images": "shapes:x"}, "no such split"),
        ({"resize": "legacy"}, "needs images of one size; expected --size=256"),
        ({"weights": ""}, "expected --images=IMAGES, --out=FILE.npz and --weights=DIR"),
        ({"out": "{tmp}/one"}, "one is a directory; expected a file, FILE.npz"),
        (
            {"out": "{tmp}/one/000.png/x.npz"},
            "is a file; expected a directory",
        ),
        ({"limit": "-1"}, "--limit is -1; expected at least 0"),
        ({"images": "{tmp}/one/*", "by_folder": ""}, "is no folder of images"),
    ],
)
def test_what_cannot_be_is_one_line_and_no_file(make, tmp_path, flags, message):
    (tmp_path / "empty").mkdir()
    write_images(tmp_path / "one", 1)
    given = {"images": f"{tmp_path}/one", "out": f"{tmp_path}/x.npz", "weights": "DIR"}
    given |= {name: value.format(tmp=tmp_path) for name, value in flags.items()}
    arguments = [
        f"--{n}={v}" if n != "by_folder" else f"--{n}" for n, v in given.items()
    ]
    status, _, stderr = make(*arguments)
    assert status == 2
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    assert message in stderr
    assert not (tmp_path / "x.npz").exists()


def test_an_interrupted_command_ends_in_one_line(make, monkeypatch):
    def interrupted(flags):
        raise KeyboardInterrupt

    monkeypatch.setattr(reference, "make", interrupted)
    assert make() == (130, None, "interrupted; nothing was written\n")


def test_files_of_pytorch_fid_and_clean_fid_are_read(tmp_path):
    mean, covariance = np.arange(4.0), 2 * np.eye(4)
    np.savez_compressed(tmp_path / "stats.npz", mu=mean, sigma=covariance)
    found = read_reference(tmp_path / "stats.npz")
    np.testing.assert_array_equal(found.whole.mean, mean)
    np.testing.assert_array_equal(found.whole.covariance, covariance)
    assert found.features is None
    described = found.describe()
    assert described.pop("sha256") == found.digest()
    assert described == {"images": "unknown", "resize": "unknown", "net": "unknown"}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"feats": np.zeros((3, 4))}, "holds feats; expected mu and sigma"),
        (
            {"mu": np.zeros(4), "sigma": np.zeros((3, 3))},
            "sigma is float64 of shape (3, 3); expected numbers of shape (4, 4)",
        ),
        ({"mu": np.zeros((2, 1)), "sigma": np.eye(2)}, "mu is float64 of shape (2, 1)"),
        (
            {"mu": np.array(["a"]), "sigma": np.eye(1)},
            "mu is <U1 of shape (1,); expected",
        ),
        ({"mu": np.zeros(2), "sigma": np.full((2, 2), np.nan)}, "sigma is not finite"),
        ({**UNIT, "n": np.zeros(3)}, "n is float64 of shape (3,); expected numbers of"),
        ({**UNIT, "mu/art": np.zeros(2)}, "has no sigma/art; make it by"),
        (
            {**UNIT, "features": np.zeros((5, 3))},
            "features is float64 of shape (5, 3); expected numbers of shape (any, 2)",
        ),
        ({"mu": np.array([{}]), "sigma": np.zeros(1)}, "is no npz file that can be"),
        (b"PK\3\4 cut short", "is no npz file that can be read"),
        (NPY, "is no npz file that can be read (File is not a zip file)"),
    ],
    ids=str,
)
def test_files_of_something_else_are_refused(tmp_path, arrays, message):
    path = tmp_path / "stats.npz"
    if isinstance(arrays, bytes):
        path.write_bytes(arrays)
    else:
        np.savez(path, **arrays)
    with pytest.raises(UserError) as error:
        read_reference(path)
    assert message in str(error.value)


def test_a_file_that_is_not_there_names_the_command():
    with pytest.raises(UserError, match=r"not exist; make it by `python -m flowtok"):
        read_reference(pathlib.Path("nowhere.npz"))


def test_statistics_that_do_not_fit_are_refused(tmp_path):
    def reads(**arrays):
        sizes = {"mu": np.zeros(4), "sigma": np.eye(4)}
        np.savez(tmp_path / "x.npz", **{**sizes, **arrays})
        return read_reference(tmp_path / "x.npz")

    ours = extractor()
    assert ours.width == fake.FEATURES
    ours.width = 4
    check_fits(reads(), "x.npz", ours)
    check_fits(reads(resize="clean", net=fake.SHA256), "x.npz", ours)
    for arrays, message in (
        ({}, "x.npz has 4 dimensions, Inception's features here 2048"),
        ({"resize": "legacy"}, "is of legacy resizing, eval.fid.resize is clean"),
        ({"net": "0" * 64}, "is of other weights of Inception .000000000000 there"),
    ):
        ours.width = 4 if arrays else 2048
        with pytest.raises(UserError, match=message):
            check_fits(reads(**arrays), "x.npz", ours)
    ours.net_sha256 = "random"
    with pytest.raises(UserError, match=r"other weights of Inception \(unknown there"):
        check_fits(reads(), "x.npz", ours)


def start(count, *arguments):
    """Processes of the command, with 8 devices together."""
    address = f"--coordinator=127.0.0.1:{run.free_port()}"
    name = ["-m", "tests.eval.with_fake", "flowtok_jax.eval.reference", *arguments]
    numbers = [f"--num_processes={count}", address]
    return [
        subprocess.Popen(
            [sys.executable, *name, *numbers, f"--process_id={i}"],
            cwd=run.ROOT,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": str(8 // count)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]


def test_two_processes_make_the_statistics_of_one(make, tmp_path):
    """Each decodes its own images; what is broken in one is known to the other."""
    write_images(tmp_path / "set")
    (tmp_path / "set" / "002.png").write_bytes(b"")  # of process 0
    (tmp_path / "set" / "015.png").write_bytes(b"")  # of process 1
    flags = [f"--images={tmp_path}/set", "--weights=DIR", "--features", "--batch=2"]
    _, wanted, _ = make(*flags, f"--out={tmp_path}/one.npz")
    found = start(2, *flags, f"--out={tmp_path}/two.npz")
    outputs = [process.communicate(timeout=300) for process in found]
    assert [process.returncode for process in found] == [0, 0], outputs
    assert json.loads(outputs[0][0].splitlines()[-1]) == wanted
    assert wanted["rejected"] == {"empty_file": 2}
    assert '"images"' not in outputs[1][0]
    for (_, stderr), name in zip(outputs, ("002.png", "015.png"), strict=True):
        assert f"empty_file 1, first {tmp_path}/set/{name}" in stderr
    one, two = (read_reference(tmp_path / f"{x}.npz") for x in ("one", "two"))
    np.testing.assert_array_equal(one.features, two.features)
    np.testing.assert_array_equal(one.whole.covariance, two.whole.covariance)
