"""Records of a folder of captioned images, and of a folder with Karpathy's JSON."""

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
    """Paths and captions of one record, known before its files are read."""

    name: str
    image: pathlib.Path | None = None
    caption: pathlib.Path | None = None
    recaption: pathlib.Path | None = None
    captions: Any = None  # if no file holds them
    metadata: Mapping[str, Any] = {}
    fault: str = ""  # reason of the BadRecord that reading raises


class Files(Records):
    """Records of a list of entries, in their order."""

    def __init__(self, name: str, entries: list[Entry]):
        self.name = name
        self._entries = entries

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
        else:  # raises for None
            captions = caption_list(entry.captions, name)
        record = Record(name, metadata=entry.metadata)
        record = record.with_captions(captions, recaptions)
        # Last, since the image is by far the largest file.
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


def open_folder(directory: str) -> Files:
    """Lists `a.jpg` + `a.txt` (+ `a.recap_txt`) at any depth; or, if the folder has a
    metadata.jsonl or metadata.csv, its images by `file_name`, with their `text`.

    Raises:
        UserError: if the directory does not exist or is empty.
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
            f"source folder:{directory} is empty; expected a.jpg with a.txt beside "
            f"it, or {METADATA[0]} with file_name and text"
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
    """Groups the files below a folder by their path up to the last dot."""
    fields: dict[str, dict[str, Any]] = {}
    kinds = dict.fromkeys(images.EXTENSIONS, "image")
    kinds |= {"txt": "caption", "recap_txt": "recaption"}
    for folder, folders, names in os.walk(root):
        # In place: os.walk goes on with what this list then holds, in its order.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
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
    """Makes the entry of a row of metadata."""
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
    # Bytes, so that a line of another encoding spoils no other line.
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
    # Bytes that are no UTF-8 become surrogates, which do not encode again below.
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.DictReader(file)
        columns = rows.fieldnames or []
        if "file_name" not in columns or not set(TEXT_COLUMNS) & set(columns):
            raise UserError(
                f"{path} has the columns {', '.join(columns) or 'none'}; expected "
                "file_name and text"
            )
        for row in rows:
            where = f"{path}:{rows.line_num}"
            try:
                "".join(value for value in row.values() if value).encode()
            except (UnicodeEncodeError, TypeError):
                # Cells beyond the columns stand in a list under None.
                reason = "bad_json" if None in row else "bad_text_encoding"
                yield Entry(where, fault=reason)
            else:
                yield _listed(root, row, where)


def open_karpathy(arguments: str) -> Files:
    """Lists JSON:IMAGEDIR:SPLIT: Karpathy's dataset_coco.json and a folder of images;
    several splits are joined by `+`, as in train+restval.

    Raises:
        UserError: if a file or folder is missing, or the JSON lacks the split.
    """
    source = f"karpathy:{arguments}"
    parts = globs.split_karpathy(arguments)
    if len(parts) != 3:
        raise UserError(f"source {source}; expected karpathy:JSON:IMAGEDIR:SPLIT")
    root = _directory(parts[1], source)
    rows = read_karpathy(parts[0], parts[2])
    return Files(source, [_sentences(root, row) for row in rows])


def read_karpathy(json_file: str, split: str) -> list[Mapping[str, Any]]:
    """Reads the rows of a split from a file of Karpathy's; see `karpathy_rows`."""
    path = pathlib.Path(json_file)
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not Karpathy's JSON ({error})") from error
    return karpathy_rows(content, str(path), split)


def karpathy_rows(content: Any, name: str, split: str) -> list[Mapping[str, Any]]:
    """Returns the rows of the images of a split, or of several joined by `+`.

    Args:
        content: value of Karpathy's JSON.
        name: file name, for messages.

    Raises:
        UserError: if the content has another form, or lacks the split.
    """
    try:
        rows = content["images"]
        splits = {row["split"] for row in rows}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{name} is not Karpathy's JSON ({error}); expected dataset_coco.json or a "
            "file of the same form"
        ) from error
    asked = set(split.split("+"))
    if not asked <= splits:
        raise UserError(
            f"{name} has no split {', '.join(sorted(asked - splits))}; it has "
            f"{', '.join(sorted(splits))}"
        )
    return [row for row in rows if row["split"] in asked]


def _sentences(root: pathlib.Path, row: Mapping[str, Any]) -> Entry:
    inner = pathlib.PurePosixPath(row.get("filepath", ""), row.get("filename", ""))
    if inner.is_absolute() or ".." in inner.parts:
        return Entry(f"{root}:{inner}", fault="unsafe_name")
    path = root / inner
    if not path.is_file():  # some people keep all images in one folder
        path = root / inner.name
    texts = [sentence.get("raw") for sentence in row.get("sentences", ())]
    rest = {key: row[key] for key in ("cocoid", "imgid", "split") if key in row}
    return Entry(str(path), image=path, captions=texts, metadata=rest)
