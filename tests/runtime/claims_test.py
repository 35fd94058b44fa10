"""Folders that a marker makes the folder of one maker."""

import pytest

from flowtok_jax.runtime.claims import check_claim, claim
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import read_json
from flowtok_jax.runtime.lock import locked


def test_a_claimed_folder_is_refused_to_another_naming_what_differs(tmp_path):
    marker, mine = tmp_path / "set" / "made.json", {"a": {"b": (1, 2)}, "c": 1}
    claim(marker, mine, cure="move it")
    claim(marker, mine, cure="move it")
    other = {"a": {"b": (1, 3)}, "d": 2}
    message = (
        r"set was made otherwise: a.b is \[1, 2\] there, \[1, 3\] here; c is 1 there, "
        "absent here; d is absent there, 2 here; move it"
    )
    with pytest.raises(UserError, match=message):
        claim(marker, other, cure="move it")
    with pytest.raises(UserError, match="b.* and 1 more; move it"):
        claim(marker, dict.fromkeys("wxy", 0), cure="move it")
    check_claim(marker, {**mine, "c": 2}, cure="", is_free="c".__eq__)


def test_a_folder_of_something_else_is_claimed_only_where_that_may_be(tmp_path):
    (tmp_path / "notes").touch()
    with pytest.raises(UserError, match="exists already and has no made.json; move"):
        claim(tmp_path / "made.json", {}, cure="move it", must_be_new=True)
    claim(tmp_path / "made.json", {}, cure="move it")
    assert read_json(tmp_path / "made.json") == {}


def test_a_folder_that_is_locked_only_may_be_claimed(tmp_path):
    marker = tmp_path / "out" / "made.json"
    with locked(marker.parent):
        claim(marker, {}, cure="move it", must_be_new=True)
    assert [path.name for path in marker.parent.iterdir()] == ["made.json"]
