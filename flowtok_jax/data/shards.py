"""Data sets written in shards: ArrayRecord with our records, or the release's tars.

A shard has its final name only when it is whole, and a manifest counts what is there.

One ArrayRecord entry is a msgpack map: `name`, `captions`, `recaptions`, `metadata` as
JSON, and `image` (the bytes of a file) or `moments` (float16, little endian, row by
row) with their `shape` [n, 2 * c].
"""

import hashlib
import io
import json
import pathlib
import secrets
import tarfile
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from flowtok_jax.data.records import Record
from flowtok_jax.runtime.errors import UserError

MANIFEST = "manifest.json"
# One record a chunk: random access. JPEG and noise do not get smaller by compression.
WRITER_OPTIONS = "group_size:1,uncompressed"


class Shard(NamedTuple):
    """A finished shard, as the manifest lists it."""

    file: str
    records: int
    bytes: int
    sha256: str


def pack(record: Record) -> bytes:
    """A record as one entry of an ArrayRecord file."""
    fields: dict[str, Any] = {
        "name": record.name.encode(errors="backslashreplace").decode(),
        "captions": record.captions,
        "recaptions": record.recaptions,
        "metadata": json.dumps(dict(record.metadata)),
    }
    if record.image is not None:
        fields["image"] = record.image
    if record.moments is not None:
        moments = np.ascontiguousarray(record.moments, "<f2")
        fields |= {"moments": moments.tobytes(), "shape": moments.shape}
    return msgpack.packb(fields)


def unpack(entry: bytes) -> Record:
    """The record of an entry.

    Raises:
        ValueError, KeyError, TypeError: where it is none of ours.
    """
    fields = msgpack.unpackb(entry)
    moments = None
    if "moments" in fields:
        moments = np.frombuffer(fields["moments"], "<f2").reshape(fields["shape"])
    return Record(
        name=fields["name"],
        captions=tuple(fields["captions"]),
        recaptions=tuple(fields["recaptions"]),
        metadata=json.loads(fields["metadata"]),
        image=fields.get("image"),
        moments=moments,
    )


def write_arrayrecord(path: pathlib.Path, records: Iterable[Record]) -> Shard:
    """Writes a shard of ours."""
    count, part = 0, _part(path)
    try:
        writer = ArrayRecordWriter(str(part), WRITER_OPTIONS)
        try:
            for record in records:
                writer.write(pack(record))
                count += 1
        finally:
            writer.close()
        return _finish(part, path, count)
    finally:
        part.unlink(missing_ok=True)


def write_release_tar(path: pathlib.Path, records: Iterable[Record]) -> Shard:
    """Writes latents as the release reads them.

    That format has one caption a key: a record with several becomes several keys with
    the same moments; its recaptions, of which a key takes one, are dealt out in turn.
    """
    count, part = 0, _part(path)
    stem = path.name.partition(".")[0]
    try:
        with tarfile.open(part, "w:", format=tarfile.PAX_FORMAT) as tar:
            for record in records:
                moments = np.ascontiguousarray(record.moments.T, "<f2").tobytes()
                recaptions = record.recaptions
                for i, caption in enumerate(record.captions or recaptions[:1]):
                    key = f"{stem}_{count:08d}"
                    _add(tar, f"{key}.token.npy", moments)
                    _add(tar, f"{key}.txt", caption.encode())
                    if recaptions:
                        text = recaptions[i % len(recaptions)]
                        _add(tar, f"{key}.recap_txt", text.encode())
                    count += 1
        return _finish(part, path, count)
    finally:
        part.unlink(missing_ok=True)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # owner and time are zero: the same bytes each time
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


WRITERS = {"arrayrecord": write_arrayrecord, "tar": write_release_tar}


def _part(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def remove_parts(path: pathlib.Path) -> None:
    """Removes what writers of this shard left behind when they were killed."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        part.unlink(missing_ok=True)


def _finish(part: pathlib.Path, path: pathlib.Path, count: int) -> Shard:
    shard = Shard(path.name, count, part.stat().st_size, sha256(part))
    part.replace(path)
    return shard


def sha256(path: pathlib.Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(directory: pathlib.Path, shards: Iterable[Shard]) -> None:
    """Lists the shards of a directory, whole or not at all."""
    shards = sorted(shards)
    content = {
        "records": sum(shard.records for shard in shards),
        "shards": [shard._asdict() for shard in shards],
    }
    place = directory / MANIFEST
    part = _part(place)
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(place)


def read_manifest(directory: pathlib.Path) -> list[Shard]:
    """The shards that a directory's manifest lists; none where it has no manifest.

    Raises:
        ValueError, KeyError, TypeError: where it is damaged.
    """
    place = directory / MANIFEST
    if not place.is_file():
        return []
    return [Shard(**shard) for shard in json.loads(place.read_text())["shards"]]


def check_manifest(directory: pathlib.Path, checksums: bool = False) -> None:
    """Compares the shards of a directory with its manifest, if it has one.

    Args:
        checksums: whether each file is read and its SHA-256 compared as well.

    Raises:
        UserError: naming a shard that is missing or differs.
    """
    try:
        listed = read_manifest(directory)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{directory / MANIFEST} is damaged: {error}") from error
    for shard in listed:
        path = directory / shard.file
        if not path.is_file():
            raise UserError(
                f"{path} is not there, but {MANIFEST} lists it; fetch it again"
            )
        size = path.stat().st_size
        if size != shard.bytes:
            raise UserError(
                f"{path} has {size} bytes, {MANIFEST} says {shard.bytes}; fetch "
                "it again"
            )
        if checksums and sha256(path) != shard.sha256:
            raise UserError(
                f"{path} differs from its SHA-256 in {MANIFEST}; fetch it again"
            )
