"""Files that a glob names, here or on any file system of fsspec (gs://, s3://, ...).

Local files go straight to the operating system, by `pread`; others by range requests.

A glob has `*`, `?`, `[...]`, `**` for any folders, number ranges `{000..127}` and
alternatives `{cats,dogs}`. A name that exists as it is written is that name, whatever
characters it has; a part in quotes at the start of a glob is taken as it is written.
"""

import glob
import itertools
import os
import pathlib
import re
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import fsspec

from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import is_remote
from flowtok_jax.runtime.paths import expand_path

QUOTED = re.compile(r""""[^"]*"|'[^']*'""")
FIELD = re.compile(rf"(?:{QUOTED.pattern}|[^:])+")  # between colons
# The innermost ones, unless `escape` made them.
BRACES = re.compile(r"(?<!\[)\{(?:(\d{1,18})\.\.(\d{1,18})|([^{}]*,[^{}]*))\}")
WILDCARDS = re.compile(r"[*?\[]")
SPECIAL = re.compile(r"[*?\[{]")
LOOKED_UP = 1000  # names of a range that tell what a person means by a part of a path


Range = tuple[int, int]  # first byte, and how many


class File(NamedTuple):
    """A file with its size in bytes, and a text that changes when the file does."""

    path: str
    size: int
    version: str


def unquote(text: str) -> str:
    """Returns a path without the quotes around its beginning, or all of it."""
    found = QUOTED.match(text)
    return found[0][1:-1] + text[found.end() :] if found else text


def split_karpathy(arguments: str) -> list[str]:
    """Splits JSON:IMAGEDIR:SPLIT, where a path may have a colon: C:/coco, file://, or
    one in its name. Existing paths decide; a part in quotes is taken as it is written.
    """
    pieces = FIELD.findall(arguments)
    for cut in range(1, len(pieces) - 1):
        names = ":".join(pieces[:cut]), ":".join(pieces[cut:-1])
        file, folder = (expand_path(unquote(name)) for name in names)
        if os.path.isfile(file) and os.path.isdir(folder):
            return [file, folder, pieces[-1]]
    paths = [expand_path(unquote(piece)) for piece in pieces[:-1]]
    return [*paths, *pieces[-1:]] if len(pieces) == 3 else pieces


def is_found(pattern: str) -> bool:
    """Says whether a glob of this machine finds anything."""
    first = next(expand(resolve_glob(pattern)))
    return not is_remote(first) and any(glob.iglob(first, recursive=True))


def escape(name: str) -> str:
    """Returns the glob that names exactly this path."""
    return SPECIAL.sub(r"[\g<0>]", name)


def _plain(pattern: str) -> str:
    """Inverts `escape`, for messages."""
    return re.sub(r"\[([*?\[{])\]", r"\1", pattern)


def expand(pattern: str) -> Iterator[str]:
    """Yields what number ranges and alternatives in braces stand for: `{000..127}`
    counts up, keeping its width.
    """
    found = BRACES.search(pattern)
    if not found:
        yield pattern
        return
    first, last, names = found.groups()
    if names is None:
        low, high = sorted((first, last), key=int)
        # One by one: a mistyped range may have more numbers than memory.
        choices = (f"{i:0{len(low)}d}" for i in range(int(low), int(high) + 1))
    else:
        choices = iter(names.split(","))
    for choice in choices:
        yield from expand(pattern[: found.start()] + choice + pattern[found.end() :])


def resolve_glob(pattern: str) -> str:
    """Returns the glob that a person's text means, for `expand` and `glob.glob`.

    `~` and file:// are replaced; names in quotes, and names that exist as they are
    written, become those names alone.

    Raises:
        UserError: if a name exists, and is a pattern of other names that exist too.
    """
    if found := QUOTED.match(pattern):
        pattern = escape(found[0][1:-1]) + pattern[found.end() :]
    pattern = expand_path(pattern)
    if is_remote(pattern) or not SPECIAL.search(pattern):
        return pattern
    resolved = pathlib.PurePath()
    for name in pathlib.PurePath(pattern).parts:
        if SPECIAL.search(name):
            name = _resolve_name(str(resolved), name)
        resolved /= name
    return str(resolved)


def _resolve_name(folders: str, name: str) -> str:
    """Returns the glob that one part of a path means in the folders of a glob."""
    for folder in glob.iglob(folders):
        if os.path.lexists(os.path.join(folder, name)):
            meant = escape(name)
        elif "[" in name and _names(folder, name.replace("[", "[[]")):
            meant = name.replace("[", "[[]")  # as in "[2024] x*.tar"
        else:
            continue
        names = _names(folder, meant)
        if others := sorted(_names(folder, name) - names):
            path = os.path.normpath(os.path.join(folder, min(names)))
            raise UserError(
                f"{path} exists, and {name} is a pattern of {others[0]} too; expected "
                f'quotes around what is a name, as in "{path}", or another name for it'
            )
        return meant
    return name


