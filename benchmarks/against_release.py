"""Comparison with the authors' PyTorch release on this machine's CPU.

    .venv/bin/pip install -r requirements-convert.txt \\
        -r benchmarks/requirements-release.txt
    .venv/bin/python benchmarks/against_release.py --release=CHECKOUT

The release runs as it is, in a process of its own (duel_release.py), with random
weights of its own constructors; ours (duel_ours.py) has the same weights, converted,
the same inputs and the same draws. Outputs are compared first: a row whose outputs
differ by more than its tolerance is not timed. Then calls of one and the other take
turns. Figures are medians; the seconds of the cores (user and system, all threads of
the process) say more than those of the clock where the machine has other work.
Parameters that start constant, such as the DiT's gates at 0, are spread by 0.02, else
the outputs would be zero.

Finished rows stay in --out and are not measured again; a table stands beside it.
"""

import argparse
import ast
import json
import os
import pathlib
import shlex
import sys
import tempfile
from collections.abc import Mapping
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402 - after the path
import numpy as np  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from benchmarks.duel import INPUTS, WorkerError, opened, time_in_turn  # noqa: E402
from configs import t2i  # noqa: E402
from flowtok_jax.convert.checks import BFLOAT16, FORWARD, SAMPLE, TRAINED  # noqa: E402
from flowtok_jax.flow import paths  # noqa: E402
from flowtok_jax.models import tokenizer  # noqa: E402
from flowtok_jax.perf.machine import describe_machine  # noqa: E402
from flowtok_jax.runtime.cli import say  # noqa: E402
from flowtok_jax.runtime.config import config_to_json  # noqa: E402
from flowtok_jax.runtime.errors import UserError  # noqa: E402

OURS = ROOT / "benchmarks" / "duel_ours.py"
SEED = 0  # of inputs, weights and noise
STEPS = 20  # of the sampler
SCALE = 2.0  # of its guidance
LEAST, MOST = 3, 25  # rounds
NULLS = 4  # null rows of a training batch, about the release's tenth of 32


class Row(NamedTuple):
    """One program, run by both sides.

    Attributes:
        kind: a program of the workers.
        target: the ratio of cores' seconds, ours by theirs, that is asked for.
        tolerance: relative L2 error up to which both compute the same.
        as_released: whether the release checkpoints activations and looks for anomalies
            (which slow it down), as its train_t2i.py does.
        calls: network calls of ours, by a distilled flow; 0: as many as theirs. What is
            compared are the teacher's images.
    """

    kind: str
    size: str
    rows: int
    target: float | None
    tolerance: float = FORWARD
    dtype: str = "float32"
    as_released: bool = False
    calls: int = 0


ROWS = {
    "dit_b8": Row("dit", "b", 8, 0.95),
    "dit_xl4": Row("dit", "xl", 4, 0.95),
    "dit_xl1": Row("dit", "xl", 1, 0.95),
    "dit_h1": Row("dit", "h", 1, 0.95),
    "decoder": Row("decoder", "b", 4, 1.0),
    "encoder": Row("encoder", "b", 4, 1.0),
    "projector": Row("projector", "b", 4, None),
    "clip": Row("clip", "b", 4, None),
    "sampler_xl1": Row("sampler", "xl", 1, 0.75, SAMPLE),
    "sampler_xl4": Row("sampler", "xl", 4, 0.75, SAMPLE),
    "sampler_xl1_calls4": Row("sampler", "xl", 1, None, SAMPLE, calls=4),
    "sampler_xl1_calls1": Row("sampler", "xl", 1, None, SAMPLE, calls=1),
    "dit_b8_bf16": Row("dit", "b", 8, 1.3, BFLOAT16, "bfloat16"),
    "dit_xl4_bf16": Row("dit", "xl", 4, 1.3, BFLOAT16, "bfloat16"),
    "dit_xl1_bf16": Row("dit", "xl", 1, 1.3, BFLOAT16, "bfloat16"),
    "dit_h1_bf16": Row("dit", "h", 1, 1.3, BFLOAT16, "bfloat16"),
    "train_s32": Row("train", "s", 32, 1.05, TRAINED),
    "train_b32": Row("train", "b", 32, 1.05, TRAINED),
    "train_b32_as_released": Row("train", "b", 32, None, TRAINED, as_released=True),
}


def make_config(row: Row, small: bool, changes: Mapping[str, Any]) -> ConfigDict:
    """Returns the config of a row, of tiny sizes where asked for."""
    config = t2i.make_config(row.size, "1")
    config.compute.dtype = row.dtype
    if small:
        tiny = {"width": 64, "depth": 2, "heads": 4}
        config.dit = ConfigDict(tiny)
        config.clip.update(tiny | {"vocab_size": 96})
        config.projector.update({"depth": 2, "heads": 4, "mlp_width": 48})
        config.tokenizer.image_size = 32
        for side in ("encoder", "decoder"):  # the least that the release has
            config.tokenizer[side] = ConfigDict(tokenizer.SIZES["small"])
    config.update_from_flattened_dict(changes)
    return config


