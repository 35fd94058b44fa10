import re

import numpy as np
import pytest

from flowtok_jax.eval.evaluate import Chunks, Part, name_of, show_results
from flowtok_jax.runtime.errors import UserError


class Named(Part):
    compute = measure = picture = None  # not asked for

    name, count = "t2i", 24

    def __init__(self, **protocol):
        self.protocol = {"data": "folder:my photos/x", "seed": 0, **protocol}


def test_another_protocol_is_another_name():
    names = [name_of(Named(**x)) for x in ({}, {}, {"seed": 1}, {"sampler": {"a": 1}})]
    assert names[0] == names[1]
    assert len(set(names)) == 3
    assert re.fullmatch("t2i_folder_my_photos_x_n24_[0-9a-f]{8}", names[0])


PROTOCOL = {"seed": 0, "sampler": {"scale": 2.0, "times": (1, 2)}}


def arrays(rows):
    texts = np.array(["x" * i for i in rows])
    return {"pool": np.arange(rows.start, rows.stop)[:, None] * 1.5, "texts": texts}


def test_what_was_written_is_not_missing_and_comes_back_in_order(tmp_path):
    chunks = Chunks(tmp_path / "new", 25, 10)
    assert [len(rows) for rows in chunks.ranges] == [10, 10, 5]
    chunks.claim(PROTOCOL)
    for number in (2, 0):
        chunks.write(number, arrays(chunks.ranges[number]))
    again = Chunks(tmp_path / "new", 25, 10)
    again.claim(PROTOCOL)
    assert again.missing().tolist() == [False, True, False]
    again.write(1, arrays(again.ranges[1]))
    found = again.read_all()
    np.testing.assert_array_equal(found["pool"], arrays(range(25))["pool"])
    assert found["texts"].tolist() == ["x" * i for i in range(25)]


def test_other_chunk_sizes_do_not_mix(tmp_path):
    for size in (10, 20):
        chunks = Chunks(tmp_path, 20, size)
        assert chunks.missing().all()
        chunks.write(0, arrays(chunks.ranges[0]))


def test_a_damaged_chunk_is_named_and_missing(tmp_path, caplog):
    chunks = Chunks(tmp_path, 10, 10)
    chunks.write(0, arrays(range(10)))
    (path,) = tmp_path.glob("*.npz")
    path.write_bytes(path.read_bytes()[:-40])
    assert chunks.missing().tolist() == [True]
    assert f"{path} is damaged" in caplog.text


def test_samples_of_another_protocol_are_refused(tmp_path):
    Chunks(tmp_path, 10, 10).claim(PROTOCOL)
    with pytest.raises(UserError, match="made otherwise: seed is 0 there, 1 here"):
        Chunks(tmp_path, 10, 10).claim({**PROTOCOL, "seed": 1})
    with pytest.raises(UserError, match="solver is absent there, 'heun' here"):
        Chunks(tmp_path, 10, 10).claim({**PROTOCOL, "solver": "heun"})


def test_square_brackets_of_a_reason_and_a_path_are_shown(tmp_path, capsys):
    result = {
        "name": "a",
        "part": "i2t",
        "metrics": {},
        "not_measured": {"bleu1": "pip install 'flowtok_jax[eval]'"},
    }
    show_results([result], tmp_path / "[bold]")
    shown = capsys.readouterr().out
    assert "not measured: bleu1: pip install 'flowtok_jax[eval]'\n" in shown
    assert f"protocol: {tmp_path}/[bold]/a.json\n" in shown
