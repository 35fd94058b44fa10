"""Every record of data.train once through the tokenizer's encoder: shards of moments.

    python -m flowtok_jax.main --mode=pretokenize --config=configs/finetune.py \\
        --checkpoint=weights/xl --config.data.train=folder:photos --workdir=OUT

A shard is a range of the source, so that its bytes depend neither on the number of
processes nor on how often the run was killed. Each process encodes whole shards on its
own devices and meets the others only at the end. data/shard_folder.py names what is
in OUT.
"""

import collections
import functools
import itertools
import json
import logging
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.sharding import NamedSharding
from jaxtyping import Array, Float16, UInt8
from ml_collections import ConfigDict

from flowtok_jax.array_types import ROWS, Params
from flowtok_jax.data import images, shards, sources
from flowtok_jax.data.records import BadRecord, Joined, Record, Records, RejectCounter
from flowtok_jax.data.shard_folder import (
    REPORT,
    Done,
    claim,
    finish,
    read_done,
    write_done,
)
from flowtok_jax.data.transforms import Filters, ImageTransform
from flowtok_jax.models.build import Nets, make_nets
from flowtok_jax.modes.arguments import Arguments
from flowtok_jax.runtime import processes
from flowtok_jax.runtime.cli import join_processes, say
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place, is_remote, read_json, to_place
from flowtok_jax.runtime.mesh import in_mesh, make_mesh, put, replicated
from flowtok_jax.sampling import Programs
from flowtok_jax.train.log import LINE_SECONDS
from flowtok_jax.runtime.digests import params_sha256
from flowtok_jax.weights.place import groups_of, read_group

Pixels = UInt8[np.ndarray, "s s 3"]
Found = tuple[Record, Pixels] | BadRecord


def run(arguments: Arguments) -> int:
    """Encodes the data, and says the counts as one JSON object."""
    config = arguments.training_config()
    if not arguments.flags.workdir:
        raise UserError("no folder for the shards; expected --workdir=latents, say")
    join_processes(arguments.flags)
    # Nothing has to be saved; among several processes JAX would keep it to itself.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    result = pretokenize(config, to_place(arguments.flags.workdir))
    if processes.is_first():
        say(json.dumps(result))
    return 0


def pretokenize(config: ConfigDict, out: Place) -> dict[str, Any]:
    """Writes all the shards that are not there yet, the manifest and the report.

    Every process of the run calls it.

    Returns:
        In process 0, `records`, `rejected` (reason -> count), `shards`, `seconds`,
        and the `images_per_sec` of what this run encoded, compiling left out.

    Raises:
        UserError: for what cannot be; where OUT is another config's; where more records
            are broken than data.max_rejected allows.
    """
    begun = time.monotonic()
    _check(config, out)
    folder, nets = pathlib.Path(out), make_nets(config)
    records = _open(config)
    params = _read_tokenizer(config, nets)
    made = describe(config, len(records), params_sha256(params))
    processes.first_does(lambda: claim(folder, made))
    run = Run(config, folder, records)
    encoded, started = run.write(nets, params)
    # All wait here for the slowest.
    (encoded,) = processes.total(np.array([encoded])).tolist()
    seconds = time.monotonic() - started
    processes.first_does(lambda: finish(folder, config.data.train, run.count))
    if not processes.is_first():
        return {}
    result = read_json(folder / REPORT)
    _tell(folder, config.pretokenize.format, result)
    return {
        **{key: result[key] for key in ("records", "rejected", "shards")},
        "seconds": round(time.monotonic() - begun, 1),
        "images_per_sec": round(encoded / seconds, 1) if encoded else 0.0,
    }


def _check(config: ConfigDict, out: Place) -> None:
    if is_remote(out):
        raise UserError(
            f"--workdir={out}: shards are written to local disks; give a local "
            "directory, and copy it when it is whole"
        )
    if config.pretokenize.format not in shards.WRITERS:
        raise UserError(
            f"pretokenize.format is {config.pretokenize.format!r}; wanted one of "
            f"{', '.join(shards.WRITERS)}"
        )
    sizes = ("shard_records", config.pretokenize.shard_records)
    for name, value in (sizes, ("batch_size", config.pretokenize.batch_size)):
        if value < 1:
            raise UserError(f"pretokenize.{name} is {value}; wanted at least 1")
    if config.data.transform.crop != "center" or config.data.transform.flip:
        logging.warning(
            "data.transform.crop and flip play no part: what is stored is of the centre"
        )


def _open(config: ConfigDict) -> Records:
    """The records of data.train, one source after the other."""
    parts = sources.parse(config.data.train)
    if any(part.weight is not None for part in parts):
        raise UserError(
            f"data.train = {config.data.train} has weights; every record is encoded "
            "once: leave them to training"
        )
    if any(part.kind == "latents" for part in parts):
        raise UserError(
            f"data.train = {config.data.train} has latents, which are encoded already; "
            "wanted images"
        )
    options = {"seed": config.train.seed, "cache": config.data.cache}
    size = config.tokenizer.image_size
    return Joined([sources.make_records(p, image_size=size, **options) for p in parts])


