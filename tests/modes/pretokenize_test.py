"""Images to shards of moments by the command line, against the pipeline's encoder."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath

from configs import finetune
from flowtok_jax.data import shards
from flowtok_jax.data.folder import open_folder
from flowtok_jax.data.sources import make_source
from flowtok_jax.models.build import make_nets
from flowtok_jax.modes.pretokenize import make_encode, make_writer, pretokenize
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import file_sha256
from flowtok_jax.tasks import abstract_group
from flowtok_jax.weights.place import open_weights
from flowtok_jax.weights.sizes import adopt
from tests import run
from tests.data import made
from tests.runtime.processes_test import pid_of

CLUSTER = run.ROOT / "launch" / "local_cluster.sh"
COUNT = 70  # records: shards of 30, 30 and 10
SIZES = {"pretokenize.shard_records": 30, "pretokenize.batch_size": 2}
NAMES = [f"data-{i:05d}" for i in range(3)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return made.write_folder(tmp_path_factory.mktemp("photos") / "set", COUNT)


def command(demo, spec, out, **overrides) -> list[str]:
    """Arguments of main that encode a source by the tiny demo's tokenizer."""
    overrides = {"data.train": spec, "compute.dtype": "float32", **SIZES, **overrides}
    return [
        "--mode=pretokenize",
        "--config=configs/finetune.py",
        f"--checkpoint={demo.workdir}",
        f"--workdir={out}",
        *(f"--config.{key}={value}" for key, value in overrides.items()),
    ]


def last_line(outcome: run.Outcome) -> dict:
    assert outcome.status == 0, outcome.stderr
    return json.loads(outcome.stdout.splitlines()[-1])


def open_source(spec, tmp_path):
    cache = str(tmp_path / "cache")
    options = dict(image_size=32, seed=0, tokens=16, channels=4, cache=cache)
    return make_source(spec, **options)


def digests(out) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in out.glob("data-*")}


@pytest.fixture(scope="module")
def whole(demo, photos, tmp_path_factory):
    """Shards made in one go, by one process of one device; read-only."""
    out = tmp_path_factory.mktemp("whole") / "out"
    process = run.start(command(demo, f"folder:{photos}", out), JAX_NUM_CPU_DEVICES="1")
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return out


@pytest.mark.parametrize(
    ("kind", "transform"),
    [("arrayrecord", {}), ("tar", {"crop": "random", "flip": True})],
)
def test_moments_are_those_of_the_pipeline_for_the_same_pixels(
    cli, demo, flowtok, photos, tmp_path, kind, transform
):
    out, spec = tmp_path / "out", f"folder:{photos}"
    overrides = {f"data.transform.{key}": value for key, value in transform.items()}
    overrides |= {"pretokenize.format": kind}
    outcome = cli(*command(demo, spec, out, **overrides))
    assert ("crop and flip play no part" in outcome.stderr) == bool(transform)
    said = last_line(outcome)
    assert said.pop("seconds") > 0
    assert said.pop("images_per_sec") > 0
    assert said == {"records": COUNT, "rejected": {}, "shards": 3}
    assert f"latents:{out}/*.{kind}" in outcome.stderr
    shards.check_manifest(out, checksums=True)
    assert [s.file for s in shards.read_manifest(out)] == [f"{n}.{kind}" for n in NAMES]
    stored = open_source(f"latents:{out}/*.{kind}", tmp_path)
    source = open_source(spec, tmp_path)
    assert len(stored) == COUNT
    found = [stored[i] for i in range(COUNT)]
    wanted = [source[i] for i in range(COUNT)]
    assert [x["caption"] for x in found] == [x["caption"] for x in wanted]
    posterior = flowtok.encode_image(np.stack([x["image"] for x in wanted]) / 255.0)
    wanted = np.concatenate([posterior.mean, posterior.logvar], -1)
    moments = np.stack([x["moments"] for x in found]).astype(np.float32)
    np.testing.assert_allclose(moments, wanted, rtol=1e-3, atol=1e-4)  # of float16
    # This tokenizer tells images apart by little: each is the nearest to itself.
    errors = np.abs(moments[:, None] - wanted).mean((2, 3))
    np.testing.assert_array_equal(errors.argmin(1), np.arange(COUNT))


