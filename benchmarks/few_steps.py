"""Few-step students against their teacher, where captions leave things open.

    .venv/bin/python benchmarks/few_steps.py --out=runs/few_steps

Trains a teacher of each direction on shapes:open (data/open_captions.py), from it a
student for every variant and seed, and measures each at several numbers of network
calls on scenes that no training saw. *readable*: the oracle reads a scene off
the image; *right*: this scene agrees with all that its caption names (of captions: they
agree with the scene); *whole*: the same of captions that name everything; *evenness*:
the entropy of colours that a caption left open, 1 where all come alike. What is
finished stays in --out and is not repeated. few_steps.md and .json there hold the
tables.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402 - after the path
import numpy as np  # noqa: E402

from benchmarks.ablations import mean_and_spread, numbers, say  # noqa: E402
from flowtok_jax.data.loader import open_evaluation  # noqa: E402
from flowtok_jax.data.open_captions import (  # noqa: E402
    Wanted,
    is_true_of,
    read_caption,
)
from flowtok_jax.data.scenes import Scene  # noqa: E402
from flowtok_jax.eval.scene_judges import OpenCaptionJudge  # noqa: E402
from flowtok_jax.flow.samplers import AVERAGE  # noqa: E402
from flowtok_jax.perf import machine  # noqa: E402
from flowtok_jax.pipeline import FlowTok  # noqa: E402
from flowtok_jax.runtime import cli  # noqa: E402
from flowtok_jax.runtime.errors import UserError  # noqa: E402
from flowtok_jax.runtime.files import read_json, write_json  # noqa: E402
from flowtok_jax.weights.workdir import read_config  # noqa: E402

DATA = ("--config.data.train=shapes:open", "--config.data.held_out=0.02")
TEACHER = (
    "--config=configs/demo.py",
    *DATA,
    "--config.eval.after_training=False",
    "--config.log.preview_every=0",
    "--config.optimizer.name=muon",
    "--config.per_stage.text_tokenizer.train.num_steps=600",
    "--config.sample.scale=1.5",
    "--config.caption.scale=1.5",
)
STAGES = {"t2i": "('tokenizer','t2i')", "i2t": "('tokenizer','text_tokenizer','i2t')"}
STUDENT = (
    *DATA,
    "--config.train.batch_size=8",
    "--config.train.steps_per_call=20",
    "--config.train.ema_decay=0.995",
    "--config.optimizer.name=muon",
    "--config.schedule.lr=1e-3",
    "--config.schedule.warmup_steps=60",
    "--config.schedule.schedule=cosine",
    "--config.optimizer.clip_norm=1.0",
    "--config.student.early=0.5",
    "--config.log.preview_every=0",
    "--config.checkpoint.every=200",
    "--config.eval.after_training=False",
)
ADAMW = ("--config.optimizer.name=adamw", "--config.schedule.lr=1.5e-3")
# The form of REFERENCE.md 13, at the times of the paper.
JVP = (
    *ADAMW,
    "--config.train.batch_size=64",
    "--config.student.early=0.667",
    "LOSS.method=jvp",
    "LOSS.trajectory_steps=0",
)
AS_IS = "as_is"
# Changes to the student's config, which win; LOSS stands for config.loss.STAGE.
VARIANTS = {
    AS_IS: (),
    "adamw": ADAMW,
    "late_times": ("--config.student.early=0.667",),
    "scale_drawn": (
        "--config.student.takes_scale=True",
        "LOSS.scale=1.0",
        "LOSS.scale_to=2.0",
    ),
    "jvp": JVP,
    "jvp_difference": (*JVP, "LOSS.method=difference"),
    "jvp_quarter_equal": (*JVP, "LOSS.equal_share=0.25"),
    "jvp_own_paths": (*JVP, "LOSS.trajectory_steps=8"),
    "jvp_uniform_times": (*JVP, "LOSS.locations=(-1.0,1.0)"),
    "jvp_muon": (*JVP, "--config.optimizer.name=muon", "--config.schedule.lr=1e-3"),
}
# Network calls, of the teacher two a step, its last row one step without guidance.
TEACHER_CALLS = (40, 16, 8, 4, 2, 1)
STUDENT_CALLS = (8, 4, 2, 1)
SCALE = 1.5


class Examples(NamedTuple):
    """Scenes that no training saw, drawn and described."""

    scenes: Sequence[Scene]
    captions: Sequence[str]
    wanted: Sequence[tuple[Wanted, ...]]
    images: np.ndarray

    @property
    def whole(self) -> np.ndarray:
        """True of captions that name everything."""
        return np.array([None not in sum(w, ()) for w in self.wanted])


def load_scenes(teacher: pathlib.Path, count: int) -> Examples:
    """Loads the first scenes of the held-out side."""
    config = read_config(teacher)
    config.data.eval = ""  # what data.held_out keeps out of training, not the demo's
    source = open_evaluation(config)
    records = [source[i] for i in range(count)]
    captions = [record["caption"] for record in records]
    images = np.stack([record["image"] for record in records])
    scenes = [source.scene(i) for i in range(count)]
    wanted = [read_caption(caption) or () for caption in captions]
    return Examples(scenes, captions, wanted, images)


def train(workdir: pathlib.Path, arguments: Sequence[str]) -> None:
    """Trains by the command line, or goes on with what was begun.

    Raises:
        UserError: where the command fails.
    """
    workdir.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "flowtok_jax.main", f"--workdir={workdir}"]
    command += arguments
    say(" ".join(command[1:]))
    with workdir.with_suffix(".log").open("w") as log:
        code = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, check=False
        ).returncode
    if code:
        raise UserError(f"training ended with {code}; {workdir.with_suffix('.log')}")


def judge_images(images: np.ndarray, examples: Examples) -> dict[str, float]:
    """Returns readable, right, whole and evenness of drawn images."""
    judge = OpenCaptionJudge(examples.wanted)
    arrays = judge.see(images, range(len(images)))
    found = judge.measure(arrays)
    return {
        "readable": found["readable"],
        "right": found["right"],
        "whole": float(arrays["right"][examples.whole].mean()),
        "evenness": found["open_colour_evenness"],
    }


def judge_captions(captions: Sequence[str], examples: Examples) -> dict[str, float]:
    """Returns the shares of captions that can be read, and agree with the scene."""
    readable = [read_caption(caption) is not None for caption in captions]
    right = list(map(is_true_of, captions, examples.scenes))
    return {"readable": float(np.mean(readable)), "right": float(np.mean(right))}


def measure(
    flowtok: FlowTok, way: str, calls: int, seed: int, examples: Examples, student: bool
) -> dict[str, float]:
    """Measures one flow at one number of calls, and its images a second."""
    options = {"solver": AVERAGE, "num_steps": calls}
    if not student:
        is_guided = calls > 1
        # Of both choices of times the better one in few steps (docs/ablations.md).
        options = {"solver": "euler", "times": "left", "num_steps": max(1, calls // 2)}
        options["scale"] = SCALE if is_guided else 1.0
    if way == "t2i":
        run = flowtok.text_to_image
        inputs: Any = examples.captions
    else:
        run = flowtok.image_to_text
        inputs = examples.images.astype(np.float32) / 255
        options["candidates"] = 1
    run(inputs[: flowtok.sample.batch_size], seed, **options)  # compiles
    begun = time.perf_counter()
    found = run(inputs, seed, **options)
    rate = len(inputs) / (time.perf_counter() - begun)
    judged = judge_images if way == "t2i" else judge_captions
    return judged(found, examples) | {"images_per_second": rate}


class FewSteps:
    """Teacher, students and measurements of a direction, kept in a folder."""

    def __init__(self, flags: argparse.Namespace, way: str):
        self.flags = flags
        self.way = way
        self.out = pathlib.Path(flags.out).absolute() / way
        self.teacher = self.out / "teacher"
        steps = f"--config.per_stage.{way}.train.num_steps={flags.teacher_steps}"
        train(self.teacher, [*TEACHER, f"--config.stages={STAGES[way]}", steps])
        self.examples = load_scenes(self.teacher, flags.samples)

    def rows(self, name: str, seed: int, place: pathlib.Path) -> list[dict[str, Any]]:
        """Measures weights at every number of calls, or reads what was measured."""
        is_student = name != "teacher"
        file = self.out / "results" / f"{name}-seed{seed}-n{self.flags.samples}.json"
        if file.is_file():
            return read_json(file)
        file.parent.mkdir(exist_ok=True)
        flowtok = FlowTok.from_pretrained(place)
        results = []
        for calls in STUDENT_CALLS if is_student else TEACHER_CALLS:
            found = measure(flowtok, self.way, calls, seed, self.examples, is_student)
            row = {"way": self.way, "name": name, "seed": seed, "calls": calls, **found}
            say(json.dumps(row))
            results.append(row)
        write_json(file, results)
        return results

    def student(self, name: str, seed: int) -> list[dict[str, Any]]:
        """Trains a student and measures it."""
        steps = self.flags.steps
        place = self.out / f"{name}-steps{steps}-seed{seed}"
        loss = f"--config.loss.{self.way}_distilled"
        changes = [change.replace("LOSS", loss) for change in VARIANTS[name]]
        start = (
            f"--config=configs/distill.py:{self.way}",
            f"--checkpoint={self.teacher}",
        )
        run = f"--config.train.num_steps={steps}", f"--config.train.seed={seed}"
        train(place, [*start, *STUDENT, *run, *changes])
        return self.rows(f"{name}_{steps}", seed, place)

    def run(self) -> list[dict[str, Any]]:
        """Measures all that the flags ask for."""
        results = []
        for seed in self.flags.seeds:
            results += self.rows("teacher", seed, self.teacher)
            for name in self.flags.only.split(","):
                results += self.student(name, seed)
        return results


def markdown(results: Sequence[dict[str, Any]], command: str, cores: str) -> str:
    """Formats a table for each direction."""
    lines = [f"Made by `{command}` on {cores}.", ""]
    for way in dict.fromkeys(row["way"] for row in results):
        rows = [row for row in results if row["way"] == way]
        names = list(rows[0])[4:]
        lines += [f"| {way} | calls | seeds | {' | '.join(names)} |"]
        lines += ["|---" * (3 + len(names)) + "|"]
        for name, calls in dict.fromkeys((r["name"], r["calls"]) for r in rows):
            own = [r for r in rows if (r["name"], r["calls"]) == (name, calls)]
            cells = [mean_and_spread([r[key] for r in own]) for key in names[:-1]]
            rate = f"{np.mean([r[names[-1]] for r in own]):.0f}"
            lines.append(
                f"| {name} | {calls} | {len(own)} | {' | '.join([*cells, rate])} |"
            )
        lines.append("")
    return "\n".join(lines)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", default="runs/few_steps", help="folder of all results")
    add("--ways", default="t2i,i2t", help="directions")
    add("--only", default=AS_IS, help=f"variants: {', '.join(VARIANTS)}")
    add("--seeds", type=numbers(int), default=(0, 1, 2))
    add("--teacher_steps", type=int, default=12_000)
    add("--steps", type=int, default=6000, help="of a student")
    add("--samples", type=int, default=1024, help="scenes behind a number")
    flags = parser.parse_args(argv)
    for name in flags.only.split(","):
        if name not in VARIANTS:
            raise UserError(
                f"no variant {name!r}; expected some of {', '.join(VARIANTS)}"
            )
    return flags


def run(argv: Sequence[str]) -> None:
    """Makes the missing measurements and writes the tables."""
    flags = parse(argv)
    results = [r for way in flags.ways.split(",") for r in FewSteps(flags, way).run()]
    command = " ".join(["python", "benchmarks/few_steps.py", *argv])
    found = machine.describe_machine(jax.devices())
    cores = f"{found['cores']} cores of {found['processor']}"
    table = markdown(results, command, cores)
    out = pathlib.Path(flags.out)
    write_json(out / "few_steps.json", results)
    (out / "few_steps.md").write_text(table)
    sys.stdout.write(table)


if __name__ == "__main__":
    sys.exit(cli.run_command(lambda: run(sys.argv[1:])))