def make_inputs(row: Row, config: ConfigDict) -> dict[str, np.ndarray]:
    """Draws the inputs of a row's program."""
    rng = np.random.default_rng(SEED)
    count = row.rows
    tokens = config.latent.tokens
    channels = config.latent.channels
    side = config.tokenizer.image_size

    def normal(*shape):
        return rng.standard_normal((count, *shape), np.float32)

    ids = rng.integers(1, config.clip.vocab_size, (count, tokens), np.int32)
    t = rng.uniform(0, 1 - paths.SIGMA_MIN, count).astype(np.float32)
    null = np.arange(count) % 2 == 1
    if row.kind == "dit":
        return {"x": normal(tokens, channels), "t": t, "null": null}
    if row.kind == "projector":
        return {"text": normal(tokens, config.clip.width)}
    if row.kind == "clip":
        return {"ids": ids}
    if row.kind == "encoder":
        return {"image": rng.random((count, side, side, 3), np.float32)}
    if row.kind == "decoder":
        text = normal(tokens, config.clip.width)
        return {"tokens": normal(tokens, channels), "text": text}
    if row.kind == "sampler":
        # Noise of a row as FlowTok.text_to_image draws it, see sampling.py.
        key = jax.random.key(SEED)
        keys = [jax.random.fold_in(key, i) for i in range(count)]
        noise = [jax.random.normal(k, (tokens, channels)) for k in keys]
        return {"ids": ids, "eps": np.stack(noise)}
    return {
        "ids": ids,
        "t": t,
        "null": np.arange(count) < NULLS,
        "eps": normal(tokens, channels),
        "image_tokens": normal(tokens, channels),
        "moments": normal(tokens, 2 * channels),
    }


