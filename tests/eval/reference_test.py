"""Reference statistics: made by the command, read from files of ours and of others."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from flowtok_jax.data import images
from flowtok_jax.eval import reference
from flowtok_jax.eval.reference_file import read_reference
from tests import run
from tests.eval import fake
from tests.eval.features_test import by_hand

COUNT = 30


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
    assert (status, said) == (2, None)
    assert "2 of 30 images are broken (empty_file 1, truncated_image 1)" in stderr
    assert "at most 0.05 of them may be: mend them, or allow more with --max" in stderr
    assert not out.exists()
    status, said, stderr = make(*flags, "--max_rejected=0.07")
    assert status == 0
    assert said["rejected"] == {"empty_file": 1, "truncated_image": 1}
    assert f"empty_file 1, first {tmp_path}/set/004.png" in stderr
    with np.load(out) as file:
        assert_statistics(file, [x for i, x in enumerate(images) if i not in (4, 9)])


def test_a_folder_goes_before_syntax_and_home_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("[2024] set", "shapes", "folder:x@2"):
        write_images(tmp_path / name, 3)
    for where in (
        "~/[2024] set",
        "~/[2024] set/*.png",
        '"~/[2024] set"',
        "'~/[2024] set'/*.png",
        f"file://{tmp_path}/[2024]%20set",
        "shapes",
        "folder:x@2",
    ):
        assert len(reference.find_images(where, 8)) == 3


def test_images_of_every_size_mode_and_name_count(make, tmp_path):
    """Grey, palettes, alpha, 16 bits, `.JPG`, one pixel, a sliver, beside the rest."""
    folder = tmp_path / "set"
    pictures = write_images(folder, 3)
    grey = Image.fromarray(pictures[0][..., 0])
    deep = Image.fromarray(pictures[1][..., 0].astype(np.uint16) * 257)
    clear = Image.new("LA", (30, 50), (7, 0))
    odd = {
        "grey.png": grey,
        "photo.JPG": grey,
        "photo.Jpeg": Image.fromarray(pictures[2]),
        "line.PNG": grey.point(lambda v: 255 * (v > 99), "1"),
        "palette.gif": Image.fromarray(pictures[0]).quantize(16),
        "clear.png": clear,
        "deep.png": deep,
        "ink.tif": Image.fromarray(pictures[0]).convert("CMYK"),
        "pixel.bmp": Image.new("RGB", (1, 1), "red"),
        "sliver.webp": Image.new("RGB", (3000, 2), "blue"),
        "dir/deeper/large.png": Image.new("RGB", (900, 700), "green"),
    }
    (folder / "dir" / "deeper").mkdir(parents=True)
    for name, image in odd.items():
        image.save(folder / name)
    (folder / "._photo.JPG").write_bytes(b"a Mac's notes on photo.JPG")
    out = tmp_path / "x.npz"
    status, said, stderr = make(f"--images={folder}", f"--out={out}", "--weights=DIR")
    assert (status, said["rejected"]) == (0, {}), stderr
    assert said["images"] == len(pictures) + len(odd)
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name[0] != ".")
    pixels = [np.asarray(images.decode(p.read_bytes(), "it")) for p in paths]
    with np.load(out) as file:
        assert_statistics(file, pixels)
    (tmp_path / "album").symlink_to(folder)
    (folder / "round").symlink_to(folder)
    (folder / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    flags = f"--images={tmp_path}/album", f"--out={out}", "--weights=DIR"
    status, again, stderr = make(*flags, "--max_rejected=0.1")
    assert again == {**said, "rejected": {"unsupported_image": 1}}
    assert "photo.heic (HEIC)" in stderr
    (folder / "round").unlink()
    # A glob at any depth finds the same; a hidden file is none that it names.
    flags = f"--images={folder}/**/*.*", f"--out={out}", "--weights=DIR"
    assert make(*flags)[1]["sha256"] == said["sha256"]


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


def test_a_folder_is_found_by_whatever_it_is_called(make, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("shapes", "tars:a", "[2024] x, y@2"):
        write_images(tmp_path / name / "inner", 3)
        for where in (name, f"~/{name}", f"{tmp_path}/{name}"):
            flags = f"--images={where}", "--out=x.npz", "--weights=DIR", "--by_folder"
            status, said, stderr = make(*flags)
            assert (status, said and said["images"]) == (0, 3), stderr
            assert set(read_reference(tmp_path / "x.npz").groups) == {"inner"}


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
    flags.append("--max_rejected=0.1")
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
