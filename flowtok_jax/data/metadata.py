"""Rows of metadata files: JSON lines, CSV as people and Excel write it, Parquet.

A row that cannot be read is named by its line and spoils no other row. Only so much of
a file is in memory as one row takes.
"""

import collections
import csv
import json
import logging
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from flowtok_jax.data import images
from flowtok_jax.data.captions import CaptionOptions, find_encoding
from flowtok_jax.data.listing import PICTURES
from flowtok_jax.runtime.errors import UserError

FILE_NAME = "file_name"
DELIMITERS = (",", ";", "\t")
MAX_LINE = 1 << 24  # characters; what is longer is no row
MAX_CELL = 1 << 20  # characters
MAX_LINES = 256  # of one row of CSV, whose quoted cells may have several
SEPARATOR_LINE = re.compile(r"sep=(.)\s*", re.IGNORECASE)  # Excel's first line
IMAGE_NAME = re.compile(rf".+\.({'|'.join([*images.EXTENSIONS, *PICTURES])})", re.I)


class Row(NamedTuple):
    """A row with its place, FILE:LINE; one that cannot be read has a `fault` instead
    of values.
    """

    place: str
    values: Mapping[str, Any] = {}
    fault: str = ""


def read_rows(path: pathlib.Path, captions: CaptionOptions) -> Iterator[Row]:
    """Reads a metadata file by its extension: .jsonl, .csv or .parquet.

    Raises:
        UserError: if no row of the file can be read, or CSV lacks the columns.
    """
    try:
        suffix = path.suffix.lower()
        if suffix == ".parquet":
            yield from _parquet_rows(path)
        elif suffix == ".csv":
            yield from _CsvFile(path, captions).rows()
        else:
            yield from _json_rows(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _lines(path: pathlib.Path) -> Iterator[str]:
    """Yields lines with their ends; one that is too long is empty instead."""
    with path.open("rb") as file:
        encoding = find_encoding(file.read(4))
    # Bytes that are no UTF-8 become surrogates, which do not encode again, so that a
    # line of another encoding spoils no other line.
    errors = "surrogateescape" if encoding == "utf-8-sig" else "strict"
    with path.open(newline="", encoding=encoding, errors=errors) as file:
        try:
            while line := file.readline(MAX_LINE):
                is_whole = True
                while len(line) == MAX_LINE and line[-1] not in "\r\n":
                    is_whole = False
                    line = file.readline(MAX_LINE)
                yield line.replace("\0", "") if is_whole else ""
        except UnicodeError as error:
            raise UserError(f"{path} is no whole {encoding} text ({error})") from error


def _is_text(line: str) -> bool:
    """Returns whether all bytes of a line were of the file's encoding."""
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True


def _json_rows(path: pathlib.Path) -> Iterator[Row]:
    for number, line in enumerate(_lines(path), 1):
        place = f"{path}:{number}"
        if line.isspace():
            continue
        if not _is_text(line):
            yield Row(place, fault="bad_text_encoding")
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):  # the latter of brackets in brackets
            values = None
        if isinstance(values, dict):
            yield Row(place, values)
        else:
            yield Row(place, fault="bad_json")


def _parquet_rows(path: pathlib.Path) -> Iterator[Row]:
    try:
        import pyarrow  # slow to import, and needed only here
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            f"{path} needs pyarrow, which is not installed; install it, or write the "
            "rows as metadata.jsonl"
        ) from error
    try:
        number = 0
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}:{number}", values)
    except pyarrow.ArrowException as error:
        said = str(error).splitlines()[0]
        raise UserError(f"{path} is no whole Parquet file ({said})") from error


