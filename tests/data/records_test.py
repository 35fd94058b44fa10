import pickle

import pytest

from flowtok_jax.data.records import BadRecord, RejectCounter
from flowtok_jax.runtime.errors import UserError


def test_rejects_are_counted_once_with_their_first_names():
    counter = RejectCounter(max_fraction=1.0, first=2)
    for name in "abcaab":
        counter.add([("empty_file", name)], 10)
    counter.add([("too_large", "a"), ("filtered_size", "d")], 10)
    assert counter.summary() == {
        "rejected": {"empty_file": 3, "filtered_size": 1, "too_large": 1},
        "first": {
            "empty_file": ["a", "b"],
            "too_large": ["a"],
            "filtered_size": ["d"],
        },
    }
    assert counter.read == 78


def test_what_cannot_be_remembered_is_counted_each_time():
    counter = RejectCounter(max_fraction=1.0, known=1)
    for name in "abab":
        counter.add([("empty_file", name)], 0)
    assert counter.counts["empty_file"] == 3


def test_a_run_stops_over_the_fraction_and_says_so():
    counter = RejectCounter(max_fraction=0.1, patience=100)
    counter.add([("empty_file", f"x{i}") for i in range(9)], 81)
    with pytest.raises(UserError, match=r"11 of 101 records.*empty_file 11, first x0"):
        counter.add([("empty_file", "y"), ("empty_file", "z")], 9)


def test_a_run_goes_on_at_the_fraction():
    counter = RejectCounter(max_fraction=0.1, patience=100)
    counter.add([("empty_file", f"x{i}") for i in range(20)], 180)
    assert counter.broken == 20


def test_few_records_do_not_stop_a_run():
    counter = RejectCounter(max_fraction=0.1, patience=100)
    counter.add([("empty_file", "x")] * 50, 49)
    assert counter.broken == 50


def test_what_is_not_wanted_is_not_broken():
    counter = RejectCounter(max_fraction=0.1, patience=10)
    counter.add([("filtered_size", f"x{i}") for i in range(90)], 10)
    assert counter.counts["filtered_size"] == 90


def test_names_off_a_disk_are_printed_on_one_line():
    name = "été 日本\nerror: \x1b[2J\udce9.jpg"
    bad = BadRecord("empty_file", name)
    assert bad.name == r"été 日本\nerror: \x1b[2J\udce9.jpg"
    assert pickle.loads(pickle.dumps(bad)).name == bad.name
