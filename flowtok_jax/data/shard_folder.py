"""A directory of pretokenised shards: what made it, which shards are finished.

data-00000.arrayrecord   (or .tar) moments and captions
done/00000.json          what that shard holds, and each record left out of it
pretokenize.json         what made all this; another config is refused
manifest.json            counts and checksums, and
report.json              what was left out, when every shard exists

A shard is a range of the source, so that its bytes depend neither on the number of
processes nor on how often the run was killed. Each process writes whole shards.
"""

import itertools
import logging
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from flowtok_jax.data import shards
from flowtok_jax.data.centre import CentreReader, Square
from flowtok_jax.data.records import BadRecord, Record, Records, RejectCounter
from flowtok_jax.runtime import processes
from flowtok_jax.runtime.batches import map_ahead, one_ahead
from flowtok_jax.runtime.claims import claim
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import (
    Place,
    is_remote,
    read_json,
    remove_parts,
    write_json,
)

MADE = "pretokenize.json"
DONE = "done"
REPORT = "report.json"
PROGRESS_SECONDS = 15.0  # between two lines of progress, without a terminal

# Starts to compute the moments of images, on the devices.
Encode = Callable[[Sequence[Square]], Any]
Loaded = tuple[Record, Square] | BadRecord
Reject = Callable[[str, str], None]


class Done(NamedTuple):
    """Outcome of a range of the source, kept as JSON beside the shards.

    Attributes:
        records: number of records in the shard; of a tar, which has a key for each
            caption, not the number of keys.
        rejected: (reason, name) of the records left out.
        shard: None if no record was left.
    """

    records: int
    rejected: list[tuple[str, str]]
    shard: shards.Shard | None


