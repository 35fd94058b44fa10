"""Captioned images in a folder, and in a folder with Karpathy's JSON beside it."""

import csv
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from flowtok_jax.data import globs, images
from flowtok_jax.data.records import (
    BadRecord,
    Record,
    Records,
    caption_list,
    decode_text,
)
from flowtok_jax.runtime.errors import UserError

METADATA = ("metadata.jsonl", "metadata.csv")
TEXT_COLUMNS = ("text", "caption")


class Entry(NamedTuple):
    """What is known of a record before its files are read."""

    name: str
    image: pathlib.Path | None = None
    caption: pathlib.Path | None = None
    recaption: pathlib.Path | None = None
    captions: Any = None  # where no file holds them
    metadata: Mapping[str, Any] = {}
    fault: str = ""


class Files(Records):
    """Records of entries, in their order."""

    def __init__(self, name: str, entries: list[Entry]):
        self.name, self._entries = name, entries

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Files({self.name!r}, {len(self)} records)"

    def __getitem__(self, index: int) -> Record:
        entry = self._entries[index]
        name = entry.name
        if entry.fault:
            raise BadRecord(entry.fault, name)
        if entry.image is None:
            raise BadRecord("missing_image", name)
        recaptions = _texts(entry.recaption, name)
        if entry.caption:
            captions = _texts(entry.caption, name)
        elif entry.captions is None and recaptions:
            captions = ()
        else:
            captions = caption_list(entry.captions, name)
        record = Record(name, metadata=entry.metadata)
        record = record.with_captions(captions, recaptions)
        return record._replace(image=_read(entry.image, "missing_image", name))


def _texts(path: pathlib.Path | None, name: str) -> tuple[str, ...]:
    if path is None:
        return ()
    return (decode_text(_read(path, "missing_caption", name), name),)


