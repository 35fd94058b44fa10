"""Draws twenty pictures of a robot that is no emoji, to learn by docs/lora.md.

    python examples/emoji/robot.py --out=data/robot

They differ a little in size, turn and place, and all have the caption `CAPTION`, in
words that the shipped weights know.
"""

import argparse
import json
import pathlib
import random
import sys
from collections.abc import Sequence

from PIL import Image, ImageDraw

from flowtok_jax.runtime import cli
from flowtok_jax.runtime.files import new_directory

CAPTION = "purple robot clown"
COUNT = 20
SIDE = 64  # pixels of a picture
DRAWN = 256  # pixels at which the robot is drawn, to be made smaller


def draw_robot() -> Image.Image:
    """Draws the robot, upright and in the middle."""
    image = Image.new("RGB", (DRAWN, DRAWN), "white")
    pen = ImageDraw.Draw(image)
    line = {"outline": "black", "width": 6}
    pen.polygon([(128, 30), (92, 88), (164, 88)], fill=(255, 200, 40), **line)  # hat
    pen.rounded_rectangle([60, 84, 196, 176], 28, fill=(150, 80, 200), **line)  # head
    for x in (92, 148):
        pen.ellipse([x - 10, 112, x + 22, 140], fill="white", **line)
    pen.rectangle([96, 152, 160, 162], fill="black")  # mouth
    pen.rounded_rectangle([84, 176, 172, 236], 12, fill=(60, 190, 150), **line)  # body
    for start, end in (((84, 190), (46, 214)), ((172, 190), (210, 214))):
        pen.line([start, end], fill="black", width=8)
    return image


def make_pictures(count: int) -> list[Image.Image]:
    """Makes pictures of the robot, always the same ones."""
    rng = random.Random(0)
    found = []
    for _ in range(count):
        scale = rng.uniform(0.9, 1.0)
        turn = rng.uniform(-5, 5)
        turned = draw_robot().rotate(
            turn, fillcolor="white", resample=Image.Resampling.BICUBIC
        )
        side = int(SIDE * scale)
        page = Image.new("RGB", (SIDE, SIDE), "white")
        place = [(SIDE - side) // 2 + rng.randint(-1, 1) for _ in range(2)]
        page.paste(turned.resize((side, side), Image.Resampling.LANCZOS), tuple(place))
        found.append(page)
    return found


def write_robot(folder: pathlib.Path) -> None:
    """Writes the pictures, and metadata.jsonl with their captions."""
    with new_directory(folder) as part:
        lines = []
        for i, picture in enumerate(make_pictures(COUNT)):
            name = f"{i:02d}.png"
            picture.save(part / name)
            lines.append(json.dumps({"file_name": name, "text": CAPTION}) + "\n")
        (part / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    """Writes the robot; a user's mistake ends in one line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, type=pathlib.Path, metavar="DIR")
    flags = parser.parse_args(argv)

    def command() -> None:
        write_robot(flags.out)
        cli.say(f"{COUNT} pictures: {flags.out}")

    return cli.run_command(command, "interrupted; nothing was written")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
