"""Shards of data sets: ArrayRecord files with our records, or the release's tars.

A shard has its final name only once it is whole; a manifest lists the shards of a
directory.

One ArrayRecord entry is a msgpack map: `name`, `captions`, `recaptions`, `metadata` as
JSON, and `image` (the bytes of a file) or `moments` (float16, little endian, row by
row) with their `shape` [n, 2 * c].
"""

import io
import json
import pathlib
import tarfile
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgpack
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from flowtok_jax.data.records import Record
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import file_sha256, new_file, read_json, write_json

MANIFEST = "manifest.json"
# One record per chunk, for random access. Compression makes JPEG and noise no smaller.
WRITER_OPTIONS = "group_size:1,uncompressed"


class Shard(NamedTuple):
    """A finished shard, as the manifest lists it."""

    file: str
    records: int
    bytes: int
    sha256: str


def pack(record: Record) -> bytes:
    """Packs a record as one entry of an ArrayRecord file."""
    fields: dict[str, Any] = {
        # Shards keep the name that a split of their source goes by. One off a file
        # system may hold surrogates, which msgpack refuses.
        "name": (record.key or record.name).encode(errors="backslashreplace").decode(),
        "captions": record.captions,
        "recaptions": record.recaptions,
        "metadata": json.dumps(
            dict(record.metadata)
        ),  # ints beyond 64 bits, surrogates
    }
    if record.image is not None:
        fields["image"] = record.image
    if record.moments is not None:
        moments = np.ascontiguousarray(record.moments, "<f2")
        fields |= {"moments": moments.tobytes(), "shape": moments.shape}
    return msgpack.packb(fields)


def unpack(entry: bytes) -> Record:
    """Unpacks the record of an entry.

    Raises:
        ValueError, KeyError, TypeError: if `pack` did not make the entry.
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
    """Writes an ArrayRecord shard."""
    count = 0
    with new_file(path) as part:
        writer = ArrayRecordWriter(str(part), WRITER_OPTIONS)
        try:
            for record in records:
                writer.write(pack(record))
                count += 1
        finally:
            writer.close()
    return _describe(path, count)


def write_release_tar(path: pathlib.Path, records: Iterable[Record]) -> Shard:
    """Writes latents as the release reads them.

    The release's format has one caption per key: a record with several becomes several
    keys with the same moments. A key takes one recaption; they are dealt out in turn.
    """
    count = 0
    stem = path.name.partition(".")[0]
    with (
        new_file(path) as part,
        tarfile.open(part, "w:", format=tarfile.PAX_FORMAT) as tar,
    ):
        for record in records:
            moments = np.ascontiguousarray(record.moments.T, "<f2").tobytes()  # [2*c n]
            recaptions = record.recaptions
            for i, caption in enumerate(record.captions or recaptions[:1]):
                key = f"{stem}_{count:08d}"
                _add(tar, f"{key}.token.npy", moments)
                _add(tar, f"{key}.txt", caption.encode())
                if recaptions:
                    text = recaptions[i % len(recaptions)]
                    _add(tar, f"{key}.recap_txt", text.encode())
                count += 1
    return _describe(path, count)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # owner and time 0: the same bytes each time
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


WRITERS = {"arrayrecord": write_arrayrecord, "tar": write_release_tar}


def _describe(path: pathlib.Path, count: int) -> Shard:
    return Shard(path.name, count, path.stat().st_size, file_sha256(path))


def write_manifest(directory: pathlib.Path, shards: Iterable[Shard]) -> None:
    """Writes the manifest of a directory, whole or not at all."""
    shards = sorted(shards)
    content = {
        "records": sum(shard.records for shard in shards),
        "shards": [shard._asdict() for shard in shards],
    }
    write_json(directory / MANIFEST, content)


def read_manifest(directory: pathlib.Path) -> list[Shard]:
    """Reads the shards that a directory's manifest lists; none without a manifest.

    Raises:
        ValueError, KeyError, TypeError: if the manifest is damaged.
    """
    place = directory / MANIFEST
    if not place.is_file():
        return []
    return [Shard(**shard) for shard in read_json(place)["shards"]]


def check_manifest(directory: pathlib.Path, checksums: bool = False) -> None:
    """Compares the shards of a directory with its manifest, if it has one.

    Args:
        checksums: whether each file is read, to compare its SHA-256 as well.

    Raises:
        UserError: for a shard that is missing or differs.
    """
    try:
        listed = read_manifest(directory)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{directory / MANIFEST} is damaged: {error}") from error
    for shard in listed:
        path = directory / shard.file
        if not path.is_file():
            raise UserError(
                f"{path} does not exist, but {MANIFEST} lists it; fetch it again"
            )
        size = path.stat().st_size
        if size != shard.bytes:
            raise UserError(
                f"{path} has {size} bytes, {MANIFEST} says {shard.bytes}; fetch "
                "it again"
            )
        if checksums and file_sha256(path) != shard.sha256:
            raise UserError(
                f"{path} differs from its SHA-256 in {MANIFEST}; fetch it again"
            )