def test_eight_devices_write_the_bytes_of_one(cli, demo, photos, whole, tmp_path):
    outcome = cli(*command(demo, f"folder:{photos}", tmp_path / "out"))
    assert last_line(outcome)["records"] == COUNT
    assert digests(tmp_path / "out") == digests(whole)
    assert len(digests(whole)) == 3


def test_bfloat16_is_close_and_another_directory(cli, demo, photos, whole, tmp_path):
    out, low = tmp_path / "out", {"compute.dtype": "bfloat16"}
    last_line(cli(*command(demo, f"folder:{photos}", out, **low)))
    moments = [
        open_source(f"latents:{x}/*.arrayrecord", tmp_path).read_batch(
            range(COUNT), range(COUNT)
        )["moments"]
        for x in (whole, out)
    ]
    assert (moments[0] != moments[1]).any()
    np.testing.assert_allclose(*moments, atol=0.1)
    outcome = cli(*command(demo, f"folder:{photos}", out))
    assert outcome.status == 2
    assert (
        "dtype is 'bfloat16' there, 'float32' here; give another" in outcome.complaint
    )


def test_interrupted_it_goes_on_and_leaves_what_is_finished(
    cli, demo, photos, whole, tmp_path, monkeypatch
):
    out, arguments = tmp_path / "out", command(demo, f"folder:{photos}", tmp_path)
    arguments[3] = f"--workdir={out}"
    write = shards.write_arrayrecord

    def interrupted(path, records):
        def some():
            yield next(iter(records))
            raise KeyboardInterrupt

        return write(path, some() if path.name.startswith(NAMES[1]) else records)

    with monkeypatch.context() as patch:
        patch.setitem(shards.WRITERS, "arrayrecord", interrupted)
        assert cli(*arguments).status == 130
    assert [p.name for p in out.glob("data-*")] == [f"{NAMES[0]}.arrayrecord"]
    assert not (out / "manifest.json").exists()
    first = out / f"{NAMES[0]}.arrayrecord"
    left = out / f".{NAMES[1]}.arrayrecord.0a1b.part"  # as kill -9 leaves it
    left.write_bytes(b"half")
    before = first.stat()
    assert last_line(cli(*arguments))["records"] == COUNT
    assert digests(out) == digests(whole)
    assert (first.stat().st_mtime_ns, first.stat().st_ino) == (
        before.st_mtime_ns,
        before.st_ino,
    )
    assert not left.exists()
    again = last_line(cli(*arguments))
    assert (again["records"], again["images_per_sec"]) == (COUNT, 0.0)


def test_a_shard_that_is_lost_is_made_again_and_a_changed_one_named(
    cli, demo, photos, whole, tmp_path
):
    out = shutil.copytree(whole, tmp_path / "out")
    arguments = command(demo, f"folder:{photos}", out)
    lost, cut, changed = (out / f"{name}.arrayrecord" for name in NAMES)
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    last_line(cli(*arguments))
    assert digests(out) == digests(whole)
    data = changed.read_bytes()
    changed.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    outcome = cli(*arguments)
    assert outcome.status == 2
    assert f"{changed} differs from its SHA-256" in outcome.complaint


def test_what_is_broken_is_left_out_and_counted(cli, demo, tmp_path):
    folder = made.write_planted(tmp_path / "set")
    before = made.snapshot(tmp_path)
    spec, out = f"tars:{folder}/*.tar", tmp_path / "out"
    overrides = {"data.cache": tmp_path / "cache", "pretokenize.shard_records": 5}
    outcome = cli(*command(demo, spec, out, **overrides))
    said = last_line(outcome)
    assert said["records"] == made.WHOLE
    assert said["rejected"] == {reason: 1 for _, reason in made.PLANTED.values()}
    report = json.loads((out / "report.json").read_text())
    for key, (_, reason) in made.PLANTED.items():
        assert report["first"][reason] == [f"{folder}/1.tar:{key}"]
        assert f"{reason} 1 ({folder}/1.tar:{key})" in outcome.stderr
    # 71 records make 15 shards; of the last ones nothing is left.
    assert said["shards"] == made.WHOLE // 5 == len(list(out.glob("data-*")))
    assert len(list((out / "done").glob("*.json"))) == 15
    stored = open_source(f"latents:{out}/*.arrayrecord", tmp_path)
    captions = [stored[i]["caption"] for i in range(len(stored))]
    assert captions == [f"picture {i}" for i in range(made.WHOLE)]
    new = {p.split("/")[0] for p in made.snapshot(tmp_path) - before}
    assert new == {"out", "cache"}


