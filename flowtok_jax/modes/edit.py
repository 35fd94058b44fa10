"""--mode=edit: strips of edited pictures, each with a number that says how it holds.

    python -m flowtok_jax.main --mode=edit --checkpoint=runs/demo --edit=edit \\
        --images=a.png --before="a red circle at the top left" \\
        --after="a blue circle at the top left"

Each call has a new folder, edits/NUMBER/ of --workdir, else of the weights: strip.png,
the pictures of it by row and column, and edit.json with captions and numbers.
"""

from collections.abc import Callable
from typing import Any

from flowtok_jax.data.inputs import to_uint8
from flowtok_jax.eval import pictures
from flowtok_jax.modes.arguments import Arguments
from flowtok_jax.modes.caption import find_pictures
from flowtok_jax.modes.prompts import collect_prompts
from flowtok_jax.modes.sample import LINES, new_folder
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.pipeline.editing import Strips
from flowtok_jax.runtime.cli import say
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place, check_writable, write_json

EDITS = "edits"
STRIP = "strip.png"
NUMBERS = "edit.json"
OPTIONS = ("solver", "num_steps", "scale")  # flags that are options of all edits


def run(arguments: Arguments) -> int:
    """Makes the edit that --edit names, and says the paths of the files."""
    flags = arguments.flags
    make = EDIT_KINDS[flags.edit]
    config = arguments.weights_config()
    folder = arguments.output() / EDITS
    check_writable(folder / STRIP)
    flowtok = FlowTok.from_weights(arguments.weights, config)
    given = {name: flags[name].value for name in OPTIONS}
    options = {name: value for name, value in given.items() if value is not None}
    for path in write_strips(make(flowtok, flags, options), new_folder(folder)):
        say(str(path))
    return 0


def write_strips(strips: Strips, folder: Place) -> list[Place]:
    """Writes strips as one picture, their pictures, and their numbers.

    Returns:
        The paths written, the strip first.
    """
    rows = [list(to_uint8(row)) for row in strips.images]
    # As small as in other grids, or up to twice as large.
    footer = "; ".join(f"{value:.3g}" for value in strips.values)
    side = max(pictures.SIDE, min(2 * pictures.SIDE, rows[0][0].shape[0]))
    whole = pictures.grid(
        rows,
        strips.captions,
        side=side,
        footer=f"{strips.measure}: {footer}",
        max_lines=LINES,
    )
    pictures.save_png(folder / STRIP, whole)
    paths = [folder / STRIP]
    for i, row in enumerate(rows):
        for k, pixels in enumerate(row):
            paths.append(folder / f"{i:04d}_{k:02d}.png")
            pictures.save_png(paths[-1], pixels)
    numbers = {"measure": strips.measure, "values": [float(v) for v in strips.values]}
    write_json(folder / NUMBERS, numbers | {"captions": strips.captions})
    return [*paths, folder / NUMBERS]


def _images(flags: Any) -> list[str]:
    if not flags.images:
        raise UserError(f"--edit={flags.edit} has no images; expected --images=a.png")
    return [str(path) for path in find_pictures(flags.images)]


def _prompts(flags: Any) -> list[str]:
    return collect_prompts(flags.prompt, flags.prompts, flags.prompts_file)


def _strength(flags: Any) -> dict[str, float]:
    return {} if flags.strength is None else {"strength": flags.strength}


def _interpolate(flowtok: FlowTok, flags: Any, options: dict[str, Any]) -> Strips:
    # By the flag's name: the method calls it `steps`.
    if flags.columns < 2:
        raise UserError(f"--columns={flags.columns}; expected at least 2, the ends")
    images = _images(flags) if flags.images else None
    is_given = flags.prompt or flags.prompts or flags.prompts_file
    # Without images prompts are a must, and what lacks is said.
    prompts = _prompts(flags) if is_given or images is None else None
    return flowtok.interpolate(
        prompts, images, steps=flags.columns, seed=flags.seed, **options
    )


def _vary(flowtok: FlowTok, flags: Any, options: dict[str, Any]) -> Strips:
    run = {"seed": flags.seed, "num_images": flags.num_images}
    return flowtok.vary(
        _images(flags), flags.before, **run, **_strength(flags), **options
    )


def _invert(flowtok: FlowTok, flags: Any, options: dict[str, Any]) -> Strips:
    return flowtok.invert(_images(flags), flags.before, **options)


def _edit(flowtok: FlowTok, flags: Any, options: dict[str, Any]) -> Strips:
    if not flags.after:
        # Before the images are read and the weights used.
        raise UserError("no caption to edit to; expected --after='a blue circle'")
    captions = flags.before, flags.after
    return flowtok.edit(_images(flags), *captions, **_strength(flags), **options)


def _combine(flowtok: FlowTok, flags: Any, options: dict[str, Any]) -> Strips:
    (sum_of, *more) = _prompts(flags)
    if more:
        raise UserError(f"--edit=combine takes one sum; got {1 + len(more)} prompts")
    return flowtok.combine(sum_of, flags.after, **options)


def _round_trip(flowtok: FlowTok, flags: Any, options: dict[str, Any]) -> Strips:
    return flowtok.round_trip(_images(flags), flags.seed, **options)


# By the value of --edit.
EDIT_KINDS: dict[str, Callable[[FlowTok, Any, dict[str, Any]], Strips]] = {
    "edit": _edit,
    "vary": _vary,
    "interpolate": _interpolate,
    "combine": _combine,
    "invert": _invert,
    "round_trip": _round_trip,
}
