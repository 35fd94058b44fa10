"""A directory of pretokenised shards: what made it, which shards are finished.

data-00000.arrayrecord   (or .tar) moments and captions
done/00000.json          what that shard holds, and each record left out of it
pretokenize.json         what made all this; another config is refused
manifest.json            counts and checksums, and
report.json              what was left out, when all is there
"""

import pathlib
from typing import NamedTuple

from flowtok_jax.data import shards
from flowtok_jax.data.records import RejectCounter
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import read_json, write_json

MADE, DONE, REPORT = "pretokenize.json", "done", "report.json"


class Done(NamedTuple):
    """What became of a range of the source; as JSON beside the shards.

    Attributes:
        records: that the shard holds; of a tar, which has a key for each caption, not
            the number of keys.
        rejected: (reason, name) of those that it does not.
        shard: None where no record was left.
    """

    records: int
    rejected: list[tuple[str, str]]
    shard: shards.Shard | None


def _done_path(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / DONE / f"{number:05d}.json"


def write_done(folder: pathlib.Path, number: int, done: Done) -> None:
    """Marks a shard as finished."""
    shard = done.shard and done.shard._asdict()
    write_json(_done_path(folder, number), {**done._asdict(), "shard": shard})


def read_done(folder: pathlib.Path, number: int) -> Done | None:
    """What a finished shard holds; None where it has to be made (again)."""
    path = _done_path(folder, number)
    if not path.is_file():
        return None
    values = read_json(path)
    rejected = [(reason, name) for reason, name in values["rejected"]]
    shard = values["shard"] and shards.Shard(**values["shard"])
    if shard:
        there = folder / shard.file
        if not there.is_file() or there.stat().st_size != shard.bytes:
            return None
    return Done(values["records"], rejected, shard)


def finish(folder: pathlib.Path, source: str, count: int) -> None:
    """Writes manifest and report, once every shard is there and as it was written.

    Args:
        source: for the report.
        count: of shards, those without a record included.

    Raises:
        UserError: naming what is not there, or not as it was written.
    """
    rejects, written, records = RejectCounter(1.0, known=0), [], 0
    for number in range(count):
        done = read_done(folder, number)
        if done is None:
            raise UserError(
                f"{_done_path(folder, number)} does not exist, or is "
                "another's; expected a directory that all the processes share: start "
                "the command again"
            )
        rejects.add(done.rejected, done.records)
        records += done.records
        written += [done.shard] if done.shard else []
    if not written:
        raise UserError(
            f"data.train = {source} has no record that can be used: "
            f"{rejects.describe()}"
        )
    shards.write_manifest(folder, written)
    shards.check_manifest(folder, checksums=True)
    result = {"source": source, "records": records, **rejects.summary()}
    write_json(folder / REPORT, {**result, "shards": len(written)})
