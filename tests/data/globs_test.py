"""Which files a glob names: an existing name goes before syntax."""

import itertools
import pathlib
import unicodedata

import pytest

from flowtok_jax.data import globs
from flowtok_jax.runtime.errors import UserError


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes empty files below the working directory, which is empty at first."""
    monkeypatch.chdir(tmp_path)

    def touch(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    return touch


def found(pattern):
    here = pathlib.Path.cwd()
    files = globs.find_files(pattern, "s")
    return [str(pathlib.Path(file.path).relative_to(here)) for file in files]


def test_number_ranges_count_up():
    numbers = [f"a{i:02d}.tar" for i in range(8, 12)]
    assert list(globs.expand("a{08..11}.tar")) == numbers
    assert list(globs.expand("a{11..08}.tar")) == numbers
    assert list(globs.expand("{0..1}/{1..2}")) == ["0/1", "0/2", "1/1", "1/2"]
    assert list(globs.expand("plain")) == ["plain"]


def test_alternatives_stand_for_each_of_them():
    assert list(globs.expand("{cats,dogs}-{0..1}.tar")) == [
        "cats-0.tar",
        "cats-1.tar",
        "dogs-0.tar",
        "dogs-1.tar",
    ]
    assert set(globs.expand("{a,b{1..2}}")) == {"a", "b1", "b2"}
    for name in ("{one}", "{}", "a{", "}", "{1..}", "{a..b}"):
        assert list(globs.expand(name)) == [name]


def test_a_range_of_more_numbers_than_memory_ends_at_the_first_that_is_missing(make):
    make("0.tar", "1.tar")
    names = globs.expand("{0..999999999999}.tar")
    assert list(itertools.islice(names, 2)) == ["0.tar", "1.tar"]
    with pytest.raises(UserError, match=r"2\.tar does not exist"):
        globs.find_files("{0..999999999999}.tar", "s")
    with pytest.raises(UserError, match=r"^2\.tar matches no file; {0..9{12}}"):
        globs.find_paths("{0..999999999999}.tar")
    with pytest.raises(UserError, match=r"matches no file"):
        globs.find_files("[1]{0..999999999999}*.tar", "s")


@pytest.mark.parametrize(
    "folder",
    [
        "[2024] x",
        "a{0..3}",
        "{a,b}",
        "what?",
        "a*",
        "[",
        "]",
        "a[b",
        "x::y",
        "a\\b",
        "(1)+",
    ],
)
def test_a_folder_is_itself_whatever_characters_it_has(make, folder):
    make(f"{folder}/a.tar", f"{folder}/b[1].tar", "other/c.tar")
    names = [f"{folder}/a.tar", f"{folder}/b[1].tar"]
    assert found(f"{folder}/*.tar") == names
    assert found(f"./{folder}/b[1].tar") == names[1:]
    assert globs.find_paths("*/b[1].tar") == names[1:]
    assert found(f'"{folder}"/*.tar') == names
    assert found(f"'{folder}/b[1].tar'") == names[1:]


def test_brackets_are_a_pattern_where_no_such_name_exists(make):
    make("x1.tar", "x2.tar", "x3.tar")
    assert found("x[12].tar") == ["x1.tar", "x2.tar"]
    assert found("x[!12].tar") == ["x3.tar"]
    with pytest.raises(UserError, match=r"s: x\[12\]\.tar matches no file"):
        globs.find_files('"x[12].tar"', "s")


def test_a_name_that_is_a_pattern_of_others_too_is_refused(make):
    make("*.tar", "a.tar")  # as `touch *.tar` makes it in an empty folder
    with pytest.raises(
        UserError, match=r"^\*\.tar exists, and \*\.tar is a pattern of a"
    ):
        globs.find_files("*.tar", "s")
    assert found('"*.tar"') == ["*.tar"]


def test_hidden_files_and_folders_are_left_out_unless_asked_for(make):
    make("a.tar", "._a.tar", ".x/b.tar", "y/c.tar", "y/._c.tar")
    assert found("*.tar") == ["a.tar"]
    assert found("**/*.tar") == ["a.tar", "y/c.tar"]
    assert found(".*.tar") == ["._a.tar"]
    assert found("._a.tar") == ["._a.tar"]


def test_a_file_that_several_parts_name_comes_once(make):
    make("a1.tar", "a2.tar")
    assert found("{a2,a*,a1}.tar") == ["a2.tar", "a1.tar"]


def test_each_alternative_must_exist(make):
    make("a.tar")
    with pytest.raises(UserError, match=r"source s: b\.tar does not exist"):
        globs.find_files("{a,b}.tar", "s")
    with pytest.raises(UserError, match=r"source s: b\*\.tar matches no file"):
        globs.find_files("{a,b}*.tar", "s")


def test_a_link_that_leads_nowhere_is_named(make, tmp_path):
    make("a.tar")
    (tmp_path / "b.tar").symlink_to("gone.tar")
    with pytest.raises(UserError, match=r"b\.tar does not exist"):
        globs.find_files("*.tar", "s")


def test_a_directory_is_refused_with_the_files_in_it(make):
    make("x/a.arrayrecord", "y/a.txt")
    with pytest.raises(UserError, match=r"is a directory; .*'x/\*\.arrayrecord'$"):
        globs.find_files("x/", "s")
    with pytest.raises(UserError, match=r"is a directory; .*'y/\*\.tar'$"):
        globs.find_files("y", "s")


@pytest.mark.parametrize("name", ["a" * 5000, "x/" * 3000, "a.tar/b.tar", "a.tar/*"])
def test_paths_that_the_system_refuses_are_named(make, name):
    make("a.tar")
    with pytest.raises(UserError, match="^source s: a.*|^source s: x.*"):
        globs.find_files(name, "s")


def test_home_and_urls_are_replaced(make, tmp_path, monkeypatch):
    make("my photos [1]/a.tar")
    monkeypatch.setenv("HOME", str(tmp_path))
    names = ["my photos [1]/a.tar"]
    assert found("~/my photos [1]/*.tar") == names
    assert found('"~/my photos [1]"/*.tar') == names
    assert found(f"file://{tmp_path}/my%20photos%20%5B1%5D/*.tar") == names


def test_karpathys_paths_may_have_colons(make, tmp_path, monkeypatch):
    make("C:/coco.json", "D:/images/x", "a:b.json")
    monkeypatch.setenv("HOME", str(tmp_path))
    split = globs.split_karpathy
    assert split("C:/coco.json:D:/images:test") == ["C:/coco.json", "D:/images", "test"]
    home = [f"{tmp_path}/a:b.json", f"{tmp_path}/D:/images", "val"]
    assert split("~/a:b.json:~/D:/images:val") == home
    url = f"file://{tmp_path}/a:b.json:file://{tmp_path}/D:/images:val"
    assert split(url) == home
    assert split("\"no:where\":'no:images':val") == ["no:where", "no:images", "val"]
    assert split("a:b:c:d") == ["a", "b", "c", "d"]
    assert split("a:b") == ["a", "b"]


def test_brackets_may_be_part_of_a_name_with_a_wildcard(make):
    make("[2024] a.tar", "[2024] b.tar", "x[1]/y.tar")
    assert found("[2024]*.tar") == ["[2024] a.tar", "[2024] b.tar"]
    assert found("[2024] {b,a}.tar") == ["[2024] b.tar", "[2024] a.tar"]
    assert found("x[1]*/*.tar") == ["x[1]/y.tar"]
    make("2 c.tar")
    with pytest.raises(UserError, match=r"\[2024\] a\.tar exists, .* of 2 c\.tar too"):
        globs.find_files("[2024] *.tar", "s")
    assert found('"[2024] "*.tar') == ["[2024] a.tar", "[2024] b.tar"]


def test_a_bad_pattern_of_a_store_is_refused():
    with pytest.raises(
        UserError, match=r"memory://b/\*\*\.tar is no pattern: .*'\*\*'"
    ):
        globs.find_files("memory://b/**.tar", "s")


@pytest.mark.parametrize("forms", [("NFD", "NFC"), ("NFC", "NFD")])
def test_letters_with_marks_are_found_in_either_form(make, forms):
    there, given = (unicodedata.normalize(form, "tr\u00e4nade") for form in forms)
    make(f"{there}/a.tar")
    assert found(f"{given}/*.tar") == [f"{there}/a.tar"]


def test_a_space_may_have_the_shells_backslash(make):
    make("My Drive/a.tar", "b\\ c/b.tar")
    assert found("My\\ Drive/*.tar") == ["My Drive/a.tar"]
    assert found("b\\ c/*.tar") == ["b\\ c/b.tar"]
