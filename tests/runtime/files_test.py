"""Remote paths, on a store in memory, which Orbax and TensorStore do not know."""

import errno
import importlib.util
import json
import logging
import os
import pathlib
import re
import subprocess
import sys

import fsspec
import jax
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from configs import demo as demo_config
from flowtok_jax import modes
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.eval import pictures, reference_file, score
from flowtok_jax.eval.evaluate import Chunks
from flowtok_jax.eval.parts import PartMaker
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime import files as places
from flowtok_jax.runtime.errors import PlaceError, StoreError, UserError, WriteError
from flowtok_jax.runtime.mesh import make_mesh
from flowtok_jax.tasks import abstract_group
from flowtok_jax.train import log as metrics
from flowtok_jax.train.start import inherit_vocabulary
from flowtok_jax.weights import nets, pretrained, workdir
from flowtok_jax.weights.place import open_start, open_weights
from tests import run, tiny

RUN = "gs://bucket/run"


class Store(MemoryFileSystem):
    """A bucket: no directories, no appending, and what it is told to fail with."""

    protocol = ("gs", "gcs")
    store: dict = {}
    pseudo_dirs: list = [""]
    failure: Exception | None = None
    written: list[str] = []

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("gs://").removeprefix("gcs://").strip("/")

    def _check(self):
        if self.failure:
            raise self.failure

    def info(self, path, **options):
        self._check()
        return super().info(path, **options)

    def ls(self, path, *arguments, **options):
        self._check()
        return super().ls(path, *arguments, **options)

    def exists(self, path, **options):
        try:
            return bool(self.info(path))
        except FileNotFoundError:
            return False

    def _open(self, path, mode="rb", **options):
        self._check()
        assert mode in ("rb", "wb", "xb")
        if mode == "wb":
            self.written.append(path.removeprefix("/bucket/run/"))
        return super()._open(path, mode, **options)

    def mkdir(self, *arguments, **options):
        raise AssertionError("gcsfs could make a bucket")

    makedirs = mkdir


fsspec.register_implementation("gcs", Store, clobber=True)


@pytest.fixture
def store(monkeypatch):
    """The store behind gs://, empty."""
    for name, value in {"store": {}, "written": [], "failure": None}.items():
        monkeypatch.setattr(Store, name, value)
    return Store


@pytest.fixture
def place(store):
    return places.to_place(RUN)


@pytest.fixture
def config():
    config = demo_config.get_config()
    config.text.vocabulary_captions = 64
    return config


def test_only_gs_is_remote(store, tmp_path):
    assert places.to_place("gs://b/run") == epath.Path("gs://b/run")
    assert str(places.to_place("gs://b/run") / "a") == "gs://b/run/a"
    assert places.is_remote(places.to_place("gs://b/run"))
    assert type(places.to_place("runs/a b")) is type(tmp_path)
    assert places.to_place(tmp_path) == tmp_path
    assert not places.is_remote(tmp_path)


@pytest.mark.parametrize("text", ["s3://b/run", "gcs://b/run", "gs:/b/run", "gs://"])
def test_other_stores_and_mistyped_ones_are_refused(text):
    with pytest.raises(UserError, match=f"^{text} is no place.* gs://BUCKET/PATH$"):
        places.to_place(text)


@pytest.mark.skipif(bool(importlib.util.find_spec("gcsfs")), reason="it is installed")
def test_without_gcsfs_what_to_install_is_said():
    code = (
        "from flowtok_jax.runtime.errors import UserError\n"
        "from flowtok_jax.runtime.files import to_place\n"
        "try: to_place('gs://b/run')\n"
        "except UserError as error: print(error)"
    )
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, cwd=run.ROOT, capture_output=True, text=True)
    assert said.stdout.startswith("gs://b/run needs gcsfs")
    assert "pip install gcsfs" in said.stdout
    assert len(said.stdout.splitlines()) == 1


@pytest.mark.parametrize("failure", [OSError("Forbidden: b"), RuntimeError("401\nx")])
@pytest.mark.parametrize("mode", ["train", "sample"])
def test_a_store_that_refuses_at_the_start_is_a_mistake(cli, store, failure, mode):
    store.failure = failure
    flags = [f"--config={run.CONFIG}"] if mode == "train" else ["--prompts=a"]
    outcome = cli(f"--mode={mode}", f"--workdir={RUN}", *flags)
    assert outcome.status == 2
    assert f"{RUN} cannot be read or written" in outcome.complaint
    assert str(failure).splitlines()[0] in outcome.complaint


