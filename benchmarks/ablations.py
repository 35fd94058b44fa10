"""Ablations of a run's t2i stage, and of the ways to sample from it.

    .venv/bin/pip install -r requirements-eval.txt    # for the plot
    .venv/bin/python benchmarks/ablations.py --run=runs/demo --out=runs/ablations

The script trains the t2i stage anew for every variant and seed, from the tokenizer of a
finished run; each training takes about as long as the run's own. Then it samples the
run's t2i weights at every guidance scale, number of steps and choice of times. Accuracy
is the share of held-out captions drawn right, starting from a sample of the source and
from its mean: of generated scenes what the oracle reads right, of other pictures what
retrieval among all of them finds first (flowtok_jax/eval/retrieval.py, in pixels).
Finished measurements stay in --out and are not repeated; ablations.md, .json and .png
there show them beside the paper's figures (Tab. 4: FlowTok-B, COCO FID-30K without
guidance, lower is better).
"""

import argparse
import contextlib
import itertools
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402 - after the path
import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from benchmarks import plots  # noqa: E402
from flowtok_jax.data.inputs import to_uint8  # noqa: E402
from flowtok_jax.data.loader import (  # noqa: E402
    evaluated_source,
    open_evaluation,
    open_source,
)
from flowtok_jax.data.vocabulary import VOCABULARY  # noqa: E402
from flowtok_jax.eval import previews  # noqa: E402
from flowtok_jax.eval.retrieval import averaged, count_nearer  # noqa: E402
from flowtok_jax.flow.samplers import TIMES  # noqa: E402
from flowtok_jax.modes import train  # noqa: E402
from flowtok_jax.perf import machine  # noqa: E402
from flowtok_jax.pipeline import FlowTok  # noqa: E402
from flowtok_jax.runtime.config import drop_overridden, for_stage  # noqa: E402
from flowtok_jax.runtime.errors import UserError  # noqa: E402
from flowtok_jax.runtime.files import read_json, write_json  # noqa: E402
from flowtok_jax.train.loop import PreemptedError  # noqa: E402
from flowtok_jax.weights.place import open_weights  # noqa: E402
from flowtok_jax.weights.workdir import (  # noqa: E402
    CHECKPOINTS,
    CONFIG,
    read_config,
)

STAGE = "t2i"
START = ("clip", "tokenizer")  # groups that the variants share and do not train
AS_IS = "as_is"
MEASURES = ("accuracy", "accuracy_mean_source")


class Variant(NamedTuple):
    """Changes to the config, and the paper's FID if it states one."""

    changes: dict[str, Any]
    paper_fid: float | None = None


VARIANTS = {
    AS_IS: Variant({}, 29.14),
    "average_pool": Variant({"align_head.target": "average_pool"}, 36.02),
    "cosine": Variant({"loss.t2i.align": "cosine"}, 31.80),
    "align_weight_2": Variant({"loss.t2i.align_weight": 2.0}, 30.59),
    # The demo's own two levers, taken back to the paper's values.
    "latent_scale_1": Variant({"tokenizer.latent_scale": 1.0}),
    "time_location_0": Variant({"loss.t2i.time_location": 0.0}),
    "tower_trained_along": Variant({"clip.trained_along": True}),
}


class Judge(NamedTuple):
    """Captions to draw, and the share of images that show what they say."""

    captions: Sequence[str]
    share_right: Callable[[np.ndarray], float]


