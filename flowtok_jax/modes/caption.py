"""--mode=caption: one line a captioned image file.

    python -m flowtok_jax.main --mode=caption --checkpoint=runs/demo --images="*.png"

--images is a file, a folder or a quoted glob, and may be given several times. Files
that cannot be read are named, and the exit status is then 1.
"""

import json
import logging
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from flowtok_jax.data.centre import CentreReader, file_record
from flowtok_jax.data.globs import find_paths
from flowtok_jax.data.images import EXTENSIONS
from flowtok_jax.data.records import BadRecord, printable
from flowtok_jax.modes.arguments import Arguments
from flowtok_jax.modes.sample import SLICE, random_tower_note
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.batches import long_slices
from flowtok_jax.runtime.cli import say
from flowtok_jax.runtime.errors import UserError


def run(arguments: Arguments) -> int:
    """Describes every image file, and returns 1 where some could not be read."""
    flags = arguments.flags
    if not flags.images:
        raise UserError("no images named; expected --images=photos")
    config = arguments.weights_config()
    flowtok = FlowTok.from_weights(arguments.weights, config)
    failed = caption(flowtok, flags.images, flags.seed, flags.json, say)
    if note := random_tower_note(arguments.weights):
        logging.info(note)
    return 1 if failed else 0


def find_pictures(patterns: Sequence[str]) -> list[pathlib.Path]:
    """Finds the files that globs match, each once, and the images in folders.

    Raises:
        UserError: where a pattern matches none.
    """
    return list(dict.fromkeys(path for p in patterns for path in _matching(p)))


def _matching(pattern: str) -> list[pathlib.Path]:
    """Finds the files that a glob matches, or the images in the one folder it matches.

    Raises:
        UserError: where there are none.
    """
    found = list(map(pathlib.Path, find_paths(pattern)))
    if len(found) == 1 and found[0].is_dir():
        (folder,) = found
        # Beside images there are captions, and what systems leave, such as ._a.png.
        found = sorted(
            path
            for path in folder.iterdir()
            if path.suffix[1:].lower() in EXTENSIONS and path.name[0] != "."
        )
    paths = [path for path in found if path.is_file()]
    if not paths:
        raise UserError(
            f"--images={printable(pattern)} matches no file; expected an image, a "
            "folder with images in it, or a quoted glob such as 'photos/*/*.png'"
        )
    return paths


def caption(
    flowtok: FlowTok,
    patterns: Sequence[str],
    seed: int,
    as_json: bool,
    say: Callable[[str], None],
) -> int:
    """Says one caption an image file, and counts those that could not be read.

    Raises:
        UserError: where no file matches a pattern.
    """
    paths = find_pictures(patterns)
    centre = CentreReader(flowtok.nets.tokenizer.image_size)
    done = 0
    failed = 0
    for rows in long_slices(len(paths), SLICE * flowtok.caption.batch_size):
        readable = []
        images = []
        for path in paths[rows]:
            try:
                images.append(centre(file_record(path)))
                readable.append(path)
            except BadRecord as bad:
                failed += 1
                shown = printable(str(path))
                logging.error("%s is not a readable image: %s", shown, bad.reason)
        captions = []
        if images:
            pixels = np.stack(images).astype(np.float32) / 255
            captions = flowtok.image_to_text(pixels, seed, done)
        done += len(images)
        for path, text in zip(readable, captions, strict=True):
            line = {"file": str(path), "caption": text}
            say(json.dumps(line) if as_json else f"{printable(str(path))}: {text}")
    if failed:
        logging.error("%d of %d files could not be read", failed, len(paths))
    return failed