def test_a_workdir_that_cannot_be_written_at_the_start_is_a_mistake(
    cli, store, monkeypatch
):
    def refuse(self, path, mode="rb", **options):
        raise FileNotFoundError(f"no bucket for {path}")

    monkeypatch.setattr(store, "_open", refuse)
    outcome = cli(*run.command(RUN, "tokenizer"))
    assert outcome.status == 2
    assert f"{RUN}/lock.json cannot be read or written" in outcome.complaint


@pytest.mark.parametrize(
    "ask",
    [
        open_weights,
        workdir.read_config,
        workdir.newest_steps,
        lambda place: workdir.steps_of(place, "t2i"),
        pretrained.read_stored_config,
    ],
    ids=["open", "config", "newest", "steps", "stored"],
)
def test_a_store_that_fails_while_a_workdir_is_read_is_one_line(
    place, store, monkeypatch, ask
):
    (place / "config.json").write_text("{}")
    (place / "checkpoints" / "t2i" / "4" / "ema").write_text("")
    known = places.to_place(place)
    monkeypatch.setattr(store, "failure", OSError("503 unavailable"))
    # What comes first tries the place out; the failure may come after it.
    monkeypatch.setattr(type(known), "is_dir", lambda self: True)
    with pytest.raises(UserError, match="cannot be read or written .*503"):
        ask(known)


def test_a_store_that_fails_later_ends_with_a_status_that_is_tried_again(
    cli, monkeypatch
):
    def fail(arguments):
        raise StoreError("gs://b/run cannot be read or written")

    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(modes.train, "run", fail)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit) as ended:
        cli()
    assert ended.value.code == 1


def test_a_remote_workdir_is_opened_and_opened_again(place, store, config):
    vocabulary = workdir.open_workdir(place, config)
    assert sorted(store.written) == ["config.json", "vocabulary.json"]
    again = workdir.open_workdir(place, config)
    caption = ["a red circle at the top left"]
    assert again.encode(caption).tolist() == vocabulary.encode(caption).tolist()
    stored = workdir.read_config(place).to_dict()
    assert stored.pop(workdir.VOCABULARY_SHA256) == vocabulary.sha256()
    assert stored == config.to_dict()
    config.dit.width = 3
    with pytest.raises(UserError, match=f"^{RUN} belongs to another config"):
        workdir.open_workdir(place, config)


def test_the_vocabulary_comes_from_a_remote_start(place, config, tmp_path):
    wanted = workdir.open_workdir(place, config)
    config.init_from, config.text.vocabulary = RUN, "nowhere"
    inherited = inherit_vocabulary(config, lambda: open_start(config.init_from))
    found = workdir.open_workdir(tmp_path, config, lambda: inherited)
    assert found.tokenizer.get_vocab() == wanted.tokenizer.get_vocab()


def test_pictures_are_written_to_a_store(place):
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    pictures.save_png(place / "samples" / "a.png", image)
    with (place / "samples" / "a.png").open("rb") as file:
        np.testing.assert_array_equal(np.asarray(Image.open(file)), image)
    assert [p.name for p in (place / "samples").glob("*.png")] == ["a.png"]


def test_prompts_are_drawn_into_a_remote_workdir(cli, demo, store):
    outcome = cli(
        "--mode=sample",
        f"--checkpoint={demo.workdir}",
        f"--workdir={RUN}",
        "--prompts=a red circle",
    )
    assert outcome.status == 0
    names = ["0000_a_red_circle_seed0.png", "grid.png"]
    names = [f"samples/0001/{name}" for name in names]
    assert outcome.stdout.splitlines() == [f"{RUN}/{name}" for name in names]
    assert store.written == names


def measure(place, start_step, steps, **options):
    options = {"start_step": start_step, "writes": True, **options}
    with metrics.Metrics(place, "t2i", **options) as found:
        for step in steps:
            found.scalars(step, {"loss/total": float(step)})
    return found


def steps_there(place):
    text = (place / metrics.METRICS).read_text()
    return [json.loads(line)["step"] for line in text.splitlines()]


def test_metrics_are_copied_before_a_checkpoint_and_at_the_end(place, store):
    with metrics.Metrics(place, "t2i", start_step=0, writes=True) as measured:
        measured.scalars(2, {"loss/total": 1.0})
        assert not store.written
        measured.store()
        assert steps_there(place) == [2]
        measured.store()
        assert store.written.count(metrics.METRICS) == 1  # it did not grow
        measured.scalars(4, {"loss/total": 1.0})
        measured.images(4, {"grid": np.zeros((4, 6, 3), np.uint8)})
    assert steps_there(place) == [2, 4]
    (events,) = (place / "tb" / "t2i").iterdir()
    assert b"PNG" in events.read_bytes()


