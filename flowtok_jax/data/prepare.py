"""Command that writes any source of captioned images as ArrayRecord shards.

    python -m flowtok_jax.data.prepare --source='tars:DIR/*.tar' --out=data/mine

Training reads it as `--config.data.train='arrayrecord:data/mine/*.arrayrecord'`.

Image files keep their bytes; each is decoded once, to find the broken ones. DIR appears
when all of it is written: shards, manifest.json (counts, SHA-256) and report.json. The
last line of stdout is one JSON object: `records`, and `rejected` by reason. Exit
status: 0, or 2 for a mistake of the user's, with one line.
"""

import argparse
import hashlib
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import tqdm

from flowtok_jax.data import images, shards, source_strings, sources
from flowtok_jax.data.captions import CaptionOptions
from flowtok_jax.data.records import BadRecord, Joined, Record, Records
from flowtok_jax.data.report import DataReport
from flowtok_jax.data.transforms import Filters
from flowtok_jax.runtime import cli
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import (
    check_new_directory,
    new_directory,
    to_place,
    write_json,
)

CHUNK = 512  # records decoded, and held in memory, at a time


class Checked(NamedTuple):
    """A usable record, with its image's size and format and a digest of its content."""

    record: Record
    size: tuple[int, int] | None
    kind: str
    digest: bytes


def _make_parser() -> argparse.ArgumentParser:
    # Of the sources' description all but its first sentence.
    description = f"{__doc__}\nSources:\n\n{source_strings.__doc__.split('.', 1)[1]}"
    parser = cli.make_command_parser("flowtok_jax.data.prepare", description)
    add = parser.add_argument
    pixels = images.MAX_PIXELS
    add("--source", metavar="SPEC", help="what to read, see below; no weights")
    add("--out", metavar="DIR", help="directory to write; must be new or empty")
    add("--dedupe", action="store_true", help="drop images that came before, by bytes")
    add("--limit", type=int, metavar="N", help="read the first N records only")
    add("--aspect", default="0,inf", metavar="LO,HI", help="height/width to keep")
    add("--min_side", type=int, default=0, help="fewest pixels of the longer side")
    add("--max_pixels", type=int, default=pixels, help="most pixels (%(default)s)")
    add("--shard_mb", type=int, default=256, help="size of a shard (%(default)s)")
    usual = CaptionOptions()
    add("--captions", default=usual.reading, help="whole (default), or first_line")
    add("--caption_keys", default=usual.keys, help=f"default: {','.join(usual.keys)}")
    endings = ",".join(usual.extensions)
    add("--caption_extensions", default=usual.extensions, help=f"default: {endings}")
    add("--image_size", type=int, default=256, help="of shapes (%(default)s)")
    add("--seed", type=int, default=0, help="of shapes (%(default)s)")
    add("--tokens", type=int, default=77, help="of latents (%(default)s)")
    add("--channels", type=int, default=16, help="of latents (%(default)s)")
    add("--cache", metavar="DIR", help="for indices of tars; default: ~/.cache")
    return parser


def make_filters(flags: argparse.Namespace) -> Filters:
    """Makes the filters that the flags ask for."""
    try:
        low, high = map(float, flags.aspect.split(","))
    except ValueError as error:
        raise UserError(
            f"--aspect={flags.aspect}; expected the range of height/width, as in 0.5,2"
        ) from error
    return Filters(aspect=(low, high), min_side=flags.min_side)


def check_record(
    records: Records, index: int, filters: Filters, pixels: int
) -> Checked:
    """Reads and decodes a record.

    Raises:
        BadRecord: if the record is broken or refused by the filters.
    """
    record = records[index]
    if record.moments is not None:
        digest = hashlib.sha256(record.moments.tobytes()).digest()
        return Checked(record, None, "latents", digest)
    if record.image is None:
        raise BadRecord("missing_image", record.name)
    size_is_known = filters.check_metadata(record)
    # From the header: the decoded image, which may be a converted copy, has no format.
    kind = images.open_image(record.image, record.name, pixels).format or "unknown"
    size = images.decode(record.image, record.name, pixels).size
    if not size_is_known:
        filters.check_size(record.name, *size)
    return Checked(record, size, kind, hashlib.sha256(record.image).digest())