def say(line: str) -> None:
    """Prints progress to stderr."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def make_judge(config: ConfigDict, samples: int) -> Judge:
    """Makes the judge of what is drawn from captions held out of training."""
    spec = evaluated_source(config)[0]
    if spec.startswith("shapes"):
        source = open_source(config, "shapes:held_out")
        examples = previews.load_examples(source, samples)
        return Judge(
            examples.captions,
            lambda drawn: previews.attribute_accuracy(drawn, examples.scenes),
        )
    source = open_evaluation(config)
    examples = previews.load_examples(source, samples, config.eval.seed)
    retrieval = config.eval.retrieval
    others = [source]
    if retrieval.gallery:
        others.append(open_source(config, retrieval.gallery, centre=True))
    images = [source[i]["image"] for source in others for i in range(len(source))]
    found = [*examples.images, *images[: retrieval.images]]
    gallery = averaged(np.stack(found), retrieval.side)
    own = np.arange(len(examples.captions))

    def share_right(drawn: np.ndarray) -> float:
        queries = averaged(to_uint8(drawn), retrieval.side)
        return float((count_nearer(queries, gallery, own) == 0).mean())

    return Judge(examples.captions, share_right)


def make_start(demo: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """Copies a run without its t2i stage, so that variants begin afresh."""
    start = out / "start"
    missing = sorted({*START, STAGE} - set(open_weights(demo).groups))
    if missing:
        raise UserError(
            f"{demo} has no weights of {', '.join(missing)}; expected the workdir of a "
            "finished run, as `make demo` makes one"
        )
    if not start.is_dir():
        part = out / "start.part"
        shutil.rmtree(part, ignore_errors=True)
        for group in START:
            shutil.copytree(demo / CHECKPOINTS / group, part / CHECKPOINTS / group)
        for name in (CONFIG, VOCABULARY):
            shutil.copy(demo / name, part / name)
        part.rename(start)
    return start


def make_config(demo: pathlib.Path, changes: dict[str, Any]) -> ConfigDict:
    """Returns the config of a run's t2i stage with some keys changed."""
    config = read_config(demo)
    config.stages = (STAGE,)
    config.update_from_flattened_dict(changes)
    drop_overridden(config, changes)  # a stage's own values would win over the changes
    return config


def measure(flowtok: FlowTok, judge: Judge, **options) -> dict[str, float]:
    """Measures the accuracy of held-out captions, from source samples and means."""
    return {
        name: judge.share_right(
            flowtok.text_to_image(judge.captions, source=source, **options)
        )
        for name, source in zip(MEASURES, ("sample", "mean"), strict=True)
    }


class Ablations:
    """Measurements of one run, kept in a folder."""

    def __init__(self, flags: argparse.Namespace):
        self.trained = pathlib.Path(flags.run)
        self.out = pathlib.Path(flags.out)
        self.flags = flags
        self.out.mkdir(parents=True, exist_ok=True)
        self.start = make_start(self.trained, self.out)
        config = for_stage(read_config(self.trained), STAGE)
        self.steps = flags.steps or config.train.num_steps
        self.judge = make_judge(config, flags.samples)

    def variant(self, name: str, seed: int) -> dict[str, Any]:
        """Trains and measures a variant, or reads its finished measurement."""
        folder = self.out / f"{name}-steps{self.steps}-seed{seed}"
        file = folder / f"result-n{self.flags.samples}.json"
        if file.is_file():
            return read_json(file)
        say(f"{name}, seed {seed}: training {self.steps} steps in {folder}")
        changes = VARIANTS[name].changes | {
            "train.num_steps": self.steps,
            "train.seed": seed,
            "log.preview_every": 0,
            "init_from": str(self.start),
        }
        config = make_config(self.trained, changes)
        log = self.out / f"{folder.name}.log"
        with log.open("w") as file_of_log, contextlib.redirect_stdout(file_of_log):
            train.train_stages(config, folder)
        flowtok = FlowTok.from_pretrained(folder, for_stage(config, STAGE))
        result = {"variant": name, "seed": seed, "steps": self.steps}
        result |= {"samples": len(self.judge.captions)}
        result |= measure(flowtok, self.judge)
        write_json(file, result)
        return result

    def sampling(self) -> list[dict[str, Any]]:
        """Measures the run's own weights at every scale, number of steps and times."""
        flags = self.flags
        flowtok = None  # loaded only if a measurement is missing
        results = []
        for times, scale, steps in itertools.product(
            TIMES, flags.scales, flags.sample_steps
        ):
            cell = f"{times}-scale{scale:g}-steps{steps}-n{flags.samples}"
            file = self.out / "sampling" / f"{cell}.json"
            if not file.is_file():
                say(f"sampling: {cell}")
                flowtok = flowtok or FlowTok.from_pretrained(self.trained)
                options = {"times": times, "scale": scale, "num_steps": steps}
                found = measure(flowtok, self.judge, **options)
                write_json(file, options | {"samples": flags.samples} | found)
            results.append(read_json(file))
        return results


