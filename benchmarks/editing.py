"""Edits of pictures: how well the way back closes, and what an edit changes.

    python benchmarks/editing.py --checkpoint=runs/demo --out=runs/editing
    python benchmarks/editing.py --checkpoint=emoji --tones=data/emoji \\
        --out=runs/editing_emoji

On weights of generated scenes an oracle reads each edited picture: whether the asked
attribute is right, and whether every other one is unchanged; `background` is the
correlation of the brightness of backgrounds, before and after. --tones is a folder of
examples/emoji/prepare.py; the skin tone of its held-out pictures is changed, and the
nearest of all its pictures, averaged to 16 x 16, says what became of it. Ways back are
those of flow/editing.py; a way closes where there and back again is at most 1e-3 away
(relative L2 of tokens).
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402 - after the path
import numpy as np  # noqa: E402

from benchmarks.ablations import numbers  # noqa: E402
from flowtok_jax.data.inputs import load_images, to_uint8  # noqa: E402
from flowtok_jax.eval import pictures  # noqa: E402
from flowtok_jax.eval.edits import draw_edits, judge_edits  # noqa: E402
from flowtok_jax.eval.retrieval import averaged  # noqa: E402
from flowtok_jax.perf import machine  # noqa: E402
from flowtok_jax.pipeline import FlowTok  # noqa: E402
from flowtok_jax.pipeline.edit_programs import EditOptions  # noqa: E402
from flowtok_jax.pipeline.editing import CLOSED  # noqa: E402
from flowtok_jax.runtime import cli  # noqa: E402
from flowtok_jax.runtime.errors import UserError  # noqa: E402
from flowtok_jax.runtime.files import to_place, write_json  # noqa: E402

TONES = tuple(
    f"{tone} skin tone"
    for tone in ("light", "medium-light", "medium", "medium-dark", "dark")
)
SIDE = 16  # cells a side of averaged pictures
SHOWN = 6  # rows of the picture

# Of edited images [b s s 3], in order: shares by name.
Judge = Callable[[np.ndarray], dict[str, float]]


def brightness(images: np.ndarray) -> np.ndarray:
    """Returns the brightness of each scene's background, which no caption tells."""
    corners = images[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # [b 4 3]
    return np.median(corners.mean(-1), axis=1)


def scene_task(flowtok: FlowTok, count: int) -> tuple[np.ndarray, list, list, Judge]:
    """Returns images, captions before and after, and the judge of scenes."""
    images, edits = draw_edits(count, flowtok.nets.tokenizer.image_size, 0)

    def judge(edited: np.ndarray) -> dict[str, float]:
        marks = judge_edits(edited, edits)
        shares = {name: float(values.mean()) for name, values in marks.items()}
        kept = np.corrcoef(brightness(images), brightness(edited))[0, 1]
        return shares | {"background": float(kept)}

    return images, [e.before for e in edits], [e.after for e in edits], judge


def tone_task(
    flowtok: FlowTok, folder: pathlib.Path, count: int
) -> tuple[np.ndarray, list, list, Judge]:
    """Returns held-out people, their captions and those of another tone, the judge.

    Raises:
        UserError: where the folder is none that examples/emoji/prepare.py wrote.
    """
    paths = {}
    for split in ("train", "held_out"):
        listing = folder / split / "metadata.jsonl"
        if not listing.is_file():
            raise UserError(f"{listing} does not exist; expected a folder of emoji")
        for line in listing.read_text().splitlines():
            row = json.loads(line)
            paths[row["text"]] = folder / split / row["file_name"]
    gallery = load_images(list(paths.values()), flowtok.nets.tokenizer.image_size)
    # Some pictures have several names, and are nearest by any of them.
    cells = averaged(to_uint8(gallery), SIDE)
    cells, numbers_of = np.unique(cells, axis=0, return_inverse=True)
    number = dict(zip(paths, numbers_of.ravel(), strict=True))
    pairs = []
    for caption, path in paths.items():
        tone = next((t for t in TONES if caption.endswith(f" {t}")), None)
        # "medium-dark skin tone" does not end with " dark skin tone".
        if path.parent.name != "held_out" or tone is None:
            continue
        stem = caption.removesuffix(tone)
        others = [stem + t for t in TONES if t != tone and stem + t in number]
        if len(others) == len(TONES) - 1:
            pairs.append((caption, others[len(pairs) % len(others)], stem))
    pairs = pairs[:count]

    def judge(edited: np.ndarray) -> dict[str, float]:
        found = averaged(to_uint8(edited), SIDE)
        far = np.square(found[:, None] - cells).sum(-1)
        nearest = far.argsort(1)
        own = np.array([number[after] for _, after, _ in pairs])
        tones = np.array([[number[stem + t] for t in TONES] for _, _, stem in pairs])
        best = tones[np.arange(len(own)), np.take_along_axis(far, tones, 1).argmin(1)]
        return {
            "nearest": float((nearest[:, 0] == own).mean()),
            "among_five": float((nearest[:, :5] == own[:, None]).any(1).mean()),
            "tone": float((best == own).mean()),
            "person": float((tones == nearest[:, :1]).any(1).mean()),
        }

    before = [pair[0] for pair in pairs]
    image_of = dict(zip(paths, gallery, strict=True))
    images = np.stack([image_of[caption] for caption in before])
    return images, before, [pair[1] for pair in pairs], judge


def measure(
    flowtok: FlowTok, task: tuple, options: dict[str, Any], strength: float
) -> tuple[dict[str, Any], np.ndarray]:
    """Edits all images one way; returns numbers and the strips."""
    images, before, after, judge = task
    start = time.monotonic()
    strips = flowtok.edit(images, before, after, strength=strength, **options)
    seconds = time.monotonic() - start
    row = options | {"strength": strength, "seconds": round(seconds, 1)}
    row["loop_median"] = float(np.median(strips.values))
    row["loop_max"] = float(strips.values.max())
    row["closed"] = float((strips.values <= CLOSED).mean())
    return row | judge(strips.images[:, -1]), strips.images


def run(argv: list[str]) -> dict[str, Any]:
    """Makes the measurements and writes the report with a picture."""
    flags = parse(argv)
    flowtok = FlowTok.from_pretrained(flags.checkpoint)
    task = scene_task(flowtok, flags.edits)
    if flags.tones:
        task = tone_task(flowtok, pathlib.Path(flags.tones), flags.edits)
    images, before, after, judge = task
    best = EditOptions()
    default = {"solver": best.solver, "num_steps": best.num_steps, "scale": best.scale}
    ways = [
        default | {"solver": solver, "num_steps": steps}
        for solver in flags.solvers.split(",")
        for steps in flags.steps
    ]
    report = {
        "command": " ".join(["python", "benchmarks/editing.py", *argv]),
        "machine": machine.describe_machine(jax.devices()),
        "edits": len(images),
        "untouched": judge(images),
        "drawn_anew": judge(flowtok.text_to_image(after)),
        "ways": [measure(flowtok, task, way, 0.5)[0] for way in ways],
        "strengths": [],
    }
    for strength in flags.strengths:
        row, columns = measure(flowtok, task, default, strength)
        report["strengths"].append(row)
        shown = [list(to_uint8(x)) for x in columns[:SHOWN]]
        pairs = zip(before[:SHOWN], after[:SHOWN], strict=True)
        texts = [[b, "there and back", a] for b, a in pairs]
        grid = pictures.grid(shown, texts, footer=f"strength {strength:g}", max_lines=6)
        place = to_place(flags.out) / f"strength_{strength:g}.png"
        pictures.save_png(place, grid)
    write_json(to_place(flags.out) / "editing.json", report)
    (pathlib.Path(flags.out) / "editing.md").write_text(markdown(report))
    return report


def markdown(report: dict[str, Any]) -> str:
    """Formats both tables."""
    judged = list(report["untouched"])
    shares = " | ".join(judged)
    lines = [
        f"{report['edits']} edits; made by `{report['command']}` on "
        f"{report['machine']['cores']} cores of {report['machine']['processor']}.",
        "",
        f"| way back | steps | strength | loop, median | largest | closed | {shares} |",
        "|---" * (6 + len(judged)) + "|",
    ]
    for name in ("untouched", "drawn_anew"):
        cells = " | ".join(f"{report[name][j]:.3f}" for j in judged)
        lines.append(f"| {name.replace('_', ' ')} | | | | | | {cells} |")
    for row in (*report["ways"], *report["strengths"]):
        cells = " | ".join(f"{row[j]:.3f}" for j in judged)
        lines.append(
            f"| {row['solver']} | {row['num_steps']} | {row['strength']:g} | "
            f"{row['loop_median']:.2g} | {row['loop_max']:.2g} | {row['closed']:.3f} | "
            f"{cells} |"
        )
    return "\n".join(lines) + "\n"


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", default="runs/demo", help="weights that draw")
    add("--out", default="runs/editing", help="folder of the results")
    add("--edits", type=int, default=256, help="pictures edited each way")
    add("--solvers", default="euler,heun,reversible,midpoint")
    add("--steps", type=numbers(int), default=(10, 20, 40, 80))
    add("--strengths", type=numbers(float), default=(0.0, 0.3, 0.5, 0.7, 1.0))
    add("--tones", default="", help="folder of emoji, whose tones are changed")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> None:
    """Runs the command, and says the table."""
    sys.stdout.write(markdown(run(list(argv))))


if __name__ == "__main__":
    sys.exit(cli.run_command(lambda: main(sys.argv[1:])))
