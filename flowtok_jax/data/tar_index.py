"""Index of the members of a tar and their places, kept in a cache directory.

Members are grouped as WebDataset does: `KEY.EXTENSION`, split at the first dot of the
file name, upper and lower case alike in EXTENSION. Two of its rules are not kept:

- the members of a key need not stand side by side, only in the same archive;
- names with further dots: where the part before the first dot has no image of its own
  (`v1.0 photo.png`), or the longer name has image and caption of its own (`a.2.jpg`,
  `a.2.txt` beside `a.jpg`), the key goes up to the extension. `a.mask.png` beside
  `a.jpg` stays a further part of `a`, which nothing here reads.

A key is a name in messages, never a path: nothing is unpacked.
"""

import logging
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from flowtok_jax.data import captions as caption_options
from flowtok_jax.data import globs
from flowtok_jax.data.listing import PICTURES
from flowtok_jax.data.records import REASONS
from flowtok_jax.data.tar_members import Member, Span, read_archives
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

Spans = dict[str, Span]  # by part


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
        UserError: if the file is no tar, cut short or damaged, or nobody said which of
            several captions are meant.
    """
    kinds = dict.fromkeys(PICTURES, "picture") | EXTENSIONS
    kinds |= dict.fromkeys(captions, "caption")
    rows: list[tuple[str, str, Spans]] = []
    doubled: list[str] = []
    for number, members in enumerate(read_archives(file), 1):
        # Shards that were joined may use the same keys for other images.
        end = f" (archive {number})" if number > 1 else ""
        for key, fault, spans in _group(members, kinds):
            present = [name for name in captions if name in spans]
            if present:
                spans["caption"] = spans[present[0]]
            if len(present) > 1:
                doubled.append(key)
            rows.append((key + end, fault, spans))
    if doubled and captions == caption_options.EXTENSIONS:
        both = ", ".join(f".{name}" for name in captions)
        raise UserError(
            f"{file.path}: {len(doubled)} records have captions of several kinds "
            f"({both}), {doubled[0]} first; which are meant? Name them: "
            f"data.caption_extensions={captions[0]}"
        )
    return _to_array(rows)


def _group(
    members: Sequence[Member], kinds: Mapping[str, str]
) -> Iterator[tuple[str, str, Spans]]:
    """Yields key, fault and spans of each record of an archive.

    Spans of captions are by their extensions.
    """
    # Key up to the first dot -> key up to the extension -> parts, and their faults.
    groups: dict[str, dict[str, tuple[Spans, list[str]]]] = {}
    for member in members:
        folder, _, base = member.name.rpartition("/")
        if base.startswith("."):  # hidden files are no data
            continue
        first, stem, extension = _split(base, kinds)
        folder += "/" if folder else ""
        group = groups.setdefault(folder + first, {})
        spans, faults = group.setdefault(folder + stem, ({}, []))
        part = kinds.get(extension, "unknown")
        if part == "caption":
            part = extension
        elif part == "picture":  # named with its format
            part = f".{extension}"
        if member.span is None:
            faults.append(member.fault or "not_a_file")
        elif part != "unknown" and spans.get(part, member.span) != member.span:
            faults.append("duplicate_member")
        spans[part] = member.span or (ABSENT, ABSENT)
    for first, group in groups.items():
        whole, _ = group.get(first, ({}, []))
        for key, (spans, faults) in group.items():
            if key == first or not _has_image(whole) or _is_pair(spans, kinds):
                format_ = "" if _has_image(spans) else _picture(spans)
                yield key + format_, _fault(spans, faults), spans


def _split(base: str, kinds: Mapping[str, str]) -> tuple[str, str, str]:
    """Splits `a.b.jpg` into a, a.b and jpg: up to the first dot, up to the extension,
    and the extension, in lower case; the longest one that is known.
    """
    first, _, rest = base.partition(".")
    stem = first
    while rest.lower() not in kinds and "." in rest:
        more, _, rest = rest.partition(".")
        stem += f".{more}"
    return first, stem, rest.lower()


def _has_image(spans: Spans) -> bool:
    return "image" in spans or "moments" in spans


def _is_pair(spans: Spans, kinds: Mapping[str, str]) -> bool:
    texts = ("recaption" in spans, *(kinds.get(part) == "caption" for part in spans))
    return _has_image(spans) and any(texts)


def _picture(spans: Spans) -> str:
    """Returns the extension of a picture that cannot be decoded, with its dot."""
    return next((part for part in spans if part.startswith(".")), "")


def _fault(spans: Spans, faults: Sequence[str]) -> str:
    if "unsafe_name" in faults:
        return "unsafe_name"
    if faults:
        return faults[0]
    if _has_image(spans):
        return ""
    if _picture(spans):
        return "unsupported_image"
    return "wrong_extension" if "unknown" in spans else "missing_image"


def _to_array(rows: Sequence[tuple[str, str, Spans]]) -> np.ndarray:
    # On one line of a message, whatever a member is called.
    names = (key if key.isprintable() else ascii(key)[1:-1] for key, _, _ in rows)
    keys = [name.encode()[:KEY_BYTES] for name in names]
    width = max(map(len, keys), default=1)
    cells = (len(PARTS),)
    columns = [("key", f"S{width}"), ("fault", "u1")]
    columns += [("offset", "<i8", cells), ("size", "<i8", cells)]
    index = np.zeros(len(keys), columns)
    index["key"] = keys
    for row, (_, fault, spans) in zip(index, rows, strict=True):
        row["fault"] = 1 + REASONS.index(fault) if fault else 0
        absent = (ABSENT, ABSENT)
        row["offset"], row["size"] = zip(
            *(spans.get(part, absent) for part in PARTS), strict=True
        )
    return index
