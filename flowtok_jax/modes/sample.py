"""--mode=sample: one PNG file a prompt, and a captioned grid of them.

    python -m flowtok_jax.main --mode=sample --checkpoint=runs/demo \\
        --prompts="a red circle at the top left;a blue square at the top right"

Pictures go to samples/ of --workdir, else of the weights.
"""

import logging
import re
import unicodedata
from collections.abc import Sequence

from flowtok_jax.eval import pictures
from flowtok_jax.eval.previews import RANDOM_TOWER
from flowtok_jax.modes.arguments import Arguments
from flowtok_jax.modes.prompts import collect_prompts
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.batches import long_slices
from flowtok_jax.runtime.cli import say
from flowtok_jax.runtime.files import Place, check_writable, is_remote
from flowtok_jax.weights.place import Weights
from flowtok_jax.weights.workdir import SAMPLES

COLUMNS = 6  # columns of the grid
GRID = "grid.png"
SHOWN = 96  # images that the grid has at most
SLICE = 8  # batches whose images are held at once


def run(arguments: Arguments) -> int:
    """Draws every prompt, and says the paths of the files."""
    flags = arguments.flags
    prompts = collect_prompts(flags.prompt, flags.prompts, flags.prompts_file)
    config = arguments.weights_config()
    folder = arguments.output() / SAMPLES
    check_writable(folder / GRID)
    flowtok = FlowTok.from_weights(arguments.weights, config)
    note = random_tower_note(arguments.weights)
    for path in sample(flowtok, prompts, folder, flags.seed, note):
        say(str(path))
    if note:
        logging.info(note)
    return 0


def random_tower_note(weights: Weights) -> str:
    """Returns what to say of weights whose text tower was never trained, else ""."""
    stored = weights.config
    is_random = "text" in stored and stored.text.weights == "random"
    return RANDOM_TOWER if is_random else ""


def _file_name(number: int, prompt: str) -> str:
    """Returns the name of a sample's file: its number and ASCII letters of the prompt.

    The number alone makes names differ, so that any prompt has a file of its own.
    """
    # An accent becomes a character of its own, and is dropped.
    parts = unicodedata.normalize("NFKD", prompt.lower())
    letters = "".join(c for c in parts if not unicodedata.combining(c))
    slug = re.sub(r"[^a-z0-9]+", "_", letters).strip("_")[:60]
    return f"{number:04d}_{slug}.png" if slug else f"{number:04d}.png"


def sample(
    flowtok: FlowTok,
    prompts: Sequence[str],
    folder: Place,
    seed: int,
    footer: str = "",
) -> list[Place]:
    """Writes one PNG a prompt, and a captioned grid of the first ones.

    Args:
        footer: a line below the grid.

    Returns:
        The paths written, the grid last.
    """
    paths = [folder / _file_name(i, p) for i, p in enumerate(prompts)]
    paths.append(folder / GRID)
    # Of a store each answer would take a while.
    before = [] if is_remote(folder) else [path for path in paths if path.exists()]
    if before:
        logging.info(
            "%d pictures of an earlier run in %s are replaced; --workdir=DIR writes "
            "elsewhere",
            len(before),
            folder,
        )
    shown = []
    for rows in long_slices(len(prompts), SLICE * flowtok.sample.batch_size):
        drawn = flowtok.text_to_image(prompts[rows], seed, rows.start)
        images = pictures.to_uint8(drawn)
        for path, image in zip(paths[rows], images, strict=True):
            pictures.save_png(path, image)
        shown += list(images[: SHOWN - len(shown)])
    if len(prompts) > SHOWN:
        logging.info("%s shows the first %d of %d", GRID, SHOWN, len(prompts))
    tiles, captions = (pictures.in_rows(x, COLUMNS) for x in (shown, prompts[:SHOWN]))
    side = max(128, min(256, shown[0].shape[0]))
    pictures.save_png(
        paths[-1], pictures.grid(tiles, captions, side=side, footer=footer)
    )
    return paths
