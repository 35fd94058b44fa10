"""Images to the statistics that FID compares samples with, as an npz file.

    python -m flowtok_jax.eval.reference --images=coco/val2014 --out=coco.npz \\
        --weights=weights/metrics

IMAGES is a folder (all images in it, at any depth), a quoted glob, or a source of
training data (`tars:GLOB`, `karpathy:...`; see flowtok_jax/data/sources.py). Images
that cannot be read are counted by reason. The last line of stdout is one JSON object:
`images`, `rejected` (reason -> count) and `sha256` of the numbers. Exit status: 0; 2
for a mistake of the user's, with one line; 130 where interrupted.
"""

import argparse
import glob
import json
import logging
import os
import pathlib
import re
import sys
import threading
from collections.abc import Sequence

import jax
import numpy as np

from flowtok_jax.data import images, sources
from flowtok_jax.data.records import (
    REASONS,
    BadRecord,
    Joined,
    Record,
    Records,
    RejectCounter,
)
from flowtok_jax.eval.features import RESIZES, Extractor, Pixels
from flowtok_jax.eval.nets import load_metric_net
from flowtok_jax.eval.references import make_reference, write_reference
from flowtok_jax.runtime import cli, processes
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place, is_remote, to_place
from flowtok_jax.runtime.mesh import make_mesh


def make_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="python -m flowtok_jax.eval.reference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--images", metavar="IMAGES", help="folder, quoted glob, or source of data")
    add("--out", metavar="FILE.npz", help="file to write")
    add("--resize", default="clean", choices=RESIZES, help="how to come to 299 px")
    add("--weights", metavar="DIR", help="metric weights, see flowtok_jax.convert")
    add(
        "--size",
        type=int,
        default=0,
        metavar="S",
        help="first make squares of S px, as training does; 0: take images as they are",
    )
    add("--features", action="store_true", help="keep them: KID, precision and recall")
    add("--by_folder", action="store_true", help="also of each folder in IMAGES")
    add("--limit", type=int, default=0, metavar="N", help="the first N images only")
    add("--batch", type=int, default=32, help="images of a device at a time")
    add("--threads", type=int, default=8, help="that decode and resize")
    add("--coordinator", metavar="HOST:PORT", help="of process 0 of several")
    add("--num_processes", type=int)
    add("--process_id", type=int)
    add("--cluster_timeout", type=int, default=60, help="seconds to wait for others")
    return parser


