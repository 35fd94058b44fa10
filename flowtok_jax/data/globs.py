"""Files that a glob names, here or on any file system of fsspec (gs://, s3://, ...).

Local files go straight to the operating system, by `pread`; others by range requests.
"""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import fsspec

from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import is_remote

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
WILDCARDS = re.compile(r"[*?\[]")


Range = tuple[int, int]  # first byte, and how many


class File(NamedTuple):
    """A file with its size in bytes, and a text that changes when the file does."""

    path: str
    size: int
    version: str


def expand(pattern: str) -> list[str]:
    """Replaces number ranges: `{000..127}` counts up, keeping its width."""
    found = RANGE.search(pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    head = pattern[: found.start()]
    tail = pattern[found.end() :]
    numbers = range(int(first), int(last) + 1)
    return [p for i in numbers for p in expand(f"{head}{i:0{len(first)}d}{tail}")]


def find_files(pattern: str, what: str) -> list[File]:
    """Finds the files that a pattern names, sorted by path.

    Args:
        pattern: a path, with `*`, `?`, `[...]` or number ranges `{000..127}`; each
            number of a range must exist.
        what: for messages: the source that wants them.

    Raises:
        UserError: naming a file that is missing, or a pattern that finds none.
    """
    files = []
    for part in expand(pattern):
        system, path = _system(part, what)
        try:
            # A file may have brackets in its own name.
            has_wildcards = WILDCARDS.search(part) and not system.exists(path)
            paths = sorted(system.glob(path)) if has_wildcards else [path]
            infos = [system.info(p) for p in paths]
        except FileNotFoundError as error:
            raise UserError(f"source {what}: {part} does not exist") from error
        except OSError as error:
            raise UserError(f"source {what}: {part} cannot be read: {error}") from error
        infos = [info for info in infos if info["type"] == "file"]
        if not infos:
            raise UserError(
                f"source {what}: {part} matches no file; expected a path or a quoted "
                "pattern such as 'DIR/*.tar' or 'DIR/{000..127}.tar'"
            )
        for info in infos:
            name = info["name"]
            if is_remote(part):
                name = system.unstrip_protocol(name)
            # Stores name what changes with a file in several ways.
            changed = info.get("mtime") or info.get("etag") or info.get("updated")
            files.append(File(name, info["size"], str(changed)))
    return files


def _system(path: str, what: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"source {what}: {path} needs a file system that is not installed: {error}"
        ) from error


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
