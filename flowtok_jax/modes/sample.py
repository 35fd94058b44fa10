"""The verbs that use trained weights: prompts to PNG files, image files to captions."""

import glob
import json
import logging
import pathlib
import re
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from flowtok_jax.eval import pictures
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place

COLUMNS = 6  # of a grid


def split_prompts(prompts: str | None, prompts_file: str | None) -> list[str]:
    """Prompts of a `;`-separated string or of a file with one a line.

    Raises:
        UserError: where there is none, or the file cannot be read.
    """
    if prompts and prompts_file:
        raise UserError("--prompts and --prompts_file are both given; give one of them")
    if prompts_file:
        try:
            text = pathlib.Path(prompts_file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--prompts_file={prompts_file} cannot be read ({error}); wanted a "
                "text file with one prompt a line"
            ) from error
        found = text.splitlines()
    else:
        found = (prompts or "").split(";")
    found = [p.strip() for p in found if p.strip()]
    if not found:
        raise UserError(
            "no prompts; wanted --prompts='a red circle at the top left;...' or "
            "--prompts_file=FILE with one a line"
        )
    return found


def sample(
    flowtok: FlowTok,
    prompts: Sequence[str],
    folder: Place,
    seed: int,
    footer: str = "",
) -> list[Place]:
    """One PNG a prompt and a captioned grid; the paths written, the grid last.

    Args:
        footer: a line below the grid.
    """
    images = pictures.to_uint8(flowtok.text_to_image(prompts, seed))
    paths = []
    for i, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        slug = re.sub(r"[^a-z0-9]+", "_", prompt.lower()).strip("_")[:60]
        paths.append(folder / f"{i:04d}_{slug}.png")
        pictures.save_png(paths[-1], image)
    starts = range(0, len(prompts), COLUMNS)
    rows = [list(images[i : i + COLUMNS]) for i in starts]
    captions = [list(prompts[i : i + COLUMNS]) for i in starts]
    side = max(128, min(256, images.shape[1]))
    paths.append(folder / "grid.png")
    pictures.save_png(
        paths[-1], pictures.grid(rows, captions, side=side, footer=footer)
    )
    return paths


def read_image(path: pathlib.Path, side: int) -> np.ndarray:
    """An image file as RGB [side, side, 3] in [0, 1]: shorter side resized, centre cut.

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
    """Says one caption an image file, and returns how many files could not be read.

    Raises:
        UserError: where no file matches the pattern.
    """
    found = [pattern, *glob.glob(pattern, recursive=True)]
    paths = sorted({p for p in map(pathlib.Path, found) if p.is_file()})
    if not paths:
        raise UserError(
            f"--images={pattern} matches no file; wanted a path or a quoted glob such "
            "as 'photos/*.png'"
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
