"""Draws the held-out emoji from their names: the ten best and the ten worst, as PNG.

    python examples/emoji/gallery.py --data=data/emoji --out=runs/gallery

A drawing is better where fewer real emoji are nearer to it than its own, averaged to
16 x 16 cells, and of as many where its own is nearer.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flowtok_jax import FlowTok
from flowtok_jax.data.inputs import load_images, to_uint8
from flowtok_jax.eval import pictures
from flowtok_jax.eval.retrieval import averaged, count_nearer
from flowtok_jax.runtime import cli
from flowtok_jax.runtime.errors import UserError

SIDE = 16  # cells
SHOWN = 10


class Split(NamedTuple):
    """One part of what prepare.py wrote: pictures [n, s, s, 3], uint8, and captions."""

    images: np.ndarray
    captions: list[str]


def read_split(folder: pathlib.Path, size: int) -> Split:
    """Reads the pictures of a folder, and the first caption of each.

    Raises:
        UserError: where prepare.py did not write it.
    """
    listed = folder / "metadata.jsonl"
    if not listed.is_file():
        raise UserError(
            f"{listed} does not exist; expected a directory of "
            "examples/emoji/prepare.py, as in --data=data/emoji"
        )
    rows = [json.loads(line) for line in listed.read_text("utf-8").splitlines()]
    images = load_images([folder / row["file_name"] for row in rows], size)
    return Split(to_uint8(images), [row["text"] for row in rows])


def rank(drawn: np.ndarray, held_out: Split, train: Split) -> np.ndarray:
    """Returns the numbers of the held-out emoji, the best drawn first."""
    own = averaged(held_out.images, SIDE)
    gallery = np.concatenate([own, averaged(train.images, SIDE)])
    queries = averaged(drawn, SIDE)
    nearer = count_nearer(queries, gallery, np.arange(len(own)))
    distances = np.square(queries - own).sum(1)
    return np.lexsort((distances, nearer))


def write_gallery(checkpoint: str, data: pathlib.Path, out: pathlib.Path) -> list[str]:
    """Writes best.png and worst.png; returns their paths."""
    flowtok = FlowTok.from_pretrained(checkpoint)
    size = flowtok.nets.tokenizer.image_size
    held_out, train = (read_split(data / n, size) for n in ("held_out", "train"))
    drawn = to_uint8(np.asarray(flowtok.text_to_image(held_out.captions)))
    order = rank(drawn, held_out, train)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, chosen in (("best", order[:SHOWN]), ("worst", order[-SHOWN:])):
        path = out / f"{name}.png"
        captions = [held_out.captions[i] for i in chosen]
        grid = pictures.compared(
            held_out.images[chosen], drawn[chosen], captions, len(chosen)
        )
        pictures.save_png(path, grid)
        written.append(str(path))
    return written


def main(argv: Sequence[str]) -> int:
    """Writes the pictures; a user's mistake ends in one line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", default="emoji", help="weights (%(default)s)")
    parser.add_argument("--data", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR")
    flags = parser.parse_args(argv)

    def command() -> None:
        for path in write_gallery(flags.checkpoint, flags.data, flags.out):
            cli.say(path)

    return cli.run_command(command, "interrupted")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
