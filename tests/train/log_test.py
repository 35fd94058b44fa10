"""The log of a run: metrics.jsonl, TensorBoard, the terminal, parameters."""

import json
import logging
import struct
import subprocess
import sys

import jax
import numpy as np
from PIL import Image

from flowtok_jax.runtime.errors import StoreError
from flowtok_jax.train import log
from flowtok_jax.train.log import Metrics
from tests import run


def lines(tmp_path):
    text = (tmp_path / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def write(tmp_path, stage, start_step, steps):
    with Metrics(tmp_path, stage, start_step=start_step, writes=True) as metrics:
        for step in steps:
            metrics.scalars(step, {"loss/total": float(step)})


def test_lines_say_stage_step_and_values(tmp_path):
    write(tmp_path, "t2i", 0, [2])
    assert lines(tmp_path) == [{"stage": "t2i", "step": 2, "loss/total": 2.0}]


def test_lines_past_the_step_of_a_resumed_stage_are_dropped_and_others_kept(tmp_path):
    write(tmp_path, "tokenizer", 0, [2, 4, 6])
    write(tmp_path, "t2i", 0, [2, 4, 6])
    write(tmp_path, "t2i", 4, [6, 8])
    found = [(line["stage"], line["step"]) for line in lines(tmp_path)]
    wanted = [("tokenizer", s) for s in (2, 4, 6)] + [("t2i", s) for s in (2, 4, 6, 8)]
    assert found == wanted


def test_a_stage_that_starts_again_drops_all_its_lines(tmp_path):
    write(tmp_path, "t2i", 0, [2, 4])
    write(tmp_path, "t2i", 0, [2])
    assert [line["step"] for line in lines(tmp_path)] == [2]


def test_half_a_line_of_a_killed_run_is_dropped(tmp_path):
    write(tmp_path, "t2i", 0, [2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "t2i", "step": 4, "loss/to')
    write(tmp_path, "t2i", 2, [4])
    assert [line["step"] for line in lines(tmp_path)] == [2, 4]


def test_lines_are_there_before_the_file_is_closed(tmp_path):
    with Metrics(tmp_path, "t2i", start_step=0, writes=True) as metrics:
        metrics.scalars(2, {"loss/total": 1.0})
        assert len(lines(tmp_path)) == 1


def test_pictures_go_to_tensorboard(tmp_path):
    picture = np.zeros((4, 6, 3), np.uint8)
    with Metrics(tmp_path, "t2i", start_step=0, writes=True) as metrics:
        metrics.images(3, {"grid": picture})
    (file,) = (tmp_path / "tb" / "t2i").iterdir()
    assert b"grid" in file.read_bytes()
    assert b"PNG" in file.read_bytes()


def read_events(path):
    """TensorBoard's records: a length, its checksum, as many bytes, their checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data = path.read_bytes()
    events = []
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    return events


def test_a_resumed_stage_hides_the_points_past_its_step(tmp_path):
    write(tmp_path, "t2i", 0, [2, 4, 6])
    write(tmp_path, "t2i", 4, [6])
    first, second = sorted((tmp_path / "tb" / "t2i").iterdir(), key=lambda p: p.suffix)
    points = [(e.step, e.summary.value[0].simple_value) for e in read_events(first)[1:]]
    assert points == [(2, 2.0), (4, 4.0), (6, 6.0)]
    version, start, point = read_events(second)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (4, start.session_log.START)
    assert (point.step, point.summary.value[0].tag) == (6, "loss/total")


def test_points_are_in_the_file_once_it_is_stored(tmp_path):
    with Metrics(tmp_path, "t2i", start_step=0, writes=True) as metrics:
        metrics.scalars(2, {"loss/total": 1.0})
        metrics.store()
        (file,) = (tmp_path / "tb" / "t2i").iterdir()
        assert [event.step for event in read_events(file)] == [0, 2]


def test_a_process_that_does_not_write_touches_nothing(tmp_path):
    with Metrics(tmp_path, "t2i", start_step=0, writes=False) as metrics:
        metrics.scalars(2, {"loss/total": 1.0})
        metrics.images(2, {"grid": np.zeros((4, 6, 3), np.uint8)})
    assert not list(tmp_path.iterdir())


def test_previews_are_png_files_beside_tensorboard_and_are_said_once(tmp_path, caplog):
    grid = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    with (
        caplog.at_level(logging.INFO),
        Metrics(tmp_path, "t2i", start_step=0, writes=True) as metrics,
    ):
        metrics.images(500, {"text_to_image": grid})
        metrics.images(1000, {"text_to_image": grid})
    folder = tmp_path / "previews" / "t2i"
    names = ["step_000500_text_to_image.png", "step_001000_text_to_image.png"]
    assert sorted(p.name for p in folder.iterdir()) == names
    with Image.open(folder / names[0]) as picture:
        assert (np.asarray(picture) == grid).all()
    assert caplog.messages == [f"t2i: previews are in {folder}"]


def test_a_preview_that_a_store_refuses_ends_no_run(tmp_path, caplog, monkeypatch):
    def refuse(*_):
        raise StoreError("503")

    monkeypatch.setattr(log, "save_png", refuse)
    with Metrics(tmp_path, "t2i", start_step=0, writes=True) as metrics:
        metrics.images(2, {"grid": np.zeros((4, 6, 3), np.uint8)})
        metrics.scalars(2, {"loss/total": 1.0})
    assert "503; this preview is in TensorBoard only" in caplog.text
    assert len(lines(tmp_path)) == 1


def test_parameters_are_counted_by_network_and_listed_in_a_file(caplog, tmp_path):
    arrays = {
        "dit": {"fc1": {"kernel": jax.ShapeDtypeStruct((1000, 2000), np.float32)}},
        "align_head": {"tau": jax.ShapeDtypeStruct((50,), np.float32)},
    }
    with caplog.at_level(logging.INFO):
        log.log_parameters(tmp_path, "t2i", arrays)
    assert caplog.messages == ["t2i: 2.0M parameters (dit 2.0M, align_head 0.1k)"]
    table = (tmp_path / "parameters" / "t2i.txt").read_text()
    assert "dit/fc1/kernel" in table
    assert "(1000, 2000)" in table
    assert "2,000,050" in table


FULL = """
import pathlib, resource, sys
from flowtok_jax.train.log import Metrics
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
with Metrics(pathlib.Path(sys.argv[1]), "t2i", start_step=0, writes=True) as metrics:
    for step in range(10_000):
        metrics.scalars(step, {"loss/total": 1.0})
"""


def test_a_disk_that_takes_no_more_ends_the_run_and_does_not_hang_it(tmp_path):
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    ended = subprocess.run(
        command, cwd=run.ROOT, capture_output=True, text=True, timeout=200
    )
    last = ended.stderr.splitlines()[-1]
    assert last.startswith("flowtok_jax.runtime.errors.PlaceError: ")
    assert "metrics.jsonl cannot be written (File too large)" in last
    assert ended.stderr.count("Exception in thread") == 0