def compare(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Returns the largest error of all outputs, absolute and relative L2.

    Raises:
        UserError: where outputs have other names or shapes.
    """
    shapes = [{k: np.shape(x) for k, x in side.items()} for side in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise UserError(f"outputs are {shapes[0]} here and {shapes[1]} there")
    errors = []
    for name, expected in theirs.items():
        expected = expected.astype(np.float64)
        error = ours[name].astype(np.float64) - expected
        with np.errstate(invalid="ignore"):  # an output of zeros proves nothing: nan
            relative = np.linalg.norm(error) / np.linalg.norm(expected)
        errors.append((np.abs(error).max(), relative))
    # max() would pass nan over.
    max_abs, relative = (float(np.max(values)) for values in zip(*errors, strict=True))
    return {"max_abs": max_abs, "relative": relative}


def measure(
    name: str, flags: argparse.Namespace, folder: pathlib.Path
) -> dict[str, Any]:
    """Compares and times a row in a folder of its own.

    Raises:
        UserError: where the outputs differ by more than the row's tolerance.
        WorkerError: where a side cannot run it.
    """
    row = ROWS[name]
    config = make_config(row, flags.small, dict(flags.set))
    (folder / "config.json").write_text(config_to_json(config))
    np.savez(folder / INPUTS, **make_inputs(row, config))
    sampling = {"num_steps": STEPS, "scale": SCALE, "seed": SEED}
    spec = row._asdict() | {"config": config.to_dict(), "sample": sampling}
    spec |= {"seed": SEED, "cores": flags.cores, "release": flags.release}
    (folder / "spec.json").write_text(json.dumps(spec))
    commands = {  # the release first: ours converts its weights
        "release": [flags.python, flags.worker],
        "ours": [sys.executable, str(OURS)],
    }
    with opened(commands, folder) as sides:
        theirs, ours = (side.outputs() for side in sides)
        errors = compare(ours, theirs)
        if not errors["relative"] <= row.tolerance:  # true for nan, too
            raise UserError(
                f"{name}: outputs differ by {errors['relative']:.1e} (relative L2), "
                f"expected at most {row.tolerance:.0e}; nothing was timed"
            )
        times = time_in_turn(
            sides,
            seconds=flags.seconds,
            least=LEAST,
            most=LEAST if flags.small else MOST,
        )
        about = {key: x for side in sides for key, x in side.about.items()}
    return errors | times | {"about": about}


def ratio(result: Mapping[str, Any], clock: str) -> float:
    """Returns our median time by the release's."""
    ours, theirs = (np.median(result[side][clock]) for side in ("ours", "release"))
    return float(ours / theirs)


def machine_line(result: Mapping[str, Any]) -> str:
    """Describes what a row was measured with."""
    cores = result["machine"]["cores"]
    about = result["about"]
    return (
        f"{result['cores'] or cores} of {cores} cores of "
        f"{result['machine']['processor']}, torch {about['torch']}, jax {about['jax']}"
    )


def table_line(result: Mapping[str, Any]) -> str:
    """Formats a row of the table."""
    marks = [f"{key}={value}" for key, value in result["set"].items()]
    marks += ["small"] * result["small"]
    name = result["row"] + (f" ({', '.join(marks)})" if marks else "")
    target = ROWS[result["row"]].target
    cells = [name]
    for clock in ("cpu", "wall"):
        medians = (np.median(result[side][clock]) for side in ("ours", "release"))
        cells += [*(f"{m:.4g}" for m in medians), f"{ratio(result, clock):.2f}"]
    cells.insert(4, "" if target is None else f"<= {target}")
    cells += [str(len(result["ours"]["cpu"])), result["about"]["layout"]]
    cells += [f"{result['max_abs']:.1e}, {result['relative']:.1e}"]
    return f"| {' | '.join(cells)} |"


def markdown(results: list[dict[str, Any]]) -> str:
    """Formats the tables of finished rows, one for each machine, and their commands."""
    lines = []
    for machine in dict.fromkeys(map(machine_line, results)):
        own = [r for r in results if machine_line(r) == machine]
        own.sort(key=lambda r: list(ROWS).index(r["row"]))
        lines += [
            f"{machine}, made by",
            "",
            *(f"    {command}" for command in dict.fromkeys(r["command"] for r in own)),
            "",
            "| row | ours, CPU s | release, CPU s | ratio | asked for | ours, s "
            "| release, s | ratio | rounds | layout | max abs, relative error |",
            "|---" * 11 + "|",
            *map(table_line, own),
            "",
        ]
    return "\n".join(lines)


def setting(text: str) -> tuple[str, Any]:
    """Parses KEY=VALUE of a config."""
    key, _, value = text.partition("=")
    try:
        return key, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return key, value


def parse(argv: list[str]) -> argparse.Namespace:
    """Parses the flags.

    Raises:
        UserError: for an unknown row or a release that is not there.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--release", required=True, metavar="DIR", help="checkout of the authors' code")
    add("--python", default=sys.executable, help="interpreter that has PyTorch")
    add("--out", default="runs/against_release.jsonl", help="finished rows")
    add("--only", default=",".join(ROWS), help="rows, separated by commas")
    add("--seconds", type=float, default=60.0, help="of timed calls a row")
    add("--cores", type=int, default=0, help="that each side may use; 0: all")
    add(
        "--set",
        type=setting,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="of our config, as in compute.layout=rows",
    )
    add("--small", action="store_true", help="tiny sizes, to try it out")
    worker = ROOT / "benchmarks" / "duel_release.py"
    add("--worker", default=str(worker), help="script that runs the release")
    flags = parser.parse_args(argv)
    flags.names = flags.only.split(",")
    for name in flags.names:
        if name not in ROWS:
            raise UserError(f"no row {name!r}; expected some of {', '.join(ROWS)}")
    if not pathlib.Path(flags.release).is_dir():
        raise UserError(
            f"--release={flags.release} is no directory; expected a checkout of the "
            "authors' code"
        )
    flags.release = str(pathlib.Path(flags.release).resolve())
    return flags


def read_results(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the finished rows; a line that was cut short is none."""
    results = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            results.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return results


def run(argv: list[str]) -> int:
    """Measures the missing rows; returns 1 where one of them could not be."""
    flags = parse(argv)
    path = pathlib.Path(flags.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    # As the file has them, to be found there again: tuples become lists.
    changes = json.loads(json.dumps(dict(flags.set)))
    options = {"small": flags.small, "cores": flags.cores, "set": changes}
    failed = 0
    for name in flags.names:
        key = {"row": name} | options
        results = read_results(path)
        if any(key.items() <= result.items() for result in results):
            say(f"{name}: finished before")
            continue
        try:
            with tempfile.TemporaryDirectory() as folder:
                result = measure(name, flags, pathlib.Path(folder))
        except (UserError, WorkerError) as error:
            failed = 1
            say(f"{name}: {error}")
            continue
        result |= {
            "command": shlex.join(["python", "benchmarks/against_release.py", *argv]),
            "machine": describe_machine(jax.devices()),
            "load_average": os.getloadavg()[0],
        }
        with path.open("a") as file:
            file.write(json.dumps(key | result) + "\n")
        path.with_suffix(".md").write_text(markdown([*results, key | result]))
        cpu, wall = (ratio(result, clock) for clock in ("cpu", "wall"))
        say(f"{name}: ours by the release's, CPU {cpu:.3f}, clock {wall:.3f}")
    return failed


def main() -> int:
    """Runs the command and returns its exit status."""
    try:
        return run(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
