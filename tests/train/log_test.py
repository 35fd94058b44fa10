import json

import numpy as np

from flowtok_jax.train.log import Metrics


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


def test_a_process_that_does_not_write_touches_nothing(tmp_path):
    with Metrics(tmp_path, "t2i", start_step=0, writes=False) as metrics:
        metrics.scalars(2, {"loss/total": 1.0})
        metrics.images(2, {"grid": np.zeros((4, 6, 3), np.uint8)})
    assert not list(tmp_path.iterdir())