class ShardWriter:
    """Writer of this process's share of the shards.

    Attributes:
        count: number of shards of all the processes.

    Args:
        kind: of `shards.WRITERS`.
        shard_records: records of the source that a shard is made of.
        max_rejected: share of the records that may be broken.

    Raises:
        UserError: if the folder is remote, the kind unknown, or a shard empty.
    """

    def __init__(
        self,
        folder: Place,
        records: Records,
        centre: CentreReader,
        *,
        kind: str,
        shard_records: int,
        max_rejected: float,
    ):
        if is_remote(folder):
            raise UserError(
                f"--workdir={folder}: shards are written to local disks; give a local "
                "directory, and copy it when it is whole"
            )
        if kind not in shards.WRITERS:
            raise UserError(
                f"pretokenize.format is {kind!r}; expected one of "
                f"{', '.join(shards.WRITERS)}"
            )
        if shard_records < 1:
            raise UserError(
                f"pretokenize.shard_records is {shard_records}; expected at least 1"
            )
        self._folder = pathlib.Path(folder)
        self._records = records
        self._centre = centre
        self._kind = kind
        self._size = shard_records
        self.count = -(-len(records) // shard_records)
        # Every record comes once: there are no names to remember.
        self._rejects = RejectCounter(max_rejected, known=0)

    def run(
        self,
        made_by: dict[str, Any],
        make_encode: Callable[[], Encode],
        *,
        batch_size: int,
        threads: int,
        ahead: int,
    ) -> dict[str, Any]:
        """Writes all that is missing; every process of a run calls it.

        Args:
            made_by: what the bytes of the shards depend on.
            make_encode: called if there is something to encode; it compiles.
            batch_size: images to encode at a time.
            ahead: number of records that are read before they are needed.

        Returns:
            In process 0 `records`, `rejected` (reason -> count), `shards`, and the
            `images_per_sec` of what this run encoded, compiling left out.

        Raises:
            UserError: if the folder is something else's, or too many records are
                broken.
        """
        marker = self._folder / MADE
        cure = "give another --workdir"
        processes.first_does(
            lambda: claim(marker, made_by, cure=cure, must_be_new=True)
        )
        encoded, begun = self.write(make_encode, batch_size, threads, ahead)
        # All wait here for the slowest.
        (encoded,) = processes.total(np.array([encoded])).tolist()
        seconds = time.monotonic() - begun
        result: dict[str, Any] = {}
        processes.first_does(lambda: result.update(self._finish(made_by["source"])))
        speed = round(encoded / seconds, 1) if encoded else 0.0
        names = ("records", "rejected", "shards")
        found = {name: result[name] for name in names if processes.is_first()}
        return found | {"images_per_sec": speed}

    def write(
        self,
        make_encode: Callable[[], Encode],
        batch_size: int,
        threads: int,
        ahead: int,
    ) -> tuple[int, float]:
        """Writes this process's missing shards; returns images encoded since when."""
        # Shards are dealt out in turn: each process writes about as many.
        mine = range(jax.process_index(), self.count, jax.process_count())
        missing = []
        there = 0
        for number in mine:
            done = read_done(self._folder, number)
            if done is None:
                missing.append(number)
            else:
                there += len(self._range(number))
                self._rejects.add(done.rejected, done.records)
        if not missing:
            return 0, time.monotonic()
        # Compiling takes a while, and a finished folder needs none.
        encode = make_encode()
        begun = time.monotonic()
        total = sum(len(self._range(number)) for number in mine)
        places = ((n, index) for n in missing for index in self._range(n))
        with ThreadPoolExecutor(threads) as pool, _Progress(there, total) as progress:
            loaded = progress.watch(map_ahead(pool, self._load, places, ahead))
            encoded = sum(
                self._write_shard(number, (x for _, x in group), encode, batch_size)
                for number, group in itertools.groupby(loaded, lambda pair: pair[0][0])
            )
        return encoded, begun

    def _range(self, number: int) -> range:
        """Returns the records of a shard."""
        start = number * self._size
        return range(start, min(start + self._size, len(self._records)))

    def _load(self, place: tuple[int, int]) -> Loaded:
        """Reads a record and its pixels: the centre, as nothing random is stored."""
        try:
            record = self._records[place[1]]
            if not any(record.captions + record.recaptions):
                raise BadRecord("missing_caption", record.name)
            return record._replace(image=None), self._centre(record)
        except BadRecord as bad:
            return bad

    def _write_shard(
        self, number: int, loaded: Iterator[Loaded], encode: Encode, batch_size: int
    ) -> int:
        """Writes a shard and what became of its records; returns how many it holds."""
        rejected: list[tuple[str, str]] = []

        def reject(reason: str, name: str) -> None:
            rejected.append((reason, name))
            self._rejects.add([(reason, name)], 0)

        path = self._folder / f"data-{number:05d}.{self._kind}"
        remove_parts(path)  # of a run that was killed
        batches = self._batches(loaded, batch_size, reject)
        records = _with_moments(batches, encode, reject)
        shard = None
        for first in records:  # no file where there is none
            shard = shards.WRITERS[self._kind](path, itertools.chain([first], records))
        # The counts tell of all records of the range, written or not.
        done = Done(len(self._range(number)) - len(rejected), rejected, shard)
        write_done(self._folder, number, done)
        return done.records

    def _batches(
        self, loaded: Iterator[Loaded], size: int, reject: Reject
    ) -> Iterator[list[tuple[Record, Square]]]:
        """Yields the records that can be used, so many at a time."""
        batch = []
        for item in loaded:
            if isinstance(item, BadRecord):
                reject(item.reason, item.name)
                continue
            batch.append(item)
            if len(batch) == size:
                self._rejects.add((), len(batch))
                yield batch
                batch = []
        if batch:
            self._rejects.add((), len(batch))
            yield batch

    def _finish(self, source: str) -> dict[str, Any]:
        """Writes manifest and report, once every shard exists and is as it was written.

        Args:
            source: for the report.

        Raises:
            UserError: naming what does not exist, or is not as it was written.
        """
        # All may be broken here: the limit was each process's own.
        rejects = RejectCounter(1.0, known=0)
        written = []
        records = 0
        for number in range(self.count):
            done = read_done(self._folder, number)
            if done is None:
                raise UserError(
                    f"{_done_path(self._folder, number)} does not exist, or is "
                    "another's; expected a directory that all the processes share: "
                    "start the command again"
                )
            rejects.add(done.rejected, done.records)
            records += done.records
            written += [done.shard] if done.shard else []
        if not written:
            raise UserError(
                f"data.train = {source} has no record that can be used: "
                f"{rejects.describe()}"
            )
        shards.write_manifest(self._folder, written)
        shards.check_manifest(self._folder, checksums=True)
        result = {"source": source, "records": records, **rejects.summary()}
        result["shards"] = len(written)
        write_json(self._folder / REPORT, result)
        self._tell(result)
        return result

    def _tell(self, result: dict[str, Any]) -> None:
        for reason, count in result["rejected"].items():
            names = ", ".join(result["first"][reason])
            logging.info("left out: %s %d (%s)", reason, count, names)
        logging.info(
            "%s: records %d, shards %d, checksums verified; train on them with "
            "--config.data.train='latents:%s/*.%s'",
            self._folder,
            result["records"],
            result["shards"],
            self._folder,
            self._kind,
        )


def _with_moments(
    batches: Iterable[list[tuple[Record, Square]]], encode: Encode, reject: Reject
) -> Iterator[Record]:
    """Yields records with their moments, in order."""

    def started() -> Iterator[tuple[Sequence[Record], Any]]:
        for batch in batches:
            records, pixels = zip(*batch, strict=True)
            yield records, encode(pixels)

    for records, moments in one_ahead(started()):
        # The batch was filled up: it has rows more than records.
        for record, row in zip(records, moments, strict=False):
            if np.isfinite(row).all():
                yield record._replace(moments=row)
            else:  # too large for float16, or the weights are broken
                reject("not_finite", record.name)


def _done_path(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / DONE / f"{number:05d}.json"


def write_done(folder: pathlib.Path, number: int, done: Done) -> None:
    """Marks a shard as finished."""
    shard = done.shard and done.shard._asdict()
    write_json(_done_path(folder, number), {**done._asdict(), "shard": shard})


def read_done(folder: pathlib.Path, number: int) -> Done | None:
    """Reads what a finished shard holds; None if it has to be made (again)."""
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


class _Progress:
    """Process 0's progress: a bar on a terminal, else a line now and then."""

    def __init__(self, there: int, total: int):
        self._bar = tqdm.tqdm(
            desc="pretokenize",
            initial=there,
            total=total,
            unit="image",
            disable=not (processes.is_first() and sys.stderr.isatty()),
        )
        self._seen = there
        self._there = there
        self._total = total
        self._begun = time.monotonic()
        self._last_line = self._begun

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def watch(self, found: Iterable[Any]) -> Iterator[Any]:
        """Yields the same items, and counts them."""
        for item in found:
            yield item
            self._seen += 1
            self._bar.update()
            now = time.monotonic()
            if self._bar.disable and now - self._last_line > PROGRESS_SECONDS:
                self._last_line = now
                speed = (self._seen - self._there) / (now - self._begun)
                progress = self._seen, self._total, speed
                logging.info("pretokenize %d/%d, %.0f images/s", *progress)