class _CsvFile:
    """A CSV file whose first line names its columns."""

    def __init__(self, path: pathlib.Path, captions: CaptionOptions):
        self._path = path
        self._source = _lines(path)
        self._ahead: collections.deque[str] = collections.deque()
        self._number = 0  # of the last line taken
        self._keys = {name.lower(): name for name in (FILE_NAME, *captions.keys)}
        self._delimiter = ","
        self._columns = self._read_header(captions)
        self._place = self._columns.index(FILE_NAME)
        self._text_is_last = self._columns[-1] in captions.keys
        # A limit of the whole process, which others may have raised further.
        csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))

    def _peek(self, index: int) -> str | None:
        """Returns a line that was not taken yet; None after the last one."""
        while len(self._ahead) <= index:
            line = next(self._source, None)
            if line is None:
                return None
            self._ahead.append(line)
        return self._ahead[index]

    def _take(self, count: int) -> None:
        for _ in range(count):
            self._ahead.popleft()
        self._number += count

    def _read_header(self, captions: CaptionOptions) -> list[str]:
        """Takes the lines up to the columns' names, and finds the delimiter by these.

        Raises:
            UserError: if they lack file_name or a caption.
        """
        delimiters = DELIMITERS
        while (line := self._peek(0)) is not None:
            self._take(1)
            if found := SEPARATOR_LINE.fullmatch(line):
                delimiters = (found[1],)
            elif line.strip():
                break
        options = {mark: self._names(line or "", mark) for mark in delimiters}
        self._delimiter = max(
            options, key=lambda mark: (FILE_NAME in options[mark], len(options[mark]))
        )
        columns = options[self._delimiter]
        wanted = [name for name in columns if name in self._keys.values()]
        if FILE_NAME not in wanted or len(wanted) < 2:
            raise UserError(
                f"{self._path} has the columns {', '.join(columns) or 'none'}; "
                f"expected {FILE_NAME} and one of {', '.join(captions.keys)}"
            )
        if twice := {name for name in wanted if wanted.count(name) > 1}:
            raise UserError(f"{self._path} has two columns {', '.join(sorted(twice))}")
        return columns

    def _names(self, line: str, delimiter: str) -> list[str]:
        """Returns the columns' names in a header, ours spelt as we do."""
        names = [cell.strip() for cell in _split(line, delimiter)]
        while names and not names[-1]:  # columns that Excel left empty
            names.pop()
        return [self._keys.get(name.lower(), name) for name in names]

    def rows(self) -> Iterator[Row]:
        """Yields all rows; each line belongs to one of them."""
        bad = []
        good = 0
        start = self._number
        while (line := self._peek(0)) is not None:
            place = f"{self._path}:{self._number + 1}"
            cells = self._read_cells()
            if cells is None:
                bad.append(place)
                fault = "bad_row" if _is_text(line) else "bad_text_encoding"
                yield Row(place, fault=fault)
            elif not _is_text("".join(cells)):
                yield Row(place, fault="bad_text_encoding")
            elif cells:
                good += 1
                yield Row(place, dict(zip(self._columns, cells, strict=False)))
        lines = self._number - start
        if not bad and lines > good:
            logging.info("%s: %d rows on %d lines", self._path, good, lines)
        if bad:
            logging.warning(
                "%s: rows that cannot be read: %d, the first at line %s (a quote that "
                "is not closed, or more cells than columns)",
                self._path,
                len(bad),
                bad[0].rpartition(":")[2],
            )

    def _read_cells(self) -> list[str] | None:
        """Takes the lines of a row; of one that is wrong its first line alone."""
        reader = csv.reader(
            self._row_lines(),
            delimiter=self._delimiter,
            strict=True,  # raises for text behind a closing quote
            skipinitialspace=True,
        )
        line = self._peek(0)
        try:
            cells = next(reader)
        except csv.Error:
            cells = None
        self._take(1 if cells is None else reader.line_num)
        if not cells:  # None, or [] of an empty line, unless it was too long
            return cells if line else None
        if not any(cell.strip() for cell in cells):
            return []
        while len(cells) > len(self._columns) and not cells[-1].strip():
            cells.pop()  # columns that Excel left empty
        if len(cells) > len(self._columns):
            return self._join(line)
        return cells

    def _row_lines(self) -> Iterator[str]:
        """Yields lines for as long as one row may go on, in a quoted cell."""
        has_image = False
        for index in range(MAX_LINES):
            line = self._peek(index)
            if line is None:
                return
            if index == 1:
                has_image = self._names_image(self._peek(0))
            # A second name of an image is another row's: a quote was never closed.
            if index and self._names_image(line):
                if has_image:
                    return
                has_image = True
            yield line

    def _names_image(self, line: str) -> bool:
        """Says whether a line has an image's name where rows have it, quotes or not."""
        count = len(self._columns)
        cells = line.rstrip("\r\n").split(self._delimiter)
        # Of a caption with commas the cells behind it still count from the end.
        found = [
            row[self._place] for row in (cells, cells[-count:]) if len(row) >= count
        ]
        found += _split(line, self._delimiter)[self._place :][:1]
        return any(IMAGE_NAME.fullmatch(name.strip(' "')) for name in found)

    def _join(self, line: str) -> list[str] | None:
        """Joins the cells of a text in the last column that has commas but no quotes.

        In prose a space follows a comma, unlike between columns of numbers.
        """
        most = len(self._columns) - 1
        cells = line.rstrip("\r\n").split(self._delimiter, most)
        rest = cells[-1].split(self._delimiter)[1:]
        if not self._text_is_last or '"' in line:
            return None
        if self._delimiter == "\t" or not all(text.startswith(" ") for text in rest):
            return None
        return cells


def _split(line: str, delimiter: str) -> list[str]:
    """Splits one line into cells, whatever is wrong with its quotes."""
    try:
        reader = csv.reader([line], delimiter=delimiter, skipinitialspace=True)
        return next(reader, [])
    except csv.Error:
        return []