def _read(path: pathlib.Path, missing: str, name: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BadRecord(missing, name) from error
    except OSError as error:
        raise BadRecord("unreadable_file", name) from error


def make_folder(directory: str) -> Files:
    """`a.jpg` + `a.txt` (+ `a.recap_txt`) at any depth; or the images that
    metadata.jsonl or metadata.csv lists by `file_name`, with their `text`.

    Raises:
        UserError: where there is no such directory, or nothing in it.
    """
    root = _directory(directory, f"folder:{directory}")
    listed = next((root / name for name in METADATA if (root / name).is_file()), None)
    if listed is None:
        entries = _pairs(root)
    elif listed.suffix == ".csv":
        entries = list(_csv_entries(root, listed))
    else:
        entries = list(_json_entries(root, listed))
    if not entries:
        raise UserError(
            f"source folder:{directory} is empty; wanted a.jpg with a.txt beside it, "
            f"or {METADATA[0]} with file_name and text"
        )
    return Files(directory, entries)


def _directory(given: str, source: str) -> pathlib.Path:
    if globs.is_remote(given):
        raise UserError(
            f"source {source}: a folder is read from local files only; pack it as tars"
        )
    root = pathlib.Path(given)
    if not root.is_dir():
        raise UserError(f"source {source}: {given} is no directory")
    return root


def _pairs(root: pathlib.Path) -> list[Entry]:
    """Entries by what stands before the last dot of the files' names."""
    fields: dict[str, dict[str, Any]] = {}
    kinds = dict.fromkeys(images.EXTENSIONS, "image")
    kinds |= {"txt": "caption", "recap_txt": "recaption"}
    for folder, folders, names in os.walk(root):
        folders.sort()
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in sorted(names):
            stem, _, extension = name.rpartition(".")
            kind = kinds.get(extension.lower())
            if not kind or not stem or name.startswith("."):
                continue
            path = pathlib.Path(folder, name)
            key = pathlib.Path(folder, stem).relative_to(root).as_posix()
            found = fields.setdefault(key, {"name": f"{root}/{key}"})
            if kind in found:
                found["fault"] = "duplicate_member"
            found[kind] = path
    return [Entry(**found) for found in fields.values()]


def _listed(root: pathlib.Path, row: Mapping[str, Any], line: str) -> Entry:
    """The entry of a row of metadata."""
    name = row.get("file_name")
    if not isinstance(name, str) or not name:
        return Entry(line, fault="missing_image")
    inner = pathlib.PurePosixPath(name)
    if inner.is_absolute() or ".." in inner.parts:
        return Entry(f"{root}:{name}", fault="unsafe_name")
    path = root / inner
    text = next((row[column] for column in TEXT_COLUMNS if row.get(column)), None)
    if text is None and any(column in row for column in TEXT_COLUMNS):
        return Entry(str(path), fault="empty_caption")
    rest = {k: v for k, v in row.items() if k not in ("file_name", *TEXT_COLUMNS)}
    return Entry(str(path), image=path, captions=text, metadata=rest)


def _json_entries(root: pathlib.Path, path: pathlib.Path) -> Iterator[Entry]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except UnicodeDecodeError:
                yield Entry(where, fault="bad_text_encoding")
                continue
            except ValueError:
                row = None
            if isinstance(row, dict):
                yield _listed(root, row, where)
            else:
                yield Entry(where, fault="bad_json")


def _csv_entries(root: pathlib.Path, path: pathlib.Path) -> Iterator[Entry]:
    # Bytes that are no UTF-8 pass as surrogates, and are told from them below.
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.DictReader(file)
        columns = rows.fieldnames or []
        if "file_name" not in columns or not set(TEXT_COLUMNS) & set(columns):
            raise UserError(
                f"{path} has the columns {', '.join(columns) or 'none'}; wanted "
                "file_name and text"
            )
        for row in rows:
            where = f"{path}:{rows.line_num}"
            try:
                "".join(value for value in row.values() if value).encode()
            except (UnicodeEncodeError, TypeError):  # a list: more cells than columns
                reason = "bad_json" if None in row else "bad_text_encoding"
                yield Entry(where, fault=reason)
                continue
            yield _listed(root, row, where)


def make_karpathy(arguments: str) -> Files:
    """JSON:IMAGEDIR:SPLIT: Karpathy's dataset_coco.json and the folder of the images;
    several splits are joined by `+`, as in train+restval.

    Raises:
        UserError: for what is missing, and a split that the JSON does not have.
    """
    source = f"karpathy:{arguments}"
    parts = arguments.split(":")
    if len(parts) != 3:
        raise UserError(f"source {source}; wanted karpathy:JSON:IMAGEDIR:SPLIT")
    root = _directory(parts[1], source)
    rows = read_karpathy(parts[0], parts[2])
    return Files(source, [_sentences(root, row) for row in rows])


def read_karpathy(json_file: str, split: str) -> list[Mapping[str, Any]]:
    """Rows of the images of a split of Karpathy's JSON; see `karpathy_rows`."""
    path = pathlib.Path(json_file)
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not Karpathy's JSON ({error})") from error
    return karpathy_rows(content, str(path), split)


def karpathy_rows(content: Any, name: str, split: str) -> list[Mapping[str, Any]]:
    """Rows of the images of a split, or of several joined by `+`.

    Args:
        content: of Karpathy's JSON.
        name: of the file, for messages.

    Raises:
        UserError: where it is something else, or lacks the split.
    """
    try:
        rows = content["images"]
        splits = {row["split"] for row in rows}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{name} is not Karpathy's JSON ({error}); wanted dataset_coco.json or one "
            "of the same form"
        ) from error
    wanted = set(split.split("+"))
    if not wanted <= splits:
        raise UserError(
            f"{name} has no split {', '.join(sorted(wanted - splits))}; it has "
            f"{', '.join(sorted(splits))}"
        )
    return [row for row in rows if row["split"] in wanted]


def _sentences(root: pathlib.Path, row: Mapping[str, Any]) -> Entry:
    inner = pathlib.PurePosixPath(row.get("filepath", ""), row.get("filename", ""))
    if inner.is_absolute() or ".." in inner.parts:
        return Entry(f"{root}:{inner}", fault="unsafe_name")
    path = root / inner
    if not path.is_file():  # some keep all images in one folder
        path = root / inner.name
    texts = [sentence.get("raw") for sentence in row.get("sentences", ())]
    rest = {key: row[key] for key in ("cocoid", "imgid", "split") if key in row}
    return Entry(str(path), image=path, captions=texts, metadata=rest)
