"""Index of the members of a tar and their places, kept in a cache directory.

Members are grouped as WebDataset does: `KEY.EXTENSION`, split at the first dot of the
file name. A key is a name in messages, never a path: nothing is unpacked.
"""

import logging
import os
import pathlib
import tarfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from flowtok_jax.data import captions as caption_options
from flowtok_jax.data import globs
from flowtok_jax.data.listing import PICTURES
from flowtok_jax.data.records import REASONS
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import json_sha256, new_file

PARTS = ("image", "moments", "caption", "recaption", "metadata")
# For images the extensions that the release reads; the content need not match.
EXTENSIONS = {
    **dict.fromkeys(("jpg", "jpeg", "png", "webp"), "image"),
    "token.npy": "moments",
    "recap_txt": "recaption",
    "json": "metadata",
}
KEY_BYTES = 200  # bytes of a key that the index keeps
ABSENT = -1  # offset and size of a part that a record lacks
THREADS = 8  # threads that read or make indices
VERSION = 2  # of the form of an index; another one makes all anew

Spans = dict[str, tuple[int, int]]  # part -> offset and size in bytes


def default_cache() -> pathlib.Path:
    """Returns the user's cache directory for indices."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(home) / "flowtok_jax" / "tars"


def read_indices(
    found: Sequence[globs.File],
    cache: str | None,
    captions: tuple[str, ...] = caption_options.EXTENSIONS,
) -> list[np.ndarray]:
    """Reads the index of each tar from the cache; a missing one is made and kept.

    An index is a structured array, one row per key: `key`, `fault` (1 + its place in
    REASONS, 0: none), and `offset` and `size` of each of PARTS.

    Args:
        captions: extensions of captions, the first one wins.

    Raises:
        UserError: for a tar that is missing, cut short or damaged.
    """
    folder = pathlib.Path(cache) if cache else default_cache()
    places = [folder / f"{_digest(file, captions)}.npy" for file in found]
    new = sum(not place.is_file() for place in places)
    if new:
        logging.info("indexing %d of %d tars; kept in %s", new, len(found), folder)
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(_read_index, found, places, [captions] * len(found)))


def _digest(file: globs.File, captions: tuple[str, ...]) -> str:
    return json_sha256([VERSION, PARTS, REASONS, captions, *file])[:40]


def _read_index(
    file: globs.File, place: pathlib.Path, captions: tuple[str, ...]
) -> np.ndarray:
    try:
        # Mapped: the indices of a large set need not fit into memory.
        return np.load(place, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):  # a missing or damaged index
        index = make_index(file, captions)
    try:
        with new_file(place) as part, part.open("wb") as out:
            np.save(out, index, allow_pickle=False)
    except OSError as error:
        logging.warning("the index of %s is not kept: %s", file.path, error)
    return index


def make_index(
    file: globs.File, captions: tuple[str, ...] = caption_options.EXTENSIONS
) -> np.ndarray:
    """Makes the index of a tar from the headers of its members.

    Raises:
        UserError: if the file is no tar, cut short or damaged.
    """
    groups: dict[str, Spans] = {}
    faults: dict[str, str] = {}
    kinds = {name: f".{name}" for name in PICTURES} | EXTENSIONS
    kinds |= {name: f"caption.{rank}" for rank, name in enumerate(captions)}
    try:
        with (
            globs.open_file(file.path) as stream,
            tarfile.open(fileobj=stream, mode="r:") as tar,
        ):
            for member in tar:
                _add_member(member, groups, faults, kinds)
            stream.seek(tar.offset)  # of the block after the last member
            end = stream.read(tarfile.BLOCKSIZE)
    except FileNotFoundError as error:
        raise UserError(f"{file.path} does not exist") from error
    except (tarfile.TarError, EOFError) as error:
        raise UserError(
            f"{file.path} is no whole tar ({file.size} bytes; {error}); fetch it again "
            "(compressed tars must be unpacked: they have no random access)"
        ) from error
    # At a block that is no header tarfile stops in silence, as at the end mark.
    if end != bytes(tarfile.BLOCKSIZE):
        raise UserError(
            f"{file.path} is cut short or damaged: no end mark after its last readable "
            f"member, at byte {tar.offset} of {file.size}; fetch it again"
        )
    _choose_captions(file.path, groups, captions)
    return _to_array(groups, faults)


def _add_member(
    member: tarfile.TarInfo,
    groups: dict[str, Spans],
    faults: dict[str, str],
    kinds: Mapping[str, str],
) -> None:
    folder, _, base = member.name.rpartition("/")
    if member.isdir() or base.startswith("."):  # hidden files are no data
        return
    stem, _, extension = base.partition(".")
    key = f"{folder}/{stem}" if folder else stem
    spans = groups.setdefault(key, {})
    part = kinds.get(extension.lower())
    if member.name.startswith("/") or ".." in member.name.split("/"):
        faults[key] = "unsafe_name"
    elif not member.isreg():
        faults.setdefault(key, "not_a_file")
    elif part in spans:
        faults.setdefault(key, "duplicate_member")
    elif part:
        spans[part] = (member.offset_data, member.size)
    else:  # tells a wrong extension from a missing image
        spans["unknown"] = (member.offset_data, member.size)


def _choose_captions(
    path: str, groups: dict[str, Spans], captions: tuple[str, ...]
) -> None:
    """Keeps of each group's captions the one whose extension comes first.

    Raises:
        UserError: if some have several, and nobody chose an extension.
    """
    doubled = []
    for key, spans in groups.items():
        ranks = [rank for rank in range(len(captions)) if f"caption.{rank}" in spans]
        if len(ranks) > 1:
            doubled.append(key)
        for rank in reversed(ranks):  # the first one last, over the others
            spans["caption"] = spans.pop(f"caption.{rank}")
    if doubled and captions == caption_options.EXTENSIONS:
        both = ", ".join(f".{name}" for name in captions)
        raise UserError(
            f"{path}: {len(doubled)} records have captions of several kinds ({both}), "
            f"{doubled[0]} first; which are meant? Name them: "
            f"data.caption_extensions={captions[0]}"
        )


def _to_array(groups: dict[str, Spans], faults: dict[str, str]) -> np.ndarray:
    # A picture that cannot be decoded is named with its format.
    pictures = [next((p for p in s if p[0] == "."), "") for s in groups.values()]
    keys = [
        (key + picture).encode(errors="surrogateescape")[:KEY_BYTES]
        for key, picture in zip(groups, pictures, strict=True)
    ]
    width = max(map(len, keys), default=1)
    cells = (len(PARTS),)
    columns = [("key", f"S{width}"), ("fault", "u1")]
    columns += [("offset", "<i8", cells), ("size", "<i8", cells)]
    index = np.zeros(len(keys), columns)
    index["key"] = keys
    cells_of = zip(index, groups.items(), pictures, strict=True)
    for row, (key, spans), picture in cells_of:
        fault = faults.get(key)
        if not fault and not ("image" in spans or "moments" in spans):
            fault = "wrong_extension" if "unknown" in spans else "missing_image"
            fault = "unsupported_image" if picture else fault
        row["fault"] = 1 + REASONS.index(fault) if fault else 0
        absent = (ABSENT, ABSENT)
        row["offset"], row["size"] = zip(
            *(spans.get(part, absent) for part in PARTS), strict=True
        )
    return index
