"""--mode=sample: one PNG file a prompt, and a captioned grid of them.

    python -m flowtok_jax.main --mode=sample --checkpoint=runs/demo \\
        --prompts="a red circle at the top left;a blue square at the top right"

Pictures go to samples/ of --workdir, else of the weights.
"""

import logging
import pathlib
import re
from collections.abc import Sequence

from flowtok_jax.eval import pictures
from flowtok_jax.eval.previews import RANDOM_TOWER
from flowtok_jax.modes.arguments import Arguments
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.cli import say
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place, check_writable
from flowtok_jax.weights.place import Weights
from flowtok_jax.weights.workdir import SAMPLES

COLUMNS = 6  # columns of the grid
GRID = "grid.png"


def run(arguments: Arguments) -> int:
    """Draws every prompt, and says the paths of the files."""
    flags = arguments.flags
    prompts = split_prompts(flags.prompts, flags.prompts_file)
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


def split_prompts(prompts: str | None, prompts_file: str | None) -> list[str]:
    """Splits prompts at `;`, or reads a file with one a line.

    Raises:
        UserError: where there is no prompt, or the file cannot be read.
    """
    if prompts and prompts_file:
        raise UserError("--prompts and --prompts_file are both given; give one of them")
    if prompts_file:
        try:
            text = pathlib.Path(prompts_file).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--prompts_file={prompts_file} cannot be read ({error}); expected a "
                "text file with one prompt a line"
            ) from error
        found = text.splitlines()
    else:
        found = (prompts or "").split(";")
    found = [p.strip() for p in found if p.strip()]
    if not found:
        raise UserError(
            "no prompts; expected --prompts='a red circle at the top left;...' or "
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
    """Writes one PNG a prompt and a captioned grid.

    Args:
        footer: a line below the grid.

    Returns:
        The paths written, the grid last.
    """
    images = pictures.to_uint8(flowtok.text_to_image(prompts, seed))
    paths = []
    for i, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
        slug = re.sub(r"[^a-z0-9]+", "_", prompt.lower()).strip("_")[:60]
        paths.append(folder / f"{i:04d}_{slug}.png")
        pictures.save_png(paths[-1], image)
    rows, captions = (pictures.in_rows(x, COLUMNS) for x in (images, prompts))
    side = max(128, min(256, images.shape[1]))
    paths.append(folder / GRID)
    pictures.save_png(
        paths[-1], pictures.grid(rows, captions, side=side, footer=footer)
    )
    return paths
