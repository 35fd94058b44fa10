"""Errors of several checks as one."""

import pytest

from flowtok_jax.runtime.errors import StoreError, UserError, raise_together


def fails(text, kind=UserError):
    def check():
        raise kind(text)

    return check


def test_checks_that_find_nothing_are_all_called():
    called = []
    checks = {"a": lambda: called.append("a"), "b": lambda: called.append("b")}
    raise_together(checks, "it cannot start")
    assert called == ["a", "b"]


def test_one_error_is_raised_as_it_is():
    checks = {"a": fails("no data", StoreError), "b": lambda: None}
    with pytest.raises(StoreError, match="^no data$"):
        raise_together(checks, "it cannot start")


def test_several_errors_are_listed_with_their_subjects():
    checks = {"data": fails("none"), "devices": fails("too few"), "c": fails("none")}
    with pytest.raises(UserError) as error:
        raise_together(checks, "it cannot start")
    assert str(error.value).splitlines() == [
        "it cannot start; 2 things are wrong:",
        "  data     none",
        "  devices  too few",
    ]


def test_what_all_errors_expect_alike_is_said_once():
    checks = {"clip": fails("a is 1; expected c"), "t2i": fails("b is 2; expected c")}
    with pytest.raises(UserError) as error:
        raise_together(checks, "it cannot start")
    assert str(error.value).splitlines() == [
        "it cannot start; 2 things are wrong:",
        "  clip  a is 1",
        "  t2i   b is 2",
        "  expected c",
    ]
    checks["x"] = fails("c is 3; expected d")
    with pytest.raises(UserError) as error:
        raise_together(checks, "it cannot start")
    assert str(error.value).splitlines()[1:] == [
        "  clip  a is 1; expected c",
        "  t2i   b is 2; expected c",
        "  x     c is 3; expected d",
    ]


@pytest.mark.parametrize("other", [StoreError, UserError])
def test_another_try_helps_only_where_all_that_fails_is_a_store(other):
    checks = {"data": fails("503", StoreError), "weights": fails("none", other)}
    with pytest.raises(UserError) as error:
        raise_together(checks, "it cannot start")
    assert type(error.value) is other


def test_a_bug_is_no_users_mistake():
    with pytest.raises(KeyError):
        raise_together({"a": lambda: {}["x"], "b": fails("none")}, "it cannot start")
