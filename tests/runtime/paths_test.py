"""Paths as people write them."""

import os
import pathlib
import unicodedata

import pytest

from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import to_place
from flowtok_jax.runtime.paths import expand_path


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home directory and the working directory, empty."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DATA", "/data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("~", "{home}"),
        ("~/out", "{home}/out"),
        ("./~/out", "./~/out"),
        ("a~/b", "a~/b"),
        ("~root/x", "{root}/x"),
        ("file:///x/my%20photos", "/x/my photos"),
        ("file:/x/y", "/x/y"),
        ("file://localhost/x/100%", "/x/100%"),
        ("gs://bucket/~/%20", "gs://bucket/~/%20"),
        ("./C:/x", "./C:/x"),
        ("/data/$UNSET_HERE/x", "/data/$UNSET_HERE/x"),
        ("a$b", "a$b"),
    ],
)
def test_a_path_is_what_a_shell_or_a_browser_meant(home, text, path):
    root = os.path.expanduser("~root")
    expected = path.replace("{home}", str(home)).replace("{root}", root)
    assert expand_path(text) == expected


def test_a_name_that_exists_stays_but_for_home(home):
    for name in ("~odd", "C:", "~", "%20", "$DATA"):
        (home / name).mkdir()
    for name in ("~odd/x", "C:/x", "$DATA/x", f"file://{home}/%20"):
        assert expand_path(name) == name.removeprefix("file://")
    assert expand_path("~/x") == f"{home}/x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("~nobody_here/x", "no such user; .* or ./~nobody_here/x"),
        ("C:\\out", "a path of Windows; .*/mnt/c/"),
        ("c:/out", "a path of Windows; .*/mnt/c/"),
        ("file://server/x", "of another machine; expected file:///PATH"),
        ("$DATA/x", "a variable that the shell left as it is; expected /data/x"),
        ("x/${DATA}", "a variable that the shell left as it is; expected x//data"),
        ("a\0b", "no path: it has a NUL"),
        ("file:///a%00", "no path: it has a NUL"),
        ("\ud83d", "no path: 'utf-8' codec"),
    ],
)
def test_what_is_no_path_of_this_machine_is_refused(home, text, message):
    with pytest.raises(UserError, match=message) as error:
        to_place(text)
    assert "\n" not in str(error.value)


def test_places_are_below_home(home):
    assert to_place("~/runs") == home / "runs"
    assert to_place(pathlib.Path("~/runs")) == home / "runs"
    assert to_place(f"file://{home}/my%20runs") == home / "my runs"


@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD")])
def test_a_folder_is_found_in_either_form_of_its_letters(home, forms):
    there, given = (unicodedata.normalize(form, "tr\u00e4nade") for form in forms)
    (home / there).mkdir()
    assert expand_path(given) == there
    assert expand_path(f"{home}/{given}/*.png") == f"{home}/{there}/*.png"
    (home / given).mkdir()
    assert expand_path(given) == given


def test_a_backslash_before_a_space_is_the_shells_unless_the_name_has_one(home):
    (home / "My Drive").mkdir()
    assert expand_path("My\\ Drive") == "My Drive"
    assert expand_path("new\\ folder") == "new\\ folder"
    (home / "My\\ Drive").mkdir()
    assert expand_path("My\\ Drive") == "My\\ Drive"
