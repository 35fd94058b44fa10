"""Statistics of real images that samples are compared with, made by the command

    python -m flowtok_jax.eval.reference --images=coco/val2014 --out=coco.npz \\
        --weights=weights/metrics

IMAGES is a folder (all images in it, at any depth), a quoted glob, or a source of
training data (`tars:GLOB`, `karpathy:...`; see flowtok_jax/data/source_strings.py).
Images that cannot be read are left out and counted by reason; where they are more than
the share --max_rejected nothing is written. Statistics that published numbers rest on
are of all images: --max_rejected=0. The last line of stdout is one JSON object:
`images`, `rejected` (reason -> count) and `sha256` of the numbers. Exit status: 0; 2
for a mistake of the user's, with one line; 130 where interrupted. The file has

    mu, sigma        mean and covariance, as in the files of pytorch-fid and clean-fid
    n                number of images
    resize, net      how they came to 299 px; SHA-256 of Inception's weights
    features         one row an image; KID, precision and recall need them
    mu/G, sigma/G, n/G   of the images of group G

Files of others are read too: see flowtok_jax/eval/reference_file.py.
"""

import argparse
import itertools
import json
import logging
import pathlib
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flowtok_jax.data import globs, images
from flowtok_jax.data.captions import CaptionOptions
from flowtok_jax.data.centre import CentreReader, ImageFiles, open_images
from flowtok_jax.data.listing import Listing
from flowtok_jax.data.records import (
    REASONS,
    BadRecord,
    Record,
    Records,
    RejectCounter,
)
from flowtok_jax.data.source_strings import KINDS
from flowtok_jax.eval.features import RESIZES, Extractor, Pixels
from flowtok_jax.eval.fid import Gaussian, Moments, Reference
from flowtok_jax.eval.reference_file import write_reference
from flowtok_jax.runtime import cli, processes
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place, check_writable, is_remote, to_place
from flowtok_jax.runtime.mesh import make_mesh
from flowtok_jax.weights.nets import load_metric_net

BLOCK = 2048  # images between two updates of the moments


def make_reference(
    extract: Extractor,
    count: int,
    load: Callable[[int], Pixels | None],
    *,
    keeps_features: bool,
    group_of: Callable[[int], str] | None = None,
) -> Reference:
    """Computes statistics of `count` images; all processes have to call it together.

    Args:
        load: image i, or None where it is broken.
        group_of: the group of image i; "" for none.

    Raises:
        UserError: if fewer than 2 images are left.
    """
    whole = Moments()
    groups: dict[str, Moments] = {}
    features = []
    # Features of a million images would not fit: moments are kept, block by block.
    for start in range(0, count, BLOCK):
        found = extract(min(BLOCK, count - start), lambda i, s=start: load(s + i))
        whole = whole.add(found.pool)
        if keeps_features:
            features.append(found.pool)
        names = np.array([group_of(start + i) if group_of else "" for i in found.rows])
        for name in sorted(set(names.tolist()) - {""}):
            part = found.pool[names == name]
            groups[name] = groups.get(name, Moments()).add(part)
        if start + BLOCK < count:
            logging.info("reference: %d of %d images", start + BLOCK, count)
    few = {name: x.count for name, x in {"": whole, **groups}.items() if x.count < 2}
    if few:
        name, left = next(iter(few.items()))
        raise UserError(
            f"{left} images that can be read{f' in group {name}' if name else ''}; "
            "statistics need 2 at least, and a few thousand to mean something"
        )
    return Reference(
        Gaussian.of(whole),
        {name: Gaussian.of(part) for name, part in sorted(groups.items())},
        np.concatenate(features) if keeps_features else None,
        extract.resize,
        extract.net_sha256,
    )


def _make_parser() -> argparse.ArgumentParser:
    parser = cli.make_command_parser("flowtok_jax.eval.reference", __doc__)
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
    add(
        "--max_rejected",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="of the images that may be broken",
    )
    add("--batch", type=int, default=32, help="images of a device at a time")
    add("--threads", type=int, default=8, help="that decode and resize")
    cli.add_cluster_arguments(parser)
    return parser