def _read_tokenizer(config: ConfigDict, nets: Nets) -> Params:
    if not config.init_from:
        raise UserError(
            "no weights named; wanted --checkpoint=DIR with a trained tokenizer: a "
            "run's workdir or a directory of pretrained weights"
        )
    place = to_place(config.init_from)
    if not place.is_dir():
        raise UserError(
            f"checkpoint {place} does not exist; wanted a run's workdir or a directory "
            "of pretrained weights"
        )
    if "tokenizer" not in groups_of(place):
        raise UserError(
            f"no weights of the tokenizer in {place}; wanted --checkpoint=DIR where it "
            "was trained"
        )
    return read_group(place, nets, "tokenizer")


def describe(config: ConfigDict, records: int, digest: str) -> dict[str, Any]:
    """What the bytes of the shards depend on.

    Args:
        records: of the source.
        digest: of the tokenizer's parameters.
    """
    made = {
        "source": config.data.train,
        "records": records,
        "seed": config.train.seed,  # of generated scenes
        "max_pixels": config.data.transform.max_pixels,
        "filters": config.data.filters.to_dict(),
        "tokenizer": config.tokenizer.to_dict(),
        "latent": config.latent.to_dict(),
        "dtype": config.compute.dtype,
        "params_sha256": digest,
        "format": config.pretokenize.format,
        "shard_records": config.pretokenize.shard_records,
    }
    return json.loads(json.dumps(made))


