"""Records of a folder of captioned images."""

import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from flowtok_jax.data import globs
from flowtok_jax.data.captions import EXTENSIONS, MAX_BYTES, CaptionOptions, log_once
from flowtok_jax.data.listing import METADATA, FoundFile, Listing
from flowtok_jax.data.metadata import FILE_NAME, Row, read_rows
from flowtok_jax.data.records import (
    BadRecord,
    Record,
    Records,
    RejectCounter,
    read_object,
)
from flowtok_jax.runtime.errors import UserError

DRIVE = re.compile(r"[A-Za-z]:[\\/]")  # of an absolute path of Windows


class Entry(NamedTuple):
    """Paths and captions of one record, known before its files are read."""

    name: str
    image: pathlib.Path | None = None
    caption: pathlib.Path | None = None
    recaption: pathlib.Path | None = None
    sidecar: pathlib.Path | None = None  # JSON that may hold captions
    captions: Any = None  # a text or several, if no file holds them
    metadata: Mapping[str, Any] = {}
    fault: str = ""  # reason of the BadRecord that reading raises

    @property
    def known_fault(self) -> str:
        """The reason against the record as far as its files need not be read."""
        if self.fault or self.image is None:
            return self.fault or "missing_image"
        texts = (self.caption, self.recaption, self.sidecar, self.captions)
        return "missing_caption" if all(text is None for text in texts) else ""


class Files(Records):
    """Records of a list of entries, in their order.

    Args:
        root: the folder that all files are below.
    """

    def __init__(
        self,
        name: str,
        entries: list[Entry],
        captions: CaptionOptions,
        root: pathlib.Path,
    ):
        self.name = name
        self._root = root
        self._entries = entries
        self._captions = captions

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"Files({self.name!r}, {len(self)} records)"

    def __getitem__(self, index: int) -> Record:
        entry = self._entries[index]
        name = entry.name
        if fault := entry.known_fault:
            raise BadRecord(fault, name)
        recaptions = self._texts(entry.recaption, name)
        metadata = entry.metadata
        if entry.caption:
            captions = self._texts(entry.caption, name)
        elif entry.sidecar:
            metadata = read_object(_read(entry.sidecar, "missing_caption", name), name)
            captions = self._captions.texts(self._captions.pick(metadata), name)
        elif entry.captions is None:  # there is a recaption
            captions = ()
        else:
            captions = self._captions.texts(entry.captions, name)
        record = Record(name, metadata=metadata, key=self._key(entry))
        record = record.with_captions(captions, recaptions)
        # Last, since the image is by far the largest file.
        return record._replace(image=_read(entry.image, "missing_image", name))

    def keys(self) -> Iterable[str]:
        """Returns each image's path below the folder, without its extension."""
        return map(self._key, self._entries)

    def _key(self, entry: Entry) -> str:
        # Without extension, as tars have it. The name of a broken entry will do.
        path = os.path.relpath(entry.image or entry.name, self._root)
        return os.path.splitext(path)[0].replace(os.sep, "/")

    def _texts(self, path: pathlib.Path | None, name: str) -> tuple[str, ...]:
        if path is None:
            return ()
        # One byte more than may be, and no gigabytes.
        data = _read(path, "missing_caption", name, MAX_BYTES + 1)
        return (self._captions.decode(data, name),)


def _read(path: pathlib.Path, missing: str, name: str, most: int = -1) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise BadRecord(missing, name) from error  # ValueError: NUL in a name
    except OSError as error:
        raise BadRecord("unreadable_file", name) from error