def _names(folder: str, pattern: str) -> set[str]:
    # Not all of a mistyped range, which may have more numbers than memory.
    parts = itertools.islice(expand(pattern), LOOKED_UP)
    return {name for part in parts for name in glob.iglob(part, root_dir=folder)}


def find_paths(pattern: str) -> list[str]:
    """Finds the files and folders of this machine that a glob names, sorted.

    Raises:
        UserError: if a number or an alternative finds none, though another does.
    """
    found: set[str] = set()
    for part in expand(resolve_glob(pattern)):
        here = set(glob.iglob(part, recursive=True))
        if not here and found:
            raise UserError(f"{part} matches no file; {pattern} asks for it")
        if not here:
            break
        found |= here
    return sorted(found)


def find_files(pattern: str, what: str) -> list[File]:
    """Finds the files that a glob names, in its order, and by path for each wildcard.

    Each number of a range and each alternative must exist.

    Args:
        what: for messages: the source that wants them.

    Raises:
        UserError: naming a file that is missing, or a pattern that finds none.
    """
    resolved = resolve_glob(pattern)
    find = _find_remote if is_remote(resolved) else _find_local
    files: dict[str, File] = {}
    for part in expand(resolved):
        try:
            found = find(part, what)
        except FileNotFoundError as error:
            missing = error.filename or _plain(part)
            raise UserError(f"source {what}: {missing} does not exist") from error
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"source {what}: {_plain(part)} cannot be read: {reason}"
            ) from error
        if not found:
            raise UserError(f"source {what}: {_plain(part)} {_no_file(part)}")
        files |= {file.path: file for file in found}
    return list(files.values())


def _find_local(part: str, what: str) -> list[File]:
    # Without hidden files, such as the `._a.tar` that macOS puts beside an a.tar.
    has_wildcards = WILDCARDS.search(part)
    paths = sorted(glob.iglob(part, recursive=True)) if has_wildcards else [part]
    found = [(os.path.abspath(path), os.stat(path)) for path in paths]
    return [
        File(path, info.st_size, str(info.st_mtime))
        for path, info in found
        if stat.S_ISREG(info.st_mode)
    ]


def _find_remote(part: str, what: str) -> list[File]:
    try:
        system, path = fsspec.core.url_to_fs(part)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"source {what}: {part} needs a file system that is not installed: {error}"
        ) from error
    # An object may have brackets in its own name.
    has_wildcards = WILDCARDS.search(part) and not system.exists(path)
    try:
        paths = system.glob(path) if has_wildcards else [path]
    except ValueError as error:
        raise UserError(f"source {what}: {part} is no pattern: {error}") from error
    infos = [system.info(path) for path in paths]
    return [
        # Stores name what changes with a file in several ways.
        File(
            system.unstrip_protocol(info["name"]),
            info["size"],
            str(info.get("mtime") or info.get("etag") or info.get("updated")),
        )
        for info in sorted(infos, key=lambda info: info["name"])
        if info["type"] == "file" and (not has_wildcards or not _is_hidden(info))
    ]


def _is_hidden(info: dict) -> bool:
    return info["name"].rpartition("/")[2].startswith(".")


def _no_file(part: str) -> str:
    """Returns what to say of a glob that finds no file."""
    if os.path.isdir(part):
        endings = [e for e in (".arrayrecord", ".tar") if find_paths(f"{part}/*{e}")]
        meant = os.path.join(part, "*" + (endings or [".tar"])[0])
        return f"is a directory; expected the files in it, '{meant}'"
    return (
        "matches no file; expected a path or a quoted pattern such as 'DIR/*.tar' or "
        "'DIR/{000..127}.tar'"
    )


def read_ranges(path: str, ranges: Sequence[Range]) -> list[bytes]:
    """Reads parts of a file, in their order; fewer bytes where the file ends before.

    Raises:
        UserError: if the file cannot be read.
    """
    try:
        if is_remote(path):
            system, inner = fsspec.core.url_to_fs(path)
            # One call, so that the file system fetches all ranges at once.
            starts = [start for start, _ in ranges]
            ends = [start + size for start, size in ranges]
            paths = [inner] * len(ranges)
            return system.cat_ranges(paths, starts, ends, on_error="raise")
        # pread is thread-safe: a shared file object's position is not.
        descriptor = os.open(path, os.O_RDONLY)
        try:
            return [os.pread(descriptor, size, start) for start, size in ranges]
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def open_file(path: str):
    """Opens a file for reading, binary and seekable."""
    if is_remote(path):
        return fsspec.open(path, "rb").open()
    return open(path, "rb")
