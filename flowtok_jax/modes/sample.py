"""--mode=sample: PNG files of prompts, and a captioned grid of them.

    python -m flowtok_jax.main --mode=sample --checkpoint=runs/demo --num_images=4 \\
        --prompts="a red circle at the top left;a blue square at the top right"

Each call has a new folder, samples/NUMBER/ of --workdir, else of the weights. Images of
a prompt have the seeds --seed, --seed + 1, ...; a name has its prompt's number and its
seed, and the same prompts with that --seed alone draw the same files. A file says how
it was drawn, and --from-image=PNG draws it again.
"""

import contextlib
import itertools
import logging
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from flowtok_jax.eval import pictures
from flowtok_jax.eval.previews import RANDOM_TOWER
from flowtok_jax.modes.arguments import Arguments
from flowtok_jax.modes.prompts import collect_prompts
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.pipeline.recipe import read_recipe
from flowtok_jax.runtime.batches import long_slices
from flowtok_jax.runtime.cli import say
from flowtok_jax.runtime.config import choose_seeds
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place, check_writable, is_remote, writing
from flowtok_jax.weights.place import Weights
from flowtok_jax.weights.workdir import SAMPLES

COLUMNS = 6  # columns of the grid
GRID = "grid.png"
LINES = 6  # of a caption in the grid
SHOWN = 96  # images that the grid has at most
SLICE = 8  # batches whose images are held at once


def run(arguments: Arguments) -> int:
    """Draws every prompt, and says the paths of the files."""
    flags = arguments.flags
    if flags.from_image:
        return _run_again(arguments)
    prompts = collect_prompts(flags.prompt, flags.prompts, flags.prompts_file)
    seeds = choose_seeds(flags.seed, flags.num_images)
    config = arguments.weights_config()
    folder = arguments.output() / SAMPLES
    check_writable(folder / GRID)
    flowtok = FlowTok.from_weights(arguments.weights, config)
    has_own = flowtok.nets.clip.trained_along  # to draw with
    note = "" if has_own else random_tower_note(arguments.weights)
    for path in sample(flowtok, prompts, new_folder(folder), seeds, note):
        say(str(path))
    if note:
        logging.info(note)
    return 0


def _run_again(arguments: Arguments) -> int:
    """Draws the pictures of --from_image again, under their names."""
    flags = arguments.flags
    if flags.prompt or flags.prompts or flags.prompts_file:
        raise UserError(
            "--from-image and prompts are both given; expected one of them: the image "
            "says its own prompt"
        )
    # Before the weights are loaded: most mistakes are in the file.
    recipes = [read_recipe(path) for path in flags.from_image]
    config = arguments.weights_config()
    folder = arguments.output() / SAMPLES
    check_writable(folder / GRID)
    flowtok = FlowTok.from_weights(arguments.weights, config)
    drawn = [flowtok.redraw(recipe) for recipe in recipes]
    place = new_folder(folder)
    for i, (recipe, picture) in enumerate(zip(recipes, drawn, strict=True)):
        path = place / _file_name(i, recipe.prompt, recipe.seed)
        pictures.save_png(path, np.asarray(picture), picture.text)
        say(str(path))
    return 0


def new_folder(parent: Place) -> Place:
    """Makes the next numbered folder, parent/0001 and so on.

    On a store nothing is made, and two calls at the same moment choose the same number.
    """
    numbers = [0]
    if parent.exists():
        numbers += [int(p.name) for p in parent.iterdir() if p.name.isdecimal()]
    number = max(numbers)
    while True:
        number += 1
        folder = parent / f"{number:04d}"
        if is_remote(folder):
            return folder
        # Another call may have taken the number since.
        with writing(folder), contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder


def random_tower_note(weights: Weights) -> str:
    """Returns what to say of weights whose text tower was never trained, else ""."""
    stored = weights.config
    is_random = "text" in stored and stored.text.weights == "random"
    return RANDOM_TOWER if is_random else ""


def _file_name(number: int, prompt: str, seed: int) -> str:
    """Returns the name of a sample's file: its prompt's number, ASCII letters of the
    prompt, and the seed.

    Number and seed make names differ, so that any prompt has files of its own.
    """
    # An accent becomes a character of its own, and is dropped.
    parts = unicodedata.normalize("NFKD", prompt.lower())
    letters = "".join(c for c in parts if not unicodedata.combining(c))
    slug = re.sub(r"[^a-z0-9]+", "_", letters).strip("_")[:60]
    return "_".join(filter(None, (f"{number:04d}", slug, f"seed{seed}"))) + ".png"


def sample(
    flowtok: FlowTok,
    prompts: Sequence[str],
    folder: Place,
    seeds: range = range(1),  # noqa: B008 - immutable
    footer: str = "",
) -> list[Place]:
    """Writes a PNG a prompt and seed, and a captioned grid of the first ones.

    Args:
        seeds: of the images of a prompt, one after the other.
        footer: a line below the grid.

    Returns:
        The paths written, prompt by prompt, the grid last.
    """
    images = list(itertools.product(range(len(prompts)), seeds))
    paths = {(i, s): folder / _file_name(i, prompts[i], s) for i, s in images}
    in_grid = set(images[:SHOWN])
    shown = {}
    batch = flowtok.sample.batch_size
    together = [seeds[k : k + SLICE] for k in range(0, len(seeds), SLICE)]
    slices = long_slices(len(prompts), batch * max(1, SLICE // len(seeds)))
    for rows, some in itertools.product(slices, together):
        call = (prompts[rows], some[0], rows.start, len(some))
        drawn = flowtok.with_recipes(flowtok.text_to_image(*call), *call)
        made = itertools.product(range(len(prompts))[rows], some)
        for image, picture in zip(made, drawn, strict=True):
            pixels = np.asarray(picture)
            pictures.save_png(paths[image], pixels, picture.text)
            if image in in_grid:
                shown[image] = pixels
    if len(paths) > SHOWN:
        logging.info("%s shows the first %d of %d", GRID, SHOWN, len(paths))
    pictures.save_png(folder / GRID, _draw_grid(shown, prompts, len(seeds), footer))
    return [*paths.values(), folder / GRID]


def _draw_grid(
    shown: dict[tuple[int, int], np.ndarray],
    prompts: Sequence[str],
    num_images: int,
    footer: str,
) -> np.ndarray:
    """Draws images by prompt's number and seed; each of several says its seed."""
    # Images of one prompt stand in rows of their own.
    size = COLUMNS if num_images == 1 else num_images
    tiles = []
    captions = []
    for i, seed in sorted(shown):
        tiles.append(shown[i, seed])
        text = prompts[i]
        if num_images > 1:
            is_first = len(captions) % num_images == 0
            text = f"seed {seed}: {text}" if is_first else f"seed {seed}"
        captions.append(text)
    rows, texts = (
        [
            row
            for group in pictures.in_rows(items, size)
            for row in pictures.in_rows(group, COLUMNS)
        ]
        for items in (tiles, captions)
    )
    side = max(128, min(256, tiles[0].shape[0]))
    return pictures.grid(rows, texts, side=side, footer=footer, max_lines=LINES)
