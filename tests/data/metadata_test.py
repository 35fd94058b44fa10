import csv
import logging
import os
import tracemalloc

import pytest

from flowtok_jax.data import metadata
from flowtok_jax.data.captions import CaptionOptions
from flowtok_jax.data.metadata import read_rows
from flowtok_jax.runtime.errors import UserError

HEAD = b"file_name,text\n"


@pytest.fixture
def rows(tmp_path):
    """Rows of a file of these bytes: values, or the reason, by line."""

    def read(data: bytes, name: str = "metadata.csv", **options) -> dict:
        path = tmp_path / name
        path.write_bytes(data)
        found = read_rows(path, CaptionOptions(**options))
        return {
            int(row.place.rpartition(":")[2]): row.fault or tuple(row.values.values())
            for row in found
        }

    return read


def test_an_open_quote_takes_no_other_row_along(rows, caplog):
    found = rows(HEAD + b'a.jpg,"a red fox\nb.jpg,a dog\nc d.png,"a cat"\n')
    assert found == {2: "bad_row", 3: ("b.jpg", "a dog"), 4: ("c d.png", "a cat")}
    (said,) = (record.getMessage() for record in caplog.records)
    assert "rows that cannot be read: 1, the first at line 2 (a quote that is n" in said


def test_an_open_quote_of_a_long_file_is_found(rows):
    lines = [f"{i}.jpg,picture {i}\n" for i in range(9000)]  # over csv's field limit
    lines[3] = '3.jpg,"picture 3\n'
    lines[5] = '5.jpg,picture"5\n'
    lines[-1] = '8999.jpg,"picture\n'
    found = rows(HEAD + "".join(lines).encode())
    assert len(found) == 9000
    assert {line for line, row in found.items() if row == "bad_row"} == {5, 9001}
    assert found[7] == ("5.jpg", 'picture"5')


def test_text_behind_a_closing_quote_is_no_row(rows):
    found = rows(HEAD + b'a.jpg,"12" ruler"\nb.jpg,12" ruler\nc.jpg,"a ""red"" fox"\n')
    assert found == {
        2: "bad_row",
        3: ("b.jpg", '12" ruler'),
        4: ("c.jpg", 'a "red" fox'),
    }


def test_quoted_captions_may_have_lines(rows, caplog):
    with caplog.at_level(logging.INFO):
        found = rows(HEAD + b'a.jpg,"a fox\r\nin snow\r\n"\r\nb.jpg,a dog\r\n')
    assert found == {2: ("a.jpg", "a fox\r\nin snow\r\n"), 5: ("b.jpg", "a dog")}
    assert "2 rows on 4 lines" in caplog.text


def test_quoted_captions_may_have_lines_before_the_name_of_their_image(rows):
    head = b"text,file_name\n"
    found = rows(head + b'"a fox\nin, snow",a.jpg\na dog,b.jpg\n')
    assert found == {2: ("a fox\nin, snow", "a.jpg"), 4: ("a dog", "b.jpg")}
    found = rows(head + b'"a fox, red,a.jpg\na dog",b.jpg\n"a cat",c.jpg\n')
    assert found[2] == "bad_row"
    assert found[4] == ("a cat", "c.jpg")


def test_commas_of_prose_need_no_quotes(rows):
    found = rows(
        HEAD + b"a.jpg,a red, furry fox, asleep\nb.jpg,a dog,0.25\nc.jpg,x,,\n"
    )
    assert found == {
        2: ("a.jpg", "a red, furry fox, asleep"),
        3: "bad_row",
        4: ("c.jpg", "x"),
    }
    found = rows(b"file_name,text,score\na.jpg,a red, furry fox,1\n")
    assert found == {2: "bad_row"}


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_as_spreadsheets_write_it(rows, mark, encoding, end):
    lines = [
        mark.join(cells) for cells in (["File_Name ", " text", ""], ["a.jpg", "é"])
    ]
    lines += [
        mark * 2,
        f"b.jpg{mark}x;y,z" if mark == "\t" else f'b.jpg{mark} "x{mark}"',
    ]
    found = rows(end.join([*lines, ""]).encode(encoding))
    assert found[2] == ("a.jpg", "é")
    assert found[4] == ("b.jpg", "x;y,z" if mark == "\t" else f"x{mark}")
    assert len(found) == 2


