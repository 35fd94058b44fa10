"""Table of the batches of the image tokenizer's whole recipe that fit.

    python launch/fit_tokenizer.py CONFIG TOPOLOGY BATCH [FLAG ...]
    python launch/fit_tokenizer.py

The first form compiles `configs/tokenizer.py:CONFIG` by `--mode=compile`, with bfloat16
judges and whatever flags follow, and stores the JSON line in
benchmarks/fit_tokenizer.jsonl. Both forms make the part of docs/speed.md between its
markers: of each choice of flags the largest batch that was found to fit.
"""

import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
LINES = ROOT / "benchmarks" / "fit_tokenizer.jsonl"
PAGE = ROOT / "docs" / "speed.md"
MARKERS = "<!-- fit tokenizer -->", "<!-- /fit tokenizer -->"
FLAGS = (
    "--config.loss.tokenizer.judges.dtype=bfloat16",
    "--config.compute.remat=dense",
    "--config.mesh.fsdp=8",
)
HEAD = (
    "| px | topology | batch | rows a device | `accumulate` | computed in parts "
    "| GiB a device | recomputed | TFLOP a device and step |",
    "|---|---|---|---|---|---|---|---|---|",
)


def compiled(config: str, topology: str, batch: str, flags: list[str]) -> dict:
    """Compiles a config with the flags.

    Returns:
        The result, with what it is of.
    """
    command = [sys.executable, "-m", "flowtok_jax.main", "--mode=compile"]
    command += [f"--config=configs/tokenizer.py:{config}", f"--topology={topology}"]
    command += [f"--config.train.batch_size={batch}", *FLAGS, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    made_by = {"config": config, "flags": [*FLAGS, *flags]}
    return made_by | json.loads(done.stdout.splitlines()[-1])


def option(result: dict, name: str, default: str) -> str:
    """Reads the value of a config's key off the flags."""
    found = re.search(rf"--config\S*\.{name}=(\S+)", " ".join(result["flags"]))
    return found[1] if found else default


def row(result: dict) -> str:
    """Formats a line of the table."""
    devices = result["devices"]
    accumulate = option(result, "train.accumulate", "1")
    parts = {name: option(result, f"{name}.parts", "1") for name in ("judges", "gan")}
    split = [f"`{name}.parts={n}`" for name, n in parts.items() if n != "1"]
    if option(result, "judges.remat", "False") == "True":
        split.append("`judges.remat`")
    return (
        f"| {result['config']} | {result['topology']} | {result['global_batch']} | "
        f"{result['global_batch'] // devices} | "
        f"{accumulate} | {', '.join(split) or 'nothing'} | "
        f"{result['total_gib']:.1f} of {result['hbm_gib']:g} | "
        f"{100 * result['recompute_fraction']:.1f} % | "
        f"{result['model_tflops_per_step'] / devices:.0f} |"
    )


def table(results: list[dict]) -> str:
    """Formats the largest batch that fits of each config, topology and flags."""
    best = {}
    for result in sorted(results, key=lambda r: r["global_batch"]):
        if result["fits"]:
            best[result["config"], result["topology"], *result["flags"]] = result
    order = sorted(
        best.values(), key=lambda r: (r["config"], r["topology"], r["global_batch"])
    )
    return "\n".join([*HEAD, *map(row, order)]) + "\n"


def main(arguments: list[str]) -> None:
    """Compiles what the arguments say, and writes the table."""
    if arguments:
        config, topology, batch, *flags = arguments
        with LINES.open("a") as file:
            file.write(json.dumps(compiled(config, topology, batch, flags)) + "\n")
    text = table([json.loads(line) for line in LINES.read_text().splitlines()])
    first, last = MARKERS
    head, _, rest = PAGE.read_text().partition(first)
    _, _, tail = rest.partition(last)
    PAGE.write_text(f"{head}{first}\n\n{text}\n{last}{tail}")


if __name__ == "__main__":
    main(sys.argv[1:])