class Run:
    """This process's part of the shards.

    `count` is the number of shards of all the processes.
    """

    def __init__(self, config: ConfigDict, folder: pathlib.Path, records: Records):
        self._config, self._folder, self._records = config, folder, records
        self._size = config.pretokenize.shard_records
        self.count = -(-len(records) // self._size)
        self._transform = ImageTransform(
            config.tokenizer.image_size,
            max_pixels=config.data.transform.max_pixels,
            filters=Filters(**config.data.filters),
        )
        # Every record comes once: there are no names to remember.
        self._rejects = RejectCounter(config.data.max_rejected, known=0)

    def write(self, nets: Nets, params: Params) -> tuple[int, float]:
        """Writes the shards that are missing; images encoded, and when that began."""
        mine = range(jax.process_index(), self.count, jax.process_count())
        missing, there = [], 0
        for number in mine:
            done = read_done(self._folder, number)
            if done is None:
                missing.append(number)
            else:
                there += len(self._range(number))
                self._rejects.add(done.rejected, done.records)
        if not missing:
            return 0, time.monotonic()
        encode = Encode(nets, params, self._config.pretokenize.batch_size)
        begun, encoded = time.monotonic(), 0
        total = sum(len(self._range(number)) for number in mine)
        with (
            ThreadPoolExecutor(self._config.data.threads) as pool,
            _Progress(there, total) as progress,
        ):
            found = progress.watch(self._read(pool, missing, encode.batch_size))
            for number, group in itertools.groupby(found, key=lambda pair: pair[0]):
                encoded += self._write_shard(number, (x for _, x in group), encode)
        return encoded, begun

    def _range(self, number: int) -> range:
        """The records of a shard."""
        start = number * self._size
        return range(start, min(start + self._size, len(self._records)))

    def _read(
        self, pool: ThreadPoolExecutor, numbers: Iterable[int], batch_size: int
    ) -> Iterator[tuple[int, Found]]:
        """(shard, what a record turned out to be), in order, some batches ahead."""
        ahead = self._config.data.prefetch * batch_size
        waiting: collections.deque = collections.deque()
        for number in numbers:
            for index in self._range(number):
                waiting.append((number, pool.submit(self._load, index)))
                if len(waiting) > ahead:
                    yield waiting[0][0], waiting.popleft()[1].result()
        for number, future in waiting:
            yield number, future.result()

    def _load(self, index: int) -> Found:
        """A record and its pixels: the centre, as nothing random would be stored."""
        try:
            record = self._records[index]
            if not any(record.captions + record.recaptions):
                raise BadRecord("missing_caption", record.name)
            image = self._transform.decode(record)
        except BadRecord as bad:
            return bad
        pixels = images.resize_and_crop(image, self._transform.image_size)
        return record._replace(image=None), pixels

    def _write_shard(
        self, number: int, found: Iterator[Found], encode: "Encode"
    ) -> int:
        """Writes a shard and what became of its records; how many it holds."""
        rejected: list[tuple[str, str]] = []

        def reject(reason: str, name: str) -> None:
            rejected.append((reason, name))
            self._rejects.add([(reason, name)], 0)

        kind = self._config.pretokenize.format
        path = self._folder / f"data-{number:05d}.{kind}"
        shards.remove_parts(path)  # of a run that was killed
        records, shard = self._encode(found, encode, reject), None
        for first in records:  # no file where there is none
            shard = shards.WRITERS[kind](path, itertools.chain([first], records))
        done = Done(len(self._range(number)) - len(rejected), rejected, shard)
        write_done(self._folder, number, done)
        return done.records

    def _encode(
        self, found: Iterator[Found], encode: "Encode", reject: Callable
    ) -> Iterator[Record]:
        """Records with their moments, in order.

        A batch is sent to the devices before the results of the one before are read.
        """
        running: tuple[Sequence[Record], Any] = (), ()
        for batch in self._batches(found, encode.batch_size, reject):
            records, pixels = zip(*batch, strict=True)
            started = records, encode(pixels)
            yield from _with_moments(*running, reject)
            running = started
        yield from _with_moments(*running, reject)

    def _batches(
        self, found: Iterator[Found], size: int, reject: Callable
    ) -> Iterator[list[tuple[Record, Pixels]]]:
        """What can be used, so many at a time."""
        batch = []
        for item in found:
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


def _with_moments(
    records: Sequence[Record], moments: Any, reject: Callable
) -> Iterator[Record]:
    """Records with the first rows of a batch of moments."""
    for record, row in zip(records, np.asarray(moments), strict=False):
        if np.isfinite(row).all():
            yield record._replace(moments=row)
        else:  # too large for float16, or the weights are broken
            reject("not_finite", record.name)


def moments_of(
    programs: Programs, params: Params, pixels: UInt8[Array, "b s s 3"]
) -> Float16[Array, "b n cc"]:
    """[mean | logvar] of images."""
    posterior = programs.encode(params, pixels.astype(jnp.float32) / 255)
    moments = jnp.concatenate([posterior.mean, posterior.logvar], axis=-1)
    return moments.astype(jnp.float16)


class Encode:
    """The tokenizer's encoder over this process's devices, compiled for a batch.

    A device always gets the same number of rows, whatever their number, and a record's
    row on its device depends on its place in the shard only: the same bits on one
    device and on eight.

    Args:
        rows: of a device.
    """

    def __init__(self, nets: Nets, params: Params, rows: int):
        devices, side = jax.local_devices(), nets.tokenizer.image_size
        mesh = make_mesh(data=-1, fsdp=1, tensor=1, devices=devices)
        self.batch_size, self._place = rows * len(devices), NamedSharding(mesh, ROWS)
        self._params = put({"tokenizer": params}, replicated(mesh))
        self._shape = self.batch_size, side, side, 3
        encode = in_mesh(mesh, functools.partial(moments_of, Programs(nets)))
        batch = jax.ShapeDtypeStruct(self._shape, np.uint8, sharding=self._place)
        encode = jax.jit(encode, out_shardings=self._place)
        self._encode = encode.lower(self._params, batch).compile()

    def __call__(self, pixels: Sequence[Pixels]) -> Float16[Array, "b n cc"]:
        """Moments of up to `batch_size` images, and rows more to fill the batch."""
        batch = np.zeros(self._shape, np.uint8)
        batch[: len(pixels)] = np.stack(pixels)
        return self._encode(self._params, jax.device_put(batch, self._place))


def _tell(folder: pathlib.Path, kind: str, result: dict[str, Any]) -> None:
    """A few lines for a person."""
    for reason, count in result["rejected"].items():
        names = ", ".join(result["first"][reason])
        logging.info("left out: %s %d (%s)", reason, count, names)
    logging.info(
        "%s: records %d, shards %d, checksums verified; train on them with "
        "--config.data.train='latents:%s/*.%s'",
        folder,
        result["records"],
        result["shards"],
        folder,
        kind,
    )


class _Progress:
    """Process 0's part: a bar on a terminal, else a line now and then."""

    def __init__(self, there: int, total: int):
        self._first = processes.is_first()
        self._bar = tqdm.tqdm(
            desc="pretokenize",
            initial=there,
            total=total,
            unit="image",
            disable=not (self._first and sys.stderr.isatty()),
        )
        self._seen, self._there, self._total = there, there, total
        self._begun = self._last_line = time.monotonic()

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()

    def watch(self, found: Iterable[Any]) -> Iterator[Any]:
        """The same, counted."""
        for item in found:
            yield item
            self._seen += 1
            self._bar.update()
            now = time.monotonic()
            if self._bar.disable and now - self._last_line > LINE_SECONDS:
                self._last_line = now
                speed = (self._seen - self._there) / (now - self._begun)
                progress = self._seen, self._total, speed
                logging.info("pretokenize %d/%d, %.0f images/s", *progress)