class ImageFiles(Records):
    """Image files as records without captions."""

    def __init__(self, paths: Sequence[pathlib.Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Record:
        path = self.paths[index]
        try:
            return Record(str(path), image=path.read_bytes())
        except OSError as error:
            raise BadRecord("unreadable_file", str(path)) from error


def find_images(where: str, size: int) -> Records:
    """The images that a folder, a glob or a source string names, in a fixed order.

    Args:
        size: pixels of generated scenes.

    Raises:
        UserError: where there are none.
    """
    root = pathlib.Path(where)
    if re.split("[:,@]", where)[0] in sources.KINDS and not root.exists():
        parts = sources.parse(where)
        if any(part.kind == "latents" or part.weight is not None for part in parts):
            raise UserError(
                f"--images={where} has latents or weights; wanted images, each once"
            )
        options = {"image_size": size or 32, "seed": 0}
        return Joined([sources.make_records(part, **options) for part in parts])
    found = root.rglob("*") if root.is_dir() else map(pathlib.Path, glob.glob(where))
    paths = sorted(p for p in found if p.suffix[1:].lower() in images.EXTENSIONS)
    if not paths:
        raise UserError(
            f"--images={where} has no image; wanted a folder of them, a quoted glob "
            "such as 'photos/*.png', or a source such as tars:GLOB"
        )
    return ImageFiles(paths)


class Reader:
    """Decodes this process's images, and counts those that are broken."""

    def __init__(self, records: Records, size: int):
        self._records, self._size = records, size
        self.rejects, self._lock = RejectCounter(1.0), threading.Lock()

    def __call__(self, number: int) -> Pixels | None:
        try:
            record = self._records[number]
            image = images.decode(record.image, record.name)
        except BadRecord as bad:
            with self._lock:  # several threads read
                self.rejects.add([(bad.reason, bad.name)], 0)
            return None
        if self._size:
            return images.resize_and_crop(image, self._size)
        return np.asarray(image)

    def counts(self) -> dict[str, int]:
        """Of all processes, which have to ask together."""
        mine = np.array([self.rejects.counts[reason] for reason in REASONS])
        found = zip(REASONS, processes.total(mine).tolist(), strict=True)
        return {reason: count for reason, count in found if count}


def _folders(records: Records, where: str) -> list[str]:
    """The first folder below IMAGES of each file; "" where there is none."""
    if not (isinstance(records, ImageFiles) and pathlib.Path(where).is_dir()):
        raise UserError(f"--by_folder: --images={where} is no folder of images")
    inner = (path.relative_to(where).parts for path in records.paths)
    return [parts[0] if len(parts) > 1 else "" for parts in inner]


def _check(flags: argparse.Namespace) -> None:
    if not (flags.images and flags.out and flags.weights):
        raise UserError(
            "wanted --images=IMAGES, --out=FILE.npz and --weights=DIR with the weights "
            "of Inception; --help says what they are"
        )
    if flags.resize == "legacy" and flags.size < 1:
        raise UserError(
            "--resize=legacy needs images of one size; wanted --size=256, say, at "
            "which samples are compared"
        )
    for name, least in (("batch", 1), ("threads", 1), ("limit", 0), ("size", 0)):
        value = getattr(flags, name)
        if value < least:
            raise UserError(f"--{name} is {value}; wanted at least {least}")


def _check_out(out: Place) -> None:
    """Refuses, before any image is read, a place that cannot be written."""
    if is_remote(out):
        return
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if out.is_dir() or not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise UserError(f"--out={out} cannot be written; wanted a file, FILE.npz")


def make(flags: argparse.Namespace) -> dict:
    """Reads the images and writes the file; what to say at the end.

    Raises:
        UserError: for what cannot be; nothing is written then.
    """
    _check(flags)
    out = to_place(flags.out)
    processes.first_does(lambda: _check_out(out))
    records = find_images(flags.images, flags.size)
    names = _folders(records, flags.images) if flags.by_folder else None
    net = load_metric_net("inception", flags.weights)
    extract = Extractor(
        net,
        make_mesh(data=-1, fsdp=1, tensor=1),
        resize=flags.resize,
        rows=flags.batch,
        threads=flags.threads,
        side=flags.size,
    )
    reader = Reader(records, flags.size)
    reference = make_reference(
        extract,
        min(len(records), flags.limit or len(records)),
        reader,
        keeps_features=flags.features,
        group_of=names.__getitem__ if names else None,
    )
    rejected = reader.counts()
    if reader.rejects.counts:
        logging.warning("left out: %s", reader.rejects.describe())
    processes.first_does(lambda: write_reference(out, reference))
    said = {"images": reference.whole.count, "rejected": rejected}
    return {**said, "sha256": reference.digest()}


def main(argv: Sequence[str]) -> int:
    """Makes the statistics; a user's mistake ends in one line."""
    cli.set_up_logging()
    flags, status, complaint = make_parser().parse_args(argv), 2, ""
    try:
        processes.start(
            flags.coordinator,
            flags.num_processes,
            flags.process_id,
            flags.cluster_timeout,
        )
        said = make(flags)
    except UserError as error:
        complaint = f"error: {error}"
    except OSError as error:
        complaint = f"error: {flags.out} cannot be written: {error}"
    except KeyboardInterrupt:
        status, complaint = 130, "interrupted; nothing was written"
    if complaint:
        sys.stderr.write(f"{complaint}\n")
        sys.stderr.flush()
        if jax.distributed.is_initialized():  # at exit JAX would wait for the others
            os._exit(status)
        return status
    if processes.is_first():
        sys.stdout.write(f"{json.dumps(said)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
