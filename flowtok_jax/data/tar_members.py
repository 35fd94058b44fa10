"""Members of the archives in a tar file: their names, and where their bytes lie.

A file may hold several archives one after the other, as `cat a.tar b.tar > c.tar` makes
it. Links to members of the same archive are resolved; nothing is ever unpacked, so that
no link can lead out of the file.
"""

import posixpath
import tarfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from flowtok_jax.data import globs
from flowtok_jax.runtime.errors import UserError

LINKS = 40  # links in a row that are followed, as in Linux
NOTES = (b"V", b"D")  # GNU tar's label of a volume, and list of a folder
CHUNK = 1 << 20  # bytes read at a time between two archives

Span = tuple[int, int]  # offset and size in bytes


class Member(NamedTuple):
    """A member that is no directory.

    Attributes:
        name: path without "./" and "//".
        span: where its bytes are, if it has some.
        fault: why it cannot be used, if so.
    """

    name: str
    span: Span | None
    fault: str = ""


def read_archives(file: globs.File) -> Iterator[list[Member]]:
    """Reads the headers of a tar, and yields the members of each archive in it.

    Raises:
        UserError: if the file is missing, no tar, cut short or damaged.
    """
    try:
        with globs.open_file(file.path) as stream:
            start: int | None = 0
            while start is not None:
                stream.seek(start)
                with tarfile.open(fileobj=stream, mode="r:") as tar:
                    found = _members(tar)
                    end = tar.offset  # of the block after the last member
                yield found
                start = _next_archive(file, stream, start, end)
    except FileNotFoundError as error:
        raise UserError(f"{file.path} does not exist") from error
    except (tarfile.TarError, EOFError) as error:
        raise UserError(
            f"{file.path} is no whole tar ({file.size} bytes; {error}); fetch it again "
            "(compressed tars must be unpacked: they have no random access)"
        ) from error


def _next_archive(file: globs.File, stream: Any, start: int, end: int) -> int | None:
    """Returns where the archive after the one from `start` to `end` begins, if any."""
    stream.seek(end)
    # At a block that is no header tarfile stops in silence, as at the end mark.
    if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        if end == start:
            raise UserError(
                f"{file.path} goes on behind its end mark with what is no tar, at byte "
                f"{start} of {file.size}; fetch it again, or cut that off: "
                f"`truncate -s {start} FILE`"
            )
        raise UserError(
            f"{file.path} is cut short or damaged: no end mark after its last readable "
            f"member, at byte {end} of {file.size}; fetch it again"
        )
    place = end + tarfile.BLOCKSIZE
    while chunk := stream.read(CHUNK):
        if rest := chunk.lstrip(b"\0"):
            return place + len(chunk) - len(rest)
        place += len(chunk)
    return None


def _members(tar: tarfile.TarFile) -> list[Member]:
    found: list[Member] = []
    spans: dict[str, Span] = {}
    links: dict[str, str] = {}  # path -> path that it stands for
    for info in tar:
        name = _tidy(info.name)
        span = None
        fault = ""
        if info.isdir() or info.type in NOTES:
            continue
        if info.name.startswith("/") or ".." in name.split("/"):
            fault = "unsafe_name"
        elif info.issparse():  # its bytes lie apart, with holes between them
            fault = "sparse_member"
        elif info.isreg():
            span = (info.offset_data, info.size)
            spans[name] = span
        elif info.islnk():
            links[name] = _tidy(info.linkname)
        elif info.issym():
            target = posixpath.join(posixpath.dirname(name), info.linkname)
            links[name] = posixpath.normpath(target)
        found.append(Member(name, span, fault))
    # A symbolic link may stand before its target.
    return [_resolve(member, spans, links) for member in found] if links else found


def _resolve(member: Member, spans: dict[str, Span], links: dict[str, str]) -> Member:
    """Gives a link the bytes of the member that it leads to."""
    if member.span or member.fault:
        return member
    target = member.name
    for _ in range(LINKS):  # links may lead in a circle
        target = links.get(target, target)
    return member._replace(span=spans.get(target))


def _tidy(path: str) -> str:
    return "/".join(part for part in path.split("/") if part not in ("", "."))
