"""Table of the largest batches of FlowTok's sizes that fit TPUs and A100s.

    python launch/fit_table.py [SIZE@TOPOLOGY ...]

For each size and topology the script finds the most rows per device (a multiple of 8)
whose train step fits. Each compile is one `--mode=compile` in a process of its own and
takes minutes on a small machine; its JSON line is stored in benchmarks/fit_table.jsonl
and not made again. The lines make benchmarks/fit_table.md and the part of
launch/README.md between its markers.
"""

import json
import math
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from flowtok_jax.perf.topologies import KINDS  # noqa: E402 - after the path

LINES = ROOT / "benchmarks" / "fit_table.jsonl"
TABLE = ROOT / "benchmarks" / "fit_table.md"
README = ROOT / "launch" / "README.md"
MARKERS = "<!-- fit table -->", "<!-- /fit table -->"

SIZES = ("b", "xl", "h")
TOPOLOGIES = ("a100:8", "v5e:4x4", "v6e:4x4", "v5p:2x2x4")
CELLS = tuple(f"{s}@{t}" for t in TOPOLOGIES for s in SIZES)
# Batches that docs and configs name: SIZE@TOPOLOGY -> global batch.
NAMED = {"h@a100:8": 8192, "h@v5e:16x16": 8192, "xl@v5e:4x4": 4096}
STEP = 8  # rows
GIB_A_ROW = {"b": 0.0265, "xl": 0.055, "h": 0.085}  # for a first guess
MEMORY = {k: v.hbm_gib * v.part for k, v in KINDS.items()}  # GiB that programs may use
COMPILES = 4  # at most, for one cell

Result = dict


def stored() -> list[Result]:
    """Reads all results so far."""
    if not LINES.is_file():
        return []
    return [json.loads(line) for line in LINES.read_text().splitlines()]


def compiled(cell: str, rows: int, devices: int) -> Result:
    """Returns the result of a cell at a batch, from the file or by compiling."""
    size, topology = cell.split("@")
    batch = rows * devices
    for result in stored():
        if (result["size"], result["topology"], result["global_batch"]) == (
            size,
            topology,
            batch,
        ):
            return result
    command = [sys.executable, "-m", "flowtok_jax.main", "--mode=compile"]
    command += [f"--config=configs/{size}.py", f"--topology={topology}"]
    command += [f"--config.train.batch_size={batch}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    result = {"size": size, **json.loads(done.stdout.splitlines()[-1])}
    with LINES.open("a") as file:
        file.write(json.dumps(result) + "\n")
    say(f"{cell} batch {batch}: {result['total_gib']} GiB, fits: {result['fits']}")
    return result


def say(line: str) -> None:
    """Prints progress to stderr."""
    sys.stderr.write(line + "\n")


def largest(cell: str) -> None:
    """Compiles a cell until the largest batch that fits lies between two results."""
    size, topology = cell.split("@")
    kind, _, sizes = topology.partition(":")
    devices = math.prod(map(int, sizes.split("x")))
    rows = int(MEMORY[kind] / GIB_A_ROW[size]) // STEP * STEP
    fitting = {0: 0.0}  # rows -> GiB
    refused = None  # least rows that do not fit
    for _ in range(COMPILES):
        result = compiled(cell, rows, devices)
        if result["fits"]:
            fitting[rows] = result["total_gib"]
        else:
            refused = min(rows, refused or rows)
        # Memory is taken as a straight line through the two largest batches that fit.
        # What libtpu states for a refused program is not on it: by then libtpu has
        # tried to save memory.
        (r0, g0), (r1, g1) = ([(0, 0.0)] + sorted(fitting.items()))[-2:]
        slope = (g1 - g0) / (r1 - r0) if r1 > r0 else GIB_A_ROW[size]
        aim = r1 + (0.99 * MEMORY[kind] - g1) / slope
        if refused and aim >= refused:  # the line is wrong there: bisect
            aim = (r1 + refused) / 2 if r1 else 0.85 * refused
        rows = int(aim) // STEP * STEP
        if rows < 1.03 * r1 or (refused and rows >= refused):
            return


def batch_of(result: Result) -> int:
    """Returns the rows of all devices together."""
    return result["global_batch"]


def row(result: Result) -> str:
    """Formats a line of the table."""
    devices = result["devices"]
    moved = result["collectives"] or {}
    gib = sum(entry["bytes"] for entry in moved.values()) / 2**30
    return (
        f"| {result['size'].upper()} | {result['topology']} | "
        f"{result['global_batch'] // devices} | {result['global_batch']} | "
        f"{result['total_gib']:.1f} of {result['hbm_gib']:g} | {result['remat']} | "
        f"{100 * result['recompute_fraction']:.1f} % | "
        f"{result['model_tflops_per_step'] / devices:.0f} | {gib:.1f} |"
    )


def table(results: list[Result]) -> str:
    """Formats the largest batch of each cell that fits, and the named batches."""
    best: dict[tuple, Result] = {}
    for result in results:
        key = result["size"], result["topology"]
        if result["fits"]:
            named = NAMED.get("@".join(key)) == result["global_batch"]
            if named:
                best[(*key, "named")] = result
            best[key] = max(best.get(key, result), result, key=batch_of)
    lines = [
        "| size | topology | rows a device | batch | GiB a device | remat | recomputed "
        "| TFLOP a device and step | GiB moved a device and step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    unique = {json.dumps(r): r for r in best.values()}.values()
    order = sorted(
        unique, key=lambda r: (SIZES.index(r["size"]), r["topology"], r["global_batch"])
    )
    return "\n".join([*lines, *map(row, order)]) + "\n"


def write(text: str) -> None:
    """Stores the table and puts it between the README's markers."""
    TABLE.write_text(text)
    first, last = MARKERS
    head, _, rest = README.read_text().partition(first)
    _, _, tail = rest.partition(last)
    README.write_text(f"{head}{first}\n\n{text}\n{last}{tail}")


def main(cells: list[str]) -> None:
    """Compiles what is missing for the cells (default: all) and writes the table."""
    for cell in cells or CELLS:
        largest(cell)
        write(table(stored()))
    if not cells:
        for cell, batch in NAMED.items():
            compiled(cell, batch, 1)
    write(table(stored()))


if __name__ == "__main__":
    main(sys.argv[1:])