def test_excel_may_name_the_delimiter(rows):
    assert rows(b"sep=|\r\nfile_name|text\r\na.jpg|x,y\r\n") == {3: ("a.jpg", "x,y")}


def test_rows_of_another_encoding_spoil_no_other(rows):
    found = rows(HEAD + b"a.jpg,caf\xe9\nb.jpg,x\0y\n")
    assert found == {2: "bad_text_encoding", 3: ("b.jpg", "xy")}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "has the columns none; expected file_name and one of caption, text, p"),
        (b"a.jpg,a fox\n", "has the columns a.jpg, a fox; expected"),
        (b"file_name,tags\n", "has the columns file_name, tags; expected"),
        (b"file_name,text,Text\n", "has two columns text"),
        ((HEAD + b"a.jpg,x").decode().encode("utf-16")[:-1], "is no whole utf-16 text"),
    ],
)
def test_csv_that_cannot_be(rows, data, said):
    with pytest.raises(UserError, match=said):
        rows(data)


def test_columns_may_be_named(rows):
    found = rows(b"file_name,Tags\na.jpg,x\n", keys=("tags",))
    assert found == {2: ("a.jpg", "x")}


def test_json_lines_are_named_by_their_line(rows):
    lines = [
        b'{"file_name": "a.jpg", "text": "x"}',
        b'{"file_name": "b.jpg", "text": "caf\xe9"}',
        b"",
        b"[" * 100_000,
        b'{"a": 1',
        '{"file_name": "c.jpg", "text": "a\u2028b"}'.encode(),
    ]
    found = rows(b"\xef\xbb\xbf" + b"\r\n".join(lines), "metadata.jsonl")
    assert found == {
        1: ("a.jpg", "x"),
        2: "bad_text_encoding",
        4: "bad_json",
        5: "bad_json",
        6: ("c.jpg", "a\u2028b"),
    }
    wide = '{"file_name": "a.jpg", "text": "é"}\n'.encode("utf-16")
    assert rows(wide, "metadata.jsonl") == {1: ("a.jpg", "é")}


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_line_without_end_takes_little_memory(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(HEAD if name.endswith("csv") else b"{}\n")
    size = 1 << 28
    os.truncate(path, size)  # a hole: NULs, which take no disk
    with path.open("ab") as file:
        file.write(b"\nb.jpg,x\n")
    tracemalloc.start()
    try:
        found = list(read_rows(path, CaptionOptions()))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found[-2].fault in ("bad_row", "bad_json")
    assert peak < 8 * metadata.MAX_LINE < size


def test_a_long_cell_is_no_caption(rows):
    size = csv.field_size_limit()
    cell = b'"' + b"x" * (metadata.MAX_CELL + 1) + b'"'
    inner = b'"' + b"x" * 200_000 + b'"'  # more than csv takes by itself
    found = rows(HEAD + b"a.jpg," + cell + b"\nb.jpg," + inner + b"\n")
    assert found[2] == "bad_row"
    assert len(found[3][1]) == 200_000
    assert csv.field_size_limit() >= size


def test_parquet_is_read_as_other_metadata_are(tmp_path, rows):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    table = pyarrow.table({"file_name": ["a.jpg", "b.jpg"], "text": ["x", None]})
    parquet.write_table(table, path)
    found = rows(path.read_bytes(), "metadata.parquet")
    assert found == {1: ("a.jpg", "x"), 2: ("b.jpg", None)}
    with pytest.raises(UserError, match="metadata.parquet is no whole Parquet file"):
        rows(path.read_bytes()[:-9], "metadata.parquet")
    holed = bytearray(path.read_bytes())
    holed[4:40] = bytes(36)
    with pytest.raises(UserError, match=r"metadata.parquet (is no|cannot be read: \w)"):
        rows(bytes(holed), "metadata.parquet")