def find_images(where: str, size: int) -> Records:
    """Finds the images of a folder, a glob or a source string, in a fixed order.

    Args:
        size: pixels of generated scenes.

    Raises:
        UserError: if there are none.
    """
    # A folder may be called "shapes": what exists wins over a source's name.
    found = list(map(pathlib.Path, globs.find_paths(where)))
    if not found and re.split("[:,@]", where)[0].strip() in KINDS:
        return open_images(where, key="--images", image_size=size or 32, seed=0)
    paths = [path for path in found if path.suffix[1:].lower() in images.EXTENSIONS]
    if len(found) == 1 and found[0].is_dir():
        groups = Listing(found[0], CaptionOptions()).groups.values()
        files = itertools.chain.from_iterable(groups)
        # A format that cannot be decoded is rejected by name, and counted.
        paths = [file.path for file in files if file.kind in ("image", "picture")]
    if not paths:
        raise UserError(
            f"--images={where} has no image; expected a folder of them, a quoted glob "
            "such as 'photos/*.png', or a source such as tars:GLOB"
        )
    return ImageFiles(sorted(paths))


class ImageReader:
    """A function of a number to its image, which counts those that are broken.

    Args:
        size: pixels to which the centre is resized; 0: images as they are.
    """

    def __init__(self, records: Records, size: int):
        self._records = records
        self._read = CentreReader(size) if size else _whole
        self.rejects = RejectCounter(1.0)
        self._lock = threading.Lock()  # several threads read

    def __call__(self, number: int) -> Pixels | None:
        try:
            return self._read(self._records[number])
        except BadRecord as bad:
            with self._lock:
                self.rejects.add([(bad.reason, bad.name)], 0)
            return None

    def counts(self) -> dict[str, int]:
        """Counts the broken images of all processes, which have to ask together."""
        return processes.total_counts(self.rejects.counts, REASONS)


def _whole(record: Record) -> Pixels:
    return np.asarray(images.decode(record.image, record.name))


def _folders(records: Records, where: str) -> list[str]:
    found = globs.find_paths(where)
    if not (isinstance(records, ImageFiles) and pathlib.Path(*found[:1]).is_dir()):
        raise UserError(f"--by_folder: --images={where} is no folder of images")
    inner = (path.relative_to(found[0]).parts for path in records.paths)
    return [parts[0] if len(parts) > 1 else "" for parts in inner]


def _check(flags: argparse.Namespace) -> None:
    if not (flags.images and flags.out and flags.weights):
        raise UserError(
            "expected --images=IMAGES, --out=FILE.npz and --weights=DIR with the "
            "weights of Inception; --help says what they are"
        )
    if flags.resize == "legacy" and flags.size < 1:
        raise UserError(
            "--resize=legacy needs images of one size; expected --size=256, say, at "
            "which samples are compared"
        )
    for name, least in (
        ("batch", 1),
        ("threads", 1),
        ("limit", 0),
        ("size", 0),
        ("max_rejected", 0),
    ):
        value = getattr(flags, name)
        if not value >= least:  # so is NaN refused
            raise UserError(f"--{name} is {value}; expected at least {least}")


def _check_out(out: Place) -> None:
    """Refuses a place that cannot be written, before any image is read."""
    if not is_remote(out) and out.is_dir():
        raise UserError(f"--out={out} is a directory; expected a file, FILE.npz")
    check_writable(out)


def _check_share(rejected: Mapping[str, int], images: int, most: float) -> None:
    """Refuses images of which too many are broken; the counts are of all processes."""
    broken = sum(rejected.values())
    if broken > most * (broken + images):
        reasons = ", ".join(f"{reason} {count}" for reason, count in rejected.items())
        raise UserError(
            f"{broken} of {broken + images} images are broken ({reasons}); at most "
            f"{most:g} of them may be: mend them, or allow more with --max_rejected"
        )


def make(flags: argparse.Namespace) -> dict:
    """Reads the images, writes the file, and returns what to say at the end.

    Raises:
        UserError: for flags that do not fit; nothing is written then.
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
    reader = ImageReader(records, flags.size)
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
    _check_share(rejected, reference.whole.count, flags.max_rejected)
    processes.first_does(lambda: write_reference(out, reference))
    said = {"images": reference.whole.count, "rejected": rejected}
    return {**said, "sha256": reference.digest()}


def main(argv: Sequence[str]) -> int:
    """Makes the statistics; a user's mistake ends in one line."""
    flags = _make_parser().parse_args(argv)

    def command() -> None:
        cli.join_processes(flags)
        said = make(flags)
        if processes.is_first():
            cli.say(json.dumps(said))

    return cli.run_command(command, "interrupted; nothing was written")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