def test_too_much_that_is_broken_stops_it(cli, demo, tmp_path):
    folder = made.write_folder(tmp_path / "set", 210)
    for i in range(100, 140):
        (folder / f"{i:04d}.txt").write_text(" ")
    overrides = {"pretokenize.shard_records": 1000}
    arguments = command(demo, f"folder:{folder}", tmp_path / "out", **overrides)
    outcome = cli(*arguments)
    assert outcome.status == 2
    assert "40 of 20" in outcome.complaint
    assert "empty_caption 40, first" in outcome.complaint
    assert not list((tmp_path / "out").glob("data-*"))
    outcome = cli(*arguments, "--config.data.max_rejected=0.2")
    assert last_line(outcome)["rejected"] == {"empty_caption": 40}


def test_how_far_it_is_is_said_now_and_then(cli, demo, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("flowtok_jax.data.shard_folder.PROGRESS_SECONDS", -1.0)
    outcome = cli(*command(demo, f"folder:{photos}", tmp_path / "out"))
    lines = [x for x in outcome.stderr.splitlines() if x.startswith("pretokenize ")]
    assert len(lines) == COUNT
    assert re.fullmatch(r"pretokenize 70/70, \d+ images/s", lines[-1])


def test_several_sources_come_one_after_the_other(cli, demo, photos, tmp_path):
    other = made.write_folder(tmp_path / "other", 5)
    for path in other.glob("*.txt"):
        path.write_text("other")
    spec = f"folder:{other},folder:{photos}"
    said = last_line(cli(*command(demo, spec, tmp_path / "out")))
    assert said["records"] == COUNT + 5
    stored = open_source(f"latents:{tmp_path}/out/*.arrayrecord", tmp_path)
    captions = [stored[i]["caption"] for i in range(7)]
    assert captions[:5] == ["other"] * 5
    assert "other" not in captions[5:]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"data.train": "shapes@2"}, "has latents or weights; expected images, each"),
        (
            {"data.train": "latents:x/*.tar"},
            "has latents or weights; expected images, each",
        ),
        ({"data.train": "folder:nowhere"}, "nowhere is no directory"),
        ({"pretokenize.format": "zip"}, "'zip'; expected one of arrayrecord, tar"),
        ({"pretokenize.shard_records": 0}, "pretokenize.shard_records is 0"),
        (
            {"pretokenize.batch_size": 0},
            "pretokenize.batch_size is 0; expected at",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_encoded_is_refused_before_anything_is_written(
    cli, demo, photos, tmp_path, override, message
):
    outcome = cli(*command(demo, f"folder:{photos}", tmp_path / "out", **override))
    assert outcome.status == 2
    assert message in outcome.complaint
    assert not (tmp_path / "out").exists()


def test_a_directory_of_something_else_is_refused(cli, demo, photos, whole, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes").touch()
    spec = f"folder:{photos}"
    outcome = cli(*command(demo, spec, tmp_path / "own"))
    assert "own exists already and has no pretokenize.json" in outcome.complaint
    out = shutil.copytree(whole, tmp_path / "out")
    outcome = cli(*command(demo, spec, out, **{"pretokenize.format": "tar"}))
    assert (
        "format is 'arrayrecord' there, 'tar' here; give another" in outcome.complaint
    )
    outcome = cli(*command(demo, f"folder:{photos}/", out))
    assert f"source is 'folder:{photos}' there" in outcome.complaint
    assert digests(out) == digests(whole)


def test_weights_that_are_not_there_are_asked_for(cli, demo, photos, tmp_path):
    arguments = command(demo, f"folder:{photos}", tmp_path / "out")
    del arguments[2]
    assert "expected --checkpoint=DIR, a run's" in cli(*arguments).complaint
    arguments[1] = "--config=configs/b.py"
    assert "no weights named; expected --checkpoint=DIR" in cli(*arguments).complaint
    arguments[1] = "--config=configs/finetune.py"
    copy = tmp_path / "copy"
    shutil.copytree(demo.workdir, copy)
    shutil.rmtree(copy / "checkpoints" / "tokenizer")
    outcome = cli(*arguments, f"--checkpoint={copy}")
    assert f"no weights of tokenizer in {copy}" in outcome.complaint


def test_remote_shards_are_refused(photos):
    config = finetune.get_config()
    config.data.train = f"folder:{photos}"
    with pytest.raises(UserError, match="written to local disks"):
        pretokenize(config, epath.Path("gs://bucket/out"))


def test_a_process_writes_its_share_of_the_shards(
    demo, photos, whole, tmp_path, monkeypatch
):
    config = finetune.get_config()
    weights = open_weights(demo.workdir)
    adopt(config, weights, {"compute.dtype": "float32", **SIZES})
    nets = make_nets(config)
    params = weights.read("tokenizer", abstract_group(nets, "tokenizer"), nets)
    records = open_folder(str(photos))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for index, (wanted, count) in enumerate((({0, 2}, 40), ({0, 1, 2}, 30))):
        monkeypatch.setattr(jax, "process_index", lambda i=index: i)
        encoded, _ = make_writer(config, tmp_path, records).write(
            lambda: make_encode(nets, params, 16),
            batch_size=16,
            threads=2,
            ahead=8,
        )
        assert encoded == count
        names = {f"{NAMES[i]}.arrayrecord" for i in wanted}
        assert {path.name for path in tmp_path.glob("data-*")} == names
    assert digests(tmp_path) == digests(whole)


def link_pipe(image: pathlib.Path) -> None:
    """Puts a link to a pipe in an image's place: of folders, pipes are passed over."""
    pipe = image.parent.parent / f"pipe_{image.stem}"
    os.mkfifo(pipe)
    image.symlink_to(pipe)


def test_killed_in_two_places_it_comes_to_the_same_bytes(cli, demo, photos, tmp_path):
    folder = shutil.copytree(photos, tmp_path / "set")
    out, spec = tmp_path / "out", f"folder:{folder}"
    arguments = command(demo, spec, out, **{"data.threads": 1, "data.prefetch": 1})
    for shard, stop in ((0, 35), (1, 65)):
        image = folder / f"{stop:04d}.png"
        data = image.read_bytes()
        image.unlink()
        link_pipe(image)  # whoever reads it waits
        process = run.start(arguments, JAX_NUM_CPU_DEVICES="1")
        run.wait_for(process, lambda n=shard: (out / f"done/{n:05d}.json").is_file())
        process.kill()
        process.communicate()
        image.unlink()
        image.write_bytes(data)
        assert sorted(digests(out)) == [f"{n}.arrayrecord" for n in NAMES[: shard + 1]]
    first = (out / f"{NAMES[0]}.arrayrecord").stat().st_mtime_ns
    last_line(cli(*arguments))
    assert (out / f"{NAMES[0]}.arrayrecord").stat().st_mtime_ns == first
    last_line(cli(*command(demo, spec, tmp_path / "whole")))
    assert digests(out) == digests(tmp_path / "whole")


def two_processes(arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [CLUSTER, "--devices=4", "2", "--", *arguments],
        cwd=run.ROOT,
        env=os.environ | {"PYTHON": sys.executable},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_two_processes_write_the_bytes_of_one(demo, photos, whole, tmp_path):
    out = tmp_path / "out"
    process = two_processes(command(demo, f"folder:{photos}", out))
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert digests(out) == digests(whole)
    (line,) = (x for x in output.splitlines() if '{"records"' in x)
    assert json.loads(line[line.index("{") :])["records"] == COUNT
    shards.check_manifest(out, checksums=True)


def test_sigterm_ends_one_of_two_processes_and_then_the_other(demo, photos, tmp_path):
    """JAX listens for it, and would have the process go on."""
    folder, out = shutil.copytree(photos, tmp_path / "set"), tmp_path / "out"
    (folder / "0065.png").unlink()
    link_pipe(folder / "0065.png")  # process 0 waits here, process 1 for process 0
    process = two_processes(command(demo, f"folder:{folder}", out))
    run.wait_for(process, lambda: len(list((out / "done").glob("*.json"))) == 2)
    os.kill(pid_of(out, 1), signal.SIGTERM)
    (folder / "0065.png").open("wb").close()
    output, _ = process.communicate(timeout=120)
    assert "process 1 exited with status 143" in output
    assert "process 0 exited with status 1" in output
    assert not (out / "manifest.json").exists()