def test_metrics_are_copied_now_and_then(place, monkeypatch):
    monkeypatch.setattr(metrics, "COPY_SECONDS", 0.0)
    with metrics.Metrics(place, "t2i", start_step=0, writes=True) as measured:
        measured.scalars(2, {"loss/total": 1.0})
        assert steps_there(place) == [2]


def test_a_resumed_remote_stage_drops_the_lines_past_its_step(place):
    measure(place, 0, [2, 4, 6])
    measure(place, 4, [6, 8])
    assert steps_there(place) == [2, 4, 6, 8]
    assert len(list((place / "tb" / "t2i").iterdir())) == 2


def test_where_copying_fails_lines_wait_for_the_next_time(
    place, store, monkeypatch, caplog
):
    monkeypatch.setattr(metrics, "COPY_SECONDS", 0.0)
    with metrics.Metrics(place, "t2i", start_step=0, writes=True) as measured:
        monkeypatch.setattr(store, "failure", OSError("503"))
        with caplog.at_level(logging.WARNING):
            measured.scalars(2, {"loss/total": 1.0})
        assert "503" in caplog.text
        with pytest.raises(StoreError, match="503"):
            measured.store()  # a checkpoint must not come before its lines
        monkeypatch.setattr(store, "failure", None)
    assert steps_there(place) == [2]


def test_a_process_that_does_not_write_leaves_a_store_alone(place, store):
    measure(place, 0, [2], writes=False).store()
    assert not store.written


def test_a_store_that_fails_is_no_reason_to_measure_less(
    place, store, monkeypatch, tmp_path
):
    """The next try may find well what this one could not read."""
    chunks = Chunks(place / "part", 2, 2)
    chunks.write(0, {"pool": np.zeros(2)})
    for name in (nets.METRICS, "reference.npz", "results.json"):
        places.write_bytes(place / name, b"{}")

    def fail(self, path, mode="rb", **options):
        raise OSError("503")

    monkeypatch.setattr(Store, "_open", fail)
    for read in (
        lambda: nets.load_metric_net("clip", RUN),
        lambda: reference_file.read_reference(place / "reference.npz"),
        lambda: score.read_results(place / "results.json"),
        lambda: chunks.read(0),
    ):
        with pytest.raises(StoreError, match="503"):
            read()
    config = demo_config.get_config()
    config.eval.weights = RUN
    mesh = make_mesh(data=-1, fsdp=1, tensor=1)
    maker = PartMaker(config, open_weights(tmp_path), tmp_path, mesh)
    with pytest.raises(StoreError, match="503"):
        maker._net("clip")


def test_what_a_store_has_not_is_no_failure(place):
    with pytest.raises(FileNotFoundError):
        places.read_bytes(place / "nothing")
    with pytest.raises(UserError, match="nothing.npz does not exist; make it by"):
        reference_file.read_reference(place / "nothing.npz")