def mean_and_spread(values: list[float]) -> str:
    """Formats the mean, with the standard deviation if there are several seeds."""
    text = f"{np.mean(values):.3f}"
    return f"{text} ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else text


def markdown(report: dict[str, Any]) -> str:
    """Formats the tables of variants and of sampling."""
    variants = report["variants"]
    sampling = report["sampling"]
    lines = [
        f"Accuracy on {report['samples']} held-out captions; "
        f"{report['steps']} steps of t2i; made by `{report['command']}` on "
        f"{report['machine']['cores']} cores of {report['machine']['processor']}.",
        "",
        "| variant | changes | seeds | accuracy | from the mean source | paper: FID |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(r["variant"] for r in variants):
        runs = [r for r in variants if r["variant"] == name]
        changes = ", ".join(f"`{k}={v}`" for k, v in VARIANTS[name].changes.items())
        cells = [mean_and_spread([r[m] for r in runs]) for m in MEASURES]
        fid = VARIANTS[name].paper_fid
        lines.append(
            f"| {name} | {changes or 'none'} | {len(runs)} | {' | '.join(cells)} | "
            f"{'' if fid is None else fid} |"
        )
    steps = sorted({r["num_steps"] for r in sampling})
    head = " | ".join(f"{n} steps" for n in steps)
    lines += ["", f"| times | scale | {head} |", "|---" * (2 + len(steps)) + "|"]
    for times, scale in dict.fromkeys((r["times"], r["scale"]) for r in sampling):
        row = {
            r["num_steps"]: f"{r['accuracy']:.3f}"
            for r in sampling
            if (r["times"], r["scale"]) == (times, scale)
        }
        cells = " | ".join(row.get(n, "") for n in steps)
        lines.append(f"| {times} | {scale:g} | {cells} |")
    return "\n".join(lines) + "\n"


def numbers(kind: type):
    """Makes a parser of numbers separated by commas."""
    return lambda text: tuple(kind(part) for part in text.split(","))


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--run", "--demo", default="runs/demo", help="workdir of a finished run")
    add("--out", default="runs/ablations", help="folder of all results")
    add("--steps", type=int, default=0, help="of training; 0: as many as the run's")
    add("--seeds", type=numbers(int), default=(0,), help="as 0,1,2")
    add("--only", default=",".join(VARIANTS), help="variants, separated by commas")
    add("--samples", type=int, default=512, help="captions behind an accuracy")
    add("--scales", type=numbers(float), default=(1.0, 1.5, 2.0, 3.0, 5.0))
    add("--sample_steps", type=numbers(int), default=(2, 5, 10, 20, 50))
    return parser.parse_args(argv)


def run(argv: list[str]) -> dict[str, Any]:
    """Makes the missing measurements and writes the report."""
    flags = parse(argv)
    names = flags.only.split(",")
    for name in names:
        if name not in VARIANTS:
            raise UserError(
                f"no variant {name!r}; expected some of {', '.join(VARIANTS)}"
            )
    ablations = Ablations(flags)
    report = {
        "command": " ".join(["python", "benchmarks/ablations.py", *argv]),
        "machine": machine.describe_machine(jax.devices()),
        "steps": ablations.steps,
        "samples": len(ablations.judge.captions),
        "variants": [ablations.variant(n, s) for s in flags.seeds for n in names],
        "sampling": ablations.sampling(),
    }
    write_json(ablations.out / "ablations.json", report)
    (ablations.out / "ablations.md").write_text(markdown(report))
    plots.draw_ablations(report, ablations.out / "ablations.png")
    return report


def main() -> int:
    """Runs the command and returns its exit status."""
    try:
        report = run(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except (KeyboardInterrupt, PreemptedError):
        sys.stderr.write("interrupted; the same command goes on from here\n")
        return 130
    sys.stdout.write(markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
