"""metadata.csv and metadata.jsonl with odd names and texts, or damaged."""

import csv
import io
import json
import pathlib
import random

from hypothesis import strategies as st

from flowtok_jax.data.records import BadRecord, Records
from flowtok_jax.data.transforms import Filters, ImageTransform
from tests.fuzz.bounds import check_bad, fresh, odd, open_records, opened, read_all
from tests.fuzz.odd_folders_test import IMAGE, json_values
from tests.fuzz.strategies import ODD, Long, plain_captions, words

texts = st.text(st.sampled_from("ab \"',;\t\n|é\u2028日😀=#-"), max_size=30)
marks = st.binary(min_size=1, max_size=3) | st.sampled_from(
    (
        b'"',
        b"'",
        b",",
        b";",
        b"\t",
        b"\n",
        b"\r",
        b"\x00",
        b"\xff",
        b"\xef\xbb\xbf",
        b"{",
    )
)


def folder_of(root: pathlib.Path, count: int) -> list[str]:
    """Writes images, and returns their names, none a part of another."""
    found = [f"img{number:04d}.png" for number in range(count)]
    for name in found:
        (root / name).write_bytes(IMAGE)
    return found


def table(rows: list[list[str]], **form) -> bytes:
    """A file of CSV."""
    out = io.StringIO(newline="")
    csv.writer(out, **form).writerows(rows)
    return out.getvalue().encode()


forms = st.fixed_dictionaries(
    {
        "delimiter": st.sampled_from(",;\t"),
        "lineterminator": st.sampled_from(("\n", "\r\n")),
        "quoting": st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)),
    }
)


@odd(
    100,
    captions=st.lists(plain_captions | texts, min_size=1, max_size=8),
    form=forms,
    bom=st.booleans(),
    columns=st.sampled_from(
        (["file_name", "text"], ["text", "file_name"], ["file_name", "n", "caption"])
    ),
)
def test_what_a_csv_writer_wrote_comes_back(captions, form, bom, columns):
    with fresh() as root:
        cells = zip(folder_of(root, len(captions)), captions, strict=True)
        rows = [columns]
        for name, caption in cells:
            values = {"file_name": name, "n": "7"}
            rows.append([values.get(column, caption) for column in columns])
        data = table(rows, **form)
        (root / "metadata.csv").write_bytes(b"\xef\xbb\xbf" * bom + data)
        records = opened(open_records, f"folder:{root}")
        if records is None:  # the file may be refused, but not where it is plain
            assert any(set(caption) & set('"\n\r\t;') for caption in captions)
            return
        usable, rejected = read_all(records)
        assert len(usable) + len(rejected) == len(captions)
        wanted = {
            f"{root}/{row[columns.index('file_name')]}": " ".join(caption.split())
            for row, caption in zip(rows[1:], captions, strict=True)
        }
        for record in usable:
            assert " ".join(record.captions[0].split()) == wanted[record.name]


@st.composite
def damaged(draw, data: bytes) -> bytes:
    """The bytes with some put in, taken out, or cut off."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        if draw(st.booleans()):
            data[at:at] = draw(marks)
        else:
            del data[at : at + draw(st.integers(1, 4))]
    return bytes(data)


def check_none_is_hidden(records: Records, files: list[str]) -> None:
    """Checks that no row is a part of another's caption, and each image is named."""
    usable, rejected = read_all(records)
    for record in usable:
        assert not any(name in text for text in record.captions for name in files)
    return usable, rejected


@odd(150, captions=st.lists(plain_captions, min_size=1, max_size=6), change=st.data())
def test_no_row_of_a_damaged_csv_hides_in_anothers_caption(captions, change):
    with fresh() as root:
        files = folder_of(root, len(captions))
        rows = zip(files, captions, strict=True)
        data = table([["file_name", "text"], *map(list, rows)])
        data = change.draw(damaged(data))
        (root / "metadata.csv").write_bytes(data)
        records = opened(open_records, f"folder:{root}")
        if records is not None:
            check_none_is_hidden(records, files)


def test_a_cell_without_end_is_refused_or_counted():
    text = "a fox in the snow, and more of it " * 3
    rows = [f"img{i:04d}.png,{'' if i else chr(34)}{text}\n" for i in range(2000)]
    with fresh() as root:
        folder_of(root, 2)
        (root / "metadata.csv").write_text("file_name,text\n" + "".join(rows))
        records = opened(open_records, f"folder:{root}")
        if records is not None:
            assert len(records) >= len(rows)


def count_lines(data: bytes) -> int:
    """Counts the lines that are not blank, whatever they end in."""
    lines = data.replace(b"\r", b"\n").split(b"\n")
    return sum(1 for line in lines if line.strip(b"\x00\t\x0b\x0c "))


json_rows = st.fixed_dictionaries(
    {},
    optional={
        "file_name": st.text(st.sampled_from("ab/\\.\x00\ud800" + ODD), max_size=20)
        | st.just("img0000.png")
        | json_values,
        "text": words | st.lists(words) | json_values,
        "caption": words | json_values,
        "original_width": json_values,
        "original_height": st.just(10**400) | json_values,
    },
)
json_lines = st.one_of(
    json_rows.map(lambda row: json.dumps(row).encode()),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=40),
    st.sampled_from(
        (
            Long(b"[" * 100_000),
            Long(b'{"text":' * 5000),
            Long(b"9" * 5000),
            b"NaN",
            b"{}",
            b"\xef\xbb\xbf",
        )
    ),
)


@odd(150, lines=st.lists(json_lines, max_size=8), bom=st.booleans())
def test_every_line_of_json_is_a_record_or_rejected(lines, bom):
    transform = ImageTransform(8, filters=Filters(aspect=(0.1, 10)))
    with fresh() as root:
        folder_of(root, 1)
        data = b"\n".join([*lines, b'{"file_name": "img0000.png", "text": "a fox"}'])
        (root / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" * bom + data)
        records = opened(open_records, f"folder:{root}")
        if records is None:  # which of two keys is the caption?
            assert any(b"text" in line and b"caption" in line for line in lines)
            return
        count = 1 + count_lines(b"\n".join(lines))
        assert count - 1 <= len(records) <= count  # a line that is a mark alone
        usable, _ = read_all(records)
        assert ("a fox",) in [record.captions for record in usable]
        for record in usable:
            check_transform(transform, record)


def check_transform(transform: ImageTransform, record) -> None:
    """Checks that metadata of any form pass the filters, or are named."""
    try:
        example = transform(record, random.Random(0))
    except BadRecord as bad:
        check_bad(bad)
    else:
        assert example["image"].shape == (8, 8, 3)


@odd(100, captions=st.lists(words, min_size=1, max_size=6), change=st.data())
def test_no_row_of_damaged_json_lines_is_lost(captions, change):
    with fresh() as root:
        files = folder_of(root, len(captions))
        lines = [
            json.dumps({"file_name": name, "text": text}).encode()
            for name, text in zip(files, captions, strict=True)
        ]
        data = change.draw(damaged(b"\n".join(lines)))
        whole = json.dumps({"file_name": files[0], "text": "a fox"}).encode()
        data += b"\n" + whole
        (root / "metadata.jsonl").write_bytes(data)
        records = opened(open_records, f"folder:{root}")
        if records is None:  # by its first bytes no UTF-8
            assert data[:2] in (b"\xff\xfe", b"\xfe\xff")
            return
        left = count_lines(data)
        assert left - 1 <= len(records) <= left
        usable, _ = read_all(records)
        assert usable[-1].captions == ("a fox",)