def test_only_finished_remote_checkpoints_count(place):
    for name in ("3/commit_success.txt", "3/ema/a", "10/commit_success.txt", "12/a"):
        places.write_bytes(place / "checkpoints" / "t2i" / name, b"")
    assert workdir.steps_of(place, "t2i") == [3, 10]
    found = open_weights(place)
    assert (found.kind, found.groups, found.steps) == ("run", ("t2i",), {"t2i": 10})


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "x.npz").mkdir()
    with pytest.raises(OSError, match="x.npz"):
        places.write_bytes(tmp_path / "x.npz", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_remote_pretrained_weights_are_read(place, tmp_path):
    nets = tiny.nets()
    params = tiny.random_params(nets, "clip")
    vocabulary = Vocabulary.train(["a red circle"], 50, 6)
    config = pretrained.make_stored_config(nets, sample={}, caption={}, text_scale=1.0)
    local = tmp_path / "weights"
    pretrained.save(local, config, {"clip": lambda: params}, vocabulary)
    for path in local.iterdir():
        places.write_bytes(place / path.name, path.read_bytes())
    found = open_weights(RUN)
    assert (found.kind, found.groups) == ("pretrained", ("clip",))
    wanted = abstract_group(nets, "clip")
    read = found.read("clip", wanted, nets)
    jax.tree.map(np.testing.assert_array_equal, read, params)
    again = found.vocabulary(6)
    assert again.tokenizer.get_vocab() == vocabulary.tokenizer.get_vocab()
    places.write_bytes(place / "clip.safetensors", b"")
    with pytest.raises(UserError, match=f"{RUN}/clip.safetensors is empty"):
        found.read("clip", wanted, nets)


def test_a_remote_place_without_weights_is_named(place):
    with pytest.raises(UserError, match=f"^{RUN} does not exist"):
        FlowTok.from_pretrained(RUN)


def test_pretrained_weights_are_written_to_this_machine_only(flowtok, store):
    with pytest.raises(UserError, match="local directory.*gcloud storage cp"):
        flowtok.save_pretrained(RUN)
    assert not store.written


def test_a_folder_appears_when_all_of_it_is_written(tmp_path):
    folder = tmp_path / "a" / "b"
    with places.new_directory(folder) as part:
        (part / "x").write_text("whole")
        assert not folder.exists()
    assert [p.name for p in folder.parent.iterdir()] == ["b"]
    assert (folder / "x").read_text() == "whole"
    with (
        pytest.raises(UserError, match="exists already and is not empty"),
        places.new_directory(folder),
    ):
        pytest.fail("a folder with something in it was taken")


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "no room"), KeyboardInterrupt()]
)
def test_of_a_folder_that_fails_nothing_is_left(tmp_path, error):
    wanted = UserError if isinstance(error, OSError) else KeyboardInterrupt

    def fill():
        with places.new_directory(tmp_path / "a" / "b") as part:
            (part / "x").write_text("half")
            raise error

    with pytest.raises(wanted):
        fill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space"),
        OSError(errno.EDQUOT, "Disk quota"),
        OSError("100 requested and 3 written"),  # numpy's
        RuntimeError("write() failed: No space left on device; at byte 0"),
    ],
    ids=["room", "quota", "numpy", "arrayrecord"],
)
def test_a_full_disk_is_said_however_a_library_says_it(tmp_path, error):
    def write():
        with places.new_file(tmp_path / "a") as part:
            part.write_text("half")
            raise error

    with pytest.raises(WriteError) as said:
        write()
    reason = "Disk quota exceeded|No space left on device"
    expected = f"{tmp_path}/a cannot be written \\(({reason})\\); make room, and the"
    assert re.match(expected, str(said.value))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fails_while_a_file_is_written_is_said(tmp_path):
    def write():
        with places.new_file(tmp_path / "a"):
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(PlaceError, match=r"a cannot be written \(Input/output error\)"):
        write()


def test_a_file_of_a_folder_in_the_making_is_named_as_it_would_be(tmp_path):
    def write():
        with (
            places.new_directory(tmp_path / "set") as part,
            places.new_file(part / "data.tar"),
        ):
            raise OSError(errno.ENOSPC, "No space")

    with pytest.raises(WriteError, match=f"^{tmp_path}/set/data.tar cannot be writ"):
        write()


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(errno.ENOENT, "No such file", "x.png"), RuntimeError("a bug")],
)
def test_what_fails_in_reading_is_no_failure_to_write(tmp_path, error):
    with pytest.raises(type(error)) as raised, places.new_file(tmp_path / "a"):
        raise error
    assert raised.value is error


PLACES = {
    "/proc/x/a": " (nothing can be made there); give another place",
    "/dev/null/x/a": ": /dev/null is a file; expected a directory",
    f"{__file__}/x/a": f": {__file__} is a file; expected a directory",
}


@pytest.mark.parametrize(
    "write",
    [
        lambda place: places.write_bytes(place, b""),
        places.check_writable,
        places.check_new_directory,
        lambda place: places.new_directory(place).__enter__(),
    ],
    ids=["bytes", "check", "check_new", "new"],
)
@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_cannot_be_written_is_one_line(place, write):
    with pytest.raises(PlaceError) as said:
        write(pathlib.Path(place))
    assert str(said.value) == f"{place} cannot be written{PLACES[place]}"


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    places.check_writable(tmp_path / "a" / "b" / "c")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x").write_text("there")
    places.check_writable(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "there"


def test_digests_are_those_of_bytes_and_of_values(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    wanted = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert places.file_sha256(tmp_path / "x") == wanted  # FIPS 180-2, appendix B.1
    assert places.json_sha256({"a": 1, "b": 2}) == places.json_sha256({"b": 2, "a": 1})
    assert places.json_sha256([1, 2]) != places.json_sha256([2, 1])
