"""--mode=caption: one line a captioned image file.

    python -m flowtok_jax.main --mode=caption --checkpoint=runs/demo --images="*.png"

Files that cannot be read are named, and the exit status is then 1.
"""

import json
import logging
import os
import pathlib
from collections.abc import Callable

import numpy as np

from flowtok_jax.data.centre import CentreReader, file_record
from flowtok_jax.data.globs import find_paths
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
        raise UserError("no images named; expected --images='photos/*.png'")
    config = arguments.weights_config()
    flowtok = FlowTok.from_weights(arguments.weights, config)
    failed = caption(flowtok, flags.images, flags.seed, flags.json, say)
    if note := random_tower_note(arguments.weights):
        logging.info(note)
    return 1 if failed else 0


def caption(
    flowtok: FlowTok,
    pattern: str,
    seed: int,
    as_json: bool,
    say: Callable[[str], None],
) -> int:
    """Says one caption an image file, and counts those that could not be read.

    Raises:
        UserError: where no file matches the pattern.
    """
    found = find_paths(pattern)
    paths = [path for path in map(pathlib.Path, found) if path.is_file()]
    if not paths:
        folder = found[0] if any(map(os.path.isdir, found)) else "photos"
        raise UserError(
            f"--images={printable(pattern)} matches no file; expected a path or a "
            f"quoted glob such as '{printable(folder)}/*.png'"
        )
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