def open_folder(
    directory: str,
    captions: CaptionOptions = CaptionOptions(),  # noqa: B008 (immutable)
) -> Files:
    """Lists the images that metadata files below a folder name by `file_name`, and
    those with a text of their name beside them: `a.jpg` + `a.txt` (+ `a.recap_txt`).

    Raises:
        UserError: if the directory does not exist, has no record that can be used, or
            has captions of two kinds.
    """
    source = f"folder:{directory}"
    listing = Listing(source_directory(directory, source), captions)
    entries, named = _rows(listing, captions)
    entries += _pairs(listing, captions, named)
    described = ", ".join(f"{n} {kind}" for kind, n in listing.passed_over.items())
    found = f"; other files there: {described}" if described else ""
    if not entries:
        raise UserError(
            f"source {source} is empty; expected a.jpg with a.txt beside it, or "
            f"{METADATA[0]} with {FILE_NAME} and text{found}"
        )
    _check_usable(source, entries, captions, found)
    if described:
        log_once(f"{source}: {len(entries)} records{found}")
    files = Files(directory, entries, captions, listing.root)
    files.passed_over = dict(listing.passed_over)
    return files


def _check_usable(
    source: str, entries: list[Entry], captions: CaptionOptions, found: str
) -> None:
    """Refuses entries of which none can be used, as far as no file has to be read."""
    faults = [(entry.known_fault, entry.name) for entry in entries]
    if not all(fault for fault, _ in faults):
        return
    counter = RejectCounter(max_fraction=1.0, known=0)
    counter.add(faults, 0)
    endings = " or ".join(f"a.{name}" for name in captions.extensions)
    raise UserError(
        f"source {source} has no record that can be used: {counter.describe()}; "
        f"expected a.jpg with {endings} beside it, or {METADATA[0]} with {FILE_NAME} "
        f"and {captions.keys[0]}{found}"
    )


def source_directory(given: str, source: str) -> pathlib.Path:
    """Returns the path of a local directory that a source string names.

    Raises:
        UserError: if there is none.
    """
    if globs.is_remote(given):
        raise UserError(
            f"source {source}: a folder is read from local files only; pack it as tars"
        )
    root = pathlib.Path(given)
    if root.is_file():
        raise UserError(f"source {source}: {given} is a file; expected its folder")
    if not root.is_dir():
        raise UserError(f"source {source}: {given} is no directory")
    return root


def _rows(
    listing: Listing, captions: CaptionOptions
) -> tuple[list[Entry], set[pathlib.Path]]:
    """Makes an entry of each row of metadata; returns the files that they name, too."""
    entries = []
    rivals: tuple[str, list[str]] | None = None
    folders: set[pathlib.Path] = set()
    for path in listing.metadata:
        if path.parent in folders:
            raise UserError(
                f"{path.parent} has two of {', '.join(METADATA)}; keep one of them"
            )
        folders.add(path.parent)
        for row in read_rows(path, captions):
            entries.append(_listed(listing, path.parent, row, captions))
            keys = captions.rivals(row.values)
            if keys and not rivals:
                rivals = row.place, keys
    if rivals:
        place, keys = rivals
        raise UserError(
            f"{place} has different texts under {' and '.join(keys)}; which one is the "
            f"caption? Name it: data.caption_keys={keys[0]}"
        )
    return entries, {entry.image for entry in entries if entry.image}


def _listed(
    listing: Listing, folder: pathlib.Path, row: Row, captions: CaptionOptions
) -> Entry:
    """Makes the entry of a row of metadata, whose file names are relative to it."""
    if row.fault:
        return Entry(row.place, fault=row.fault)
    name = row.values.get(FILE_NAME)
    if not isinstance(name, str) or not name:
        return Entry(row.place, fault="missing_image")
    path = inner_path(folder, name)
    if path is None:
        return Entry(f"{folder}:{name}", fault="unsafe_name")
    path = listing.find(path)
    if listing.is_picture(path) and path.exists():
        return Entry(str(path), image=path, fault="unsupported_image")
    text = captions.pick(row.values)
    known = (FILE_NAME, *captions.keys)
    rest = {key: value for key, value in row.values.items() if key not in known}
    return Entry(str(path), image=path, captions=text, metadata=rest)


