"""--mode=caption: one line a captioned image file.

python -m flowtok_jax.main --mode=caption --checkpoint=runs/demo --images="*.png"
"""

import glob
import json
import logging
import pathlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from flowtok_jax.modes.arguments import Arguments
from flowtok_jax.modes.sample import random_tower_note
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.cli import say
from flowtok_jax.runtime.errors import UserError


def run(arguments: Arguments) -> int:
    """Describes every image file, and returns 1 where some could not be read."""
    flags = arguments.flags
    if not flags.images:
        raise UserError("no images named; expected --images='photos/*.png'")
    config = arguments.weights_config()
    place = arguments.weights()
    flowtok = FlowTok.from_pretrained(place, config)
    failed = caption(flowtok, flags.images, flags.seed, flags.json, say)
    if note := random_tower_note(place):
        logging.info(note)
    return 1 if failed else 0


def read_image(path: pathlib.Path, side: int) -> np.ndarray:
    """Reads an image file as RGB [side, side, 3] in [0, 1], its centre cut out.

    Raises:
        Exception: of several kinds, where it is no readable image.
    """
    with Image.open(path) as file:
        image = file
        if file.mode.startswith("I"):  # 16 bits a pixel: `convert` would clip at 255
            image = Image.fromarray((np.asarray(file) // 257).astype(np.uint8))
        image = image.convert("RGB")
    scale = side / min(image.size)
    if scale != 1:
        size = [max(side, round(length * scale)) for length in image.size]
        image = image.resize(size, Image.BICUBIC)
    left, top = ((length - side) // 2 for length in image.size)
    return np.asarray(image.crop((left, top, left + side, top + side))) / 255.0


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
    found = [pattern, *glob.glob(pattern, recursive=True)]
    paths = sorted({p for p in map(pathlib.Path, found) if p.is_file()})
    if not paths:
        raise UserError(
            f"--images={pattern} matches no file; expected a path or a quoted glob "
            "such as 'photos/*.png'"
        )
    side = flowtok.nets.tokenizer.image_size
    readable, images, failed = [], [], 0
    for path in paths:
        try:
            images.append(read_image(path, side))
            readable.append(path)
        except Exception as error:  # a broken file makes a decoder raise anything
            failed += 1
            logging.error("%s is not a readable image: %s", path, error)
    captions = flowtok.image_to_text(np.stack(images), seed) if images else []
    for path, text in zip(readable, captions, strict=True):
        line = {"file": str(path), "caption": text}
        say(json.dumps(line) if as_json else f"{path}: {text}")
    if failed:
        logging.error("%d of %d files could not be read", failed, len(paths))
    return failed
