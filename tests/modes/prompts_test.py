"""Prompts of a command line: taken as they were meant, or refused in one line."""

import io
import logging
import types

import pytest

from flowtok_jax.data.records import printable
from flowtok_jax.modes import prompts
from flowtok_jax.modes.prompts import collect_prompts, split_prompts
from flowtok_jax.runtime.errors import UserError


@pytest.fixture
def read(tmp_path):
    """Reads the prompts of a file with this content."""

    def run(content: bytes, name="prompts.txt"):
        (tmp_path / name).write_bytes(content)
        return collect_prompts([], None, str(tmp_path / name))

    return run


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (" a b;; c ;", ["a b", "c"]),
        ("cats &amp; dogs; a cow", ["cats &amp; dogs", "a cow"]),
        ("a cow;salt &amp; pepper", ["a cow", "salt &amp; pepper"]),
        ("a bird&#39;s nest;&#x27;b&#X27;", ["a bird&#39;s nest", "&#x27;b&#X27;"]),
        ("&quot;a&quot;;b", ["&quot;a&quot;", "b"]),
        ("a &amp;amp; b;c", ["a &amp;amp; b", "c"]),
        ("a &amp;lt; b;c", ["a &amp;lt; b", "c"]),
        ("a&amp;", ["a&amp;"]),
        ("R&D; a dog", ["R&D", "a dog"]),
        ("a & b; c", ["a & b", "c"]),
        ("tom &jerry; a cow", ["tom &jerry", "a cow"]),
        ("a;\n  b;\n", ["a", "b"]),
        ("a\u2028b;\u200b;\ufeff", ["a\u2028b"]),
        ("\U0001fae9;\ue000", ["\U0001fae9", "\ue000"]),  # newer than Python 3.11
        (" ; ", []),
    ],
)
def test_prompts_are_split_at_semicolons_but_not_inside_entities(text, found):
    assert split_prompts(text) == found


def test_a_line_break_inside_a_prompt_could_mean_two_things():
    with pytest.raises(UserError, match="a line break inside 'a.*by ';', or give --pr"):
        collect_prompts([], "a\nb; c", None)


def test_prompts_given_one_by_one_are_taken_as_they_stand():
    given = ["a; b", " a &amp; b", "# a", "猫", "a\nb"]
    assert collect_prompts(given, None, None) == given


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_a_blank_prompt_of_a_flag_is_refused(blank):
    with pytest.raises(UserError, match="^--prompt is blank; expected"):
        collect_prompts(["a", blank], None, None)


@pytest.mark.parametrize("text", [None, "", " ; ", "\u200b;"])
def test_no_prompts_are_refused(text):
    with pytest.raises(UserError, match="no prompts.*--prompts=.*--prompt=.*_file="):
        collect_prompts([], text, None)


def test_only_one_of_the_flags_may_be_given():
    for given in ((["a"], "b", None), (["a"], None, "b"), ([], "a", "b")):
        with pytest.raises(UserError, match="^--prompt.* and .* give one of them$"):
            collect_prompts(*given)


def test_bytes_of_a_terminal_that_are_no_text_are_refused():
    with pytest.raises(UserError, match=r"^prompts\[0\] is 'caf\\udce9'.*UTF-8$"):
        collect_prompts(["caf\udce9"], None, None)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-8"])
def test_a_byte_order_mark_says_the_encoding_and_is_no_text(read, encoding):
    assert read("a dög\r\n猫\n".encode(encoding)) == ["a dög", "猫"]


def test_marks_inside_joined_files_are_dropped(read):
    one = "a\n".encode("utf-8-sig")
    assert read(one + "# b\nc".encode("utf-8-sig") + b"\n" + one) == ["a", "c", "a"]


def test_a_prompt_is_a_line_and_other_separators_are_part_of_it(read):
    for character in "\u2028\u2029\x0b\x0c\x85\x1c;":
        assert read(f"a{character}b\r\nc".encode()) == [f"a{character}b", "c"]


def test_blank_lines_are_skipped_and_comments_are_counted(read, caplog):
    with caplog.at_level(logging.INFO):
        found = read("# list\n\n a \n \u200b \n\u3000\n #b\nc # d\n".encode())
    assert found == ["a", "c # d"]
    (message,) = caplog.messages
    assert message.endswith("lines skipped as comments, since they begin with #: 2")


def test_options_of_other_programs_inside_a_line_are_not_taken_silently(read, caplog):
    found = read(b"a cat --n bad --w 768\n--prompt dog\na well--known cow -- eats")
    assert len(found) == 3
    (message,) = caplog.messages
    assert "options, such as --n, that are taken as words of the caption: 2" in message


def test_without_comments_nothing_is_said(read, caplog):
    with caplog.at_level(logging.INFO):
        assert read(b"a\nb") == ["a", "b"]
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\nSchwarzw\xe4lder\n", "line 2 is no UTF-8 .*saved as UTF-8$"),
        ("a\nb".encode("utf-16-le"), "zero bytes, as in UTF-16 without a byte-order"),
        (b"\xff\xfea", "line 1 is no UTF-16 "),
        (b"\x89PNG\r\n\x1a\n\0", "line 1 is no UTF-8"),
        (b"a\rb\rc", "line 1 has a carriage return inside"),
        (b"a\nb\rc\n", "line 2 has a carriage return inside"),
        (b"", "^no prompts"),
        (b"\n# a\n", "^no prompts"),
        ("\ufeff\u200b".encode(), "^no prompts"),
    ],
)
def test_a_file_that_is_no_list_of_prompts_is_refused(read, content, message):
    with pytest.raises(UserError, match=message) as error:
        read(content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ending", prompts.TABLES)
def test_a_table_is_not_drawn_line_by_line(read, ending):
    with pytest.raises(UserError, match="not by columns or keys.*such as .txt"):
        read(b"caption\na dog\n", f"prompts{ending}")


@pytest.mark.parametrize("name", ["nowhere.txt", "./", "a\nb", "x" * 999])
def test_a_file_that_cannot_be_read_is_named_once(name):
    with pytest.raises(UserError, match="cannot be read .*; expected a text") as error:
        collect_prompts([], None, name)
    assert str(error.value).count(printable(name)) == 1
    assert "Errno" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_dash_reads_the_standard_input(monkeypatch):
    stdin = types.SimpleNamespace(buffer=io.BytesIO("a\r\n猫; b\n".encode()))
    monkeypatch.setattr("sys.stdin", stdin)
    assert collect_prompts([], None, "-") == ["a", "猫; b"]
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UserError, match="standard input is closed"):
        collect_prompts([], None, "-")