def inner_path(root: pathlib.Path, name: str) -> pathlib.Path | None:
    """Returns the path of a name below a folder; None if it leads out of the folder.

    Names written on Windows have backslashes, unless a file really has them.
    """
    if "\\" in name and not os.path.lexists(root / name):
        name = name.replace("\\", "/")
    inner = pathlib.PurePosixPath(name)
    if ".." in inner.parts or DRIVE.match(name):
        return None
    if not inner.is_absolute():
        return root / inner
    whole = pathlib.Path(os.path.abspath(root))  # the name may be one below it
    path = whole / inner
    return root / path.relative_to(whole) if path.is_relative_to(whole) else None


def _pairs(
    listing: Listing, captions: CaptionOptions, named: set[pathlib.Path]
) -> list[Entry]:
    """Makes an entry of each image or caption that no metadata file speaks for."""
    entries = []
    doubled = []
    folders = {path.parent for path in listing.metadata}
    for key, files in listing.groups.items():
        group = [file for file in files if not named or file.path not in named]
        is_pair = {file.kind for file in group} >= {"image", "caption"}
        is_described = folders and any(p in folders for p in files[0].path.parents)
        # Metadata may name a part of the images; what has a caption of its own counts.
        if len(group) < len(files) or (is_described and not is_pair):
            _pass_over(listing, group + listing.beside.pop(key, []))
            continue
        texts = [file for file in group if file.kind == "caption"]
        if len({file.extension for file in texts}) > 1:
            doubled.append(f"{listing.root}/{key}")
        entries.append(_pair(listing, key, group, captions))
    for files in listing.beside.values():
        _pass_over(listing, files)
    if doubled and captions.extensions == EXTENSIONS:
        both = ", ".join(f".{name}" for name in EXTENSIONS)
        raise UserError(
            f"{len(doubled)} images have captions of several kinds ({both}), "
            f"{doubled[0]} first; which are meant? Name them: "
            f"data.caption_extensions={EXTENSIONS[0]}"
        )
    return entries


def _pass_over(listing: Listing, files: Iterable[FoundFile]) -> None:
    """Counts files that belong to no record."""
    unnamed = "images that no metadata names"
    listing.passed_over.update(
        unnamed if file.kind == "image" else f".{file.extension}" for file in files
    )


def _pair(
    listing: Listing, key: str, files: list[FoundFile], captions: CaptionOptions
) -> Entry:
    """Makes the entry of the files of one name, and counts those that it leaves out."""
    of: dict[str, list[FoundFile]] = {}
    for file in files:
        of.setdefault(file.kind, []).append(file)
    # Of several extensions the one that the options name first.
    texts = of.get("caption", [])
    texts.sort(key=lambda file: captions.extensions.index(file.extension))
    beside = listing.beside.pop(key, [])
    sidecars = [file for file in beside if file.extension == "json"]
    name = f"{listing.root}/{key}"
    fault = ""
    if "image" not in of:
        others = [file for file in beside if file not in sidecars]
        of["picture"] = [*of.get("picture", ()), *others]
        for picture in of["picture"][:1]:
            is_known = picture.kind == "picture"
            fault = "unsupported_image" if is_known else "wrong_extension"
            name += picture.path.suffix
    else:
        of.pop("picture", None)
        of["sidecar"] = [] if of.keys() & {"caption", "recaption"} else sidecars
    roles = {role: found[0] for role, found in of.items() if found}
    members = [file for file in files if file.kind != "picture"]
    unique = {(f.kind, f.kind == "caption" and f.extension) for f in members}
    if len(unique) < len(members):
        fault = "duplicate_member"
        beside += [file for file in files if file.kind == "picture"]
    else:
        beside += files
    _pass_over(listing, [file for file in beside if file not in roles.values()])
    paths = {
        role: file.path
        for role, file in roles.items()
        if role in ("image", "caption", "recaption", "sidecar")
    }
    return Entry(name, fault=fault, **paths)