def keep_records(
    found: Iterable[Checked | BadRecord], report: DataReport, dedupe: bool
) -> Iterator[Record]:
    """Yields the records that are kept, and reports all."""
    seen: set[bytes] = set()
    for item in found:
        if isinstance(item, Checked) and dedupe:
            if item.digest in seen:
                item = BadRecord("duplicate", item.record.name)
            else:
                seen.add(item.digest)
        if isinstance(item, BadRecord):
            report.rejects.add([(item.reason, item.name)], 0)
        else:
            report.add(item.record, item.size, item.kind)
            yield item.record


def check_all(
    every: Sequence[Records], filters: Filters, pixels: int, limit: int | None
) -> Iterator[Checked | BadRecord]:
    """Checks all records on threads, and yields the results in order."""
    total = sum(map(len, every))
    places = ((records, i) for records in every for i in range(len(records)))
    places = itertools.islice(places, limit)

    def attempt(place: tuple[Records, int]) -> Checked | BadRecord:
        try:
            return check_record(*place, filters, pixels)
        except BadRecord as bad:
            return bad

    shown = total if limit is None else min(total, limit)
    with (
        ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool,
        tqdm.tqdm(total=shown, unit="record", disable=None) as bar,
    ):
        # In chunks: pool.map would read all records before the first is written.
        while chunk := list(itertools.islice(places, CHUNK)):
            yield from pool.map(attempt, chunk)
            bar.update(len(chunk))


def write_shards(
    records: Iterator[Record], folder: pathlib.Path, shard_bytes: int
) -> list[shards.Shard]:
    """Writes records in shards of about `shard_bytes` each."""
    written: list[shards.Shard] = []

    # Draws from the iterator that the loop below goes through.
    def fill(first: Record) -> Iterator[Record]:
        size = 0
        for record in itertools.chain([first], records):
            yield record
            size += len(record.image or b"")
            size += 0 if record.moments is None else record.moments.nbytes
            if size >= shard_bytes:
                return

    for first in records:
        path = folder / f"data-{len(written):05d}.arrayrecord"
        written.append(shards.write_arrayrecord(path, fill(first)))
    return written


def write_data_set(flags: argparse.Namespace) -> DataReport:
    """Reads the source and writes the directory.

    Raises:
        UserError: before anything is written, or with what was written removed.
    """
    if not (flags.source and flags.out):
        raise UserError("expected --source=SPEC and --out=DIR; --help explains SPEC")
    out = to_place(flags.out)
    filters = make_filters(flags)
    check_new_directory(out)  # before anything is read
    parts = source_strings.parse_sources(flags.source)
    if any(part.weight is not None for part in parts):
        raise UserError(
            f"--source={flags.source} has weights; every record is written once: leave "
            "them to training"
        )
    options = {name: getattr(flags, name) for name in ("image_size", "seed", "cache")}
    options["moments"] = (flags.tokens, 2 * flags.channels)
    options["captions"] = CaptionOptions(
        reading=flags.captions,
        keys=flags.caption_keys,
        extensions=flags.caption_extensions,
    )
    every = [sources.make_records(part, **options) for part in parts]
    report = DataReport()
    report.passed_over = Joined(every).passed_over
    found = check_all(every, filters, flags.max_pixels, flags.limit)
    records = keep_records(found, report, flags.dedupe)
    with new_directory(out) as part:
        written = write_shards(records, part, flags.shard_mb << 20)
        if not written:
            raise UserError(
                f"--source={flags.source} has no record that can be used: "
                f"{report.rejects.describe()}"
            )
        shards.write_manifest(part, written)
        content = {"source": flags.source, **report.summary()}
        write_json(part / "report.json", content)
    return report


def main(argv: Sequence[str]) -> int:
    """Prepares a source; a user's mistake ends in one line."""
    flags = _make_parser().parse_args(argv)

    def command() -> None:
        report = write_data_set(flags)
        sys.stderr.write(f"{report.table()}\n\nwrote {flags.out}\n")
        summary = report.summary()
        cli.say(json.dumps({key: summary[key] for key in ("records", "rejected")}))

    return cli.run_command(command, "interrupted; nothing was written")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
