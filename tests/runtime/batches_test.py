"""Rows through one program, whatever their number."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtok_jax.runtime import batches
from flowtok_jax.runtime.mesh import make_mesh

MESH = {"data": 2, "fsdp": 2, "tensor": 2}


@pytest.mark.parametrize("count", [1, 4, 9])
def test_rows_are_filled_up_and_joined_without_what_fills_them(count):
    calls = []

    def start(rows):
        calls.append(rows.tolist())
        return {"number": jnp.asarray(rows), "square": jnp.asarray(rows) ** 2}

    found = batches.run_rows(start, count, 4)
    assert {len(rows) for rows in calls} == {4}
    np.testing.assert_array_equal(found["number"], np.arange(count))
    np.testing.assert_array_equal(found["square"], np.arange(count) ** 2)


@pytest.mark.parametrize(
    ("count", "size", "lengths"),
    [
        (0, 4, [0]),
        (1, 4, [1]),
        (4, 4, [4]),
        (7, 4, [7]),
        (8, 4, [4, 4]),
        (11, 4, [4, 7]),
    ],
)
def test_slices_join_to_all_rows_and_the_last_is_never_short(count, size, lengths):
    rows = list(range(count))
    slices = list(batches.long_slices(count, size))
    assert [len(rows[s]) for s in slices] == lengths
    assert [row for s in slices for row in rows[s]] == rows


def test_the_next_batch_is_started_before_the_last_is_read():
    events = []

    class Result:
        def __init__(self, number):
            self.number = number

        def __array__(self, *_, **__):
            events.append(f"read {self.number}")
            return np.array(self.number)

    def started():
        for number in range(3):
            events.append(f"start {number}")
            yield number, Result(number)

    assert [number for number, _ in batches.one_ahead(started())] == [0, 1, 2]
    assert events == ["start 0", "start 1", "read 0", "start 2", "read 1", "read 2"]
    assert list(batches.one_ahead(iter(()))) == []


@pytest.mark.parametrize(("count", "parts"), [(8, 4), (4, 4), (6, 1), (1, 1)])
def test_rows_are_split_over_the_mesh_where_they_divide(count, parts):
    mesh = make_mesh(**MESH)
    assert batches.row_parts(mesh) == 4
    found = batches.put_rows(mesh, np.arange(count * 3).reshape(count, 3))
    np.testing.assert_array_equal(found, np.arange(count * 3).reshape(count, 3))
    assert len({str(shard.index) for shard in found.addressable_shards}) == parts


def test_few_programs_serve_every_number_of_rows():
    sizes = [batches.program_rows(count, 64) for count in range(1, 200)]
    assert sorted(set(sizes)) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    for count, size in enumerate(sizes[:64], 1):
        assert count <= size < 1.5 * count
    assert batches.program_rows(50, 50) == batches.program_rows(49, 50) == 50
    assert batches.program_rows(3, 64, parts=8) == 8
    assert batches.program_rows(40, 64, parts=8) == 48
    assert batches.program_rows(300, 65, parts=8) == 72


def test_without_a_mesh_rows_go_to_the_device():
    assert batches.row_parts(None) == 1
    found = batches.put_rows(None, np.arange(3))
    assert found.devices() == {jax.devices()[0]}


def test_a_compiled_program_takes_fewer_rows_and_compiles_once():
    mesh = make_mesh(data=4, fsdp=1, tensor=2)
    traced = []

    def function(params, rows):
        traced.append(rows.shape)
        return rows * params["scale"]

    scale = {"scale": np.float32(3)}
    empty = np.zeros((8, 2), np.float32)
    start = batches.compile_rows(mesh, function, scale, empty)
    for count in (8, 3):
        rows = np.random.default_rng(0).random((count, 2), np.float32)
        found = np.asarray(start(rows))
        assert found.shape == (8, 2)
        np.testing.assert_array_equal(found[:count], rows * np.float32(3))
    assert traced == [(8, 2)]


def test_values_come_in_order_and_no_more_than_asked_for_are_computed_ahead():
    begun = []
    lock = threading.Lock()

    def square(number):
        with lock:
            begun.append(number)
        return number**2

    with ThreadPoolExecutor(3) as pool:
        found = batches.map_ahead(pool, square, range(20), 4)
        assert next(found) == (0, 0)
        assert max(begun) <= 4
        assert list(found) == [(i, i**2) for i in range(1, 20)]
    assert sorted(begun) == list(range(20))


def test_programs_that_were_not_used_for_longest_are_dropped(monkeypatch):
    monkeypatch.setattr(batches, "MOST_PROGRAMS", 2)
    compiled = []

    def scale(params, x, key, rows, *, by):
        compiled.append(by)  # while it is traced
        return params * x * by

    programs = batches.RowPrograms()
    one = np.ones(1, np.float32)

    def run(by):
        key = np.zeros(2, np.uint32)
        return programs.run(scale, jnp.float32(1), [one], key, 0, most=1, by=by)

    for by in (2.0, 3.0, 2.0, 4.0, 2.0, 3.0):
        assert run(by) == [by]
    assert compiled == [2.0, 3.0, 4.0, 3.0]
