"""Plots of the measurements by `--mode=bench` and of the ablations.

    .venv/bin/pip install -r requirements-eval.txt
    .venv/bin/python benchmarks/plots.py    # results.jsonl -> results.png, beside it

A line of results.jsonl is the last line that `--mode=bench` wrote to stdout.
"""

import collections
import json
import pathlib
import sys
from typing import Any

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results.jsonl"
PICTURE = HERE / "results.png"
STYLES = {"release": "-", "left": "--", "early": ":"}  # times of the sampler -> line


def _pyplot():
    """Imports pyplot with a backend that needs no screen."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise SystemExit(
            "error: pictures need matplotlib; run: pip install -r requirements-eval.txt"
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _save(figure, path: pathlib.Path) -> None:
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png", dpi=120, bbox_inches="tight")
    part.replace(path)


def label(report: dict[str, Any], run: dict[str, Any]) -> str:
    """Describes a run in three lines."""
    on = report["machine"]
    dit = report["dit"]
    where = on["device_kind"]
    if on["platform"] == "cpu":
        where = f"{on['cores']} cores of {on['processor']}"
    steps = run["options"].get("num_steps")
    what = f"{run['part'].replace('_', ' ')}, batch {run['batch_size']}"
    size = f"DiT {dit['depth']} x {dit['width']}, {report['precision']}"
    return "\n".join([what + (f", {steps} steps" if steps else ""), size, where])


def _draw_modules(axes, colours, runs: list[dict[str, Any]]) -> None:
    """Draws the share of each module in the time of the profiled runs."""
    profiles = [run.get("profile", {}).get("modules", ()) for run in runs]
    shares = [
        {f"{m['network']} {m['part']}": 100 * m["share"] for m in modules}
        for modules in profiles
    ]
    # The union of counters keeps the largest share of a module over all runs.
    most = collections.Counter()
    for found in shares:
        most |= collections.Counter(found)
    base = [0.0] * len(runs)
    for colour, (module, share) in zip(colours, most.most_common(), strict=False):
        if share < 1:
            break
        widths = [found.get(module, 0.0) for found in shares]
        axes.barh(range(len(runs)), widths, left=base, color=colour, label=module)
        base = [x + width for x, width in zip(base, widths, strict=True)]
    axes.set_xlabel("time by module, % (from 1 % on)")
    axes.set_xlim(0, 100)
    if most:
        axes.legend(bbox_to_anchor=(1.02, 1), loc="upper left", frameon=False)


def draw_results(reports: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draws images per second of every run, and time by module of profiled runs."""
    plt = _pyplot()
    runs = [run for report in reports for run in report["runs"]]
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 1.2 + 0.75 * len(runs)), sharey=True
    )
    rates = [run["images_per_sec"] for run in runs]
    bars = left.barh(range(len(runs)), rates, color="0.5")
    left.bar_label(bars, fmt="%.3g", padding=4)
    left.set_xlabel("images/s")
    left.margins(x=0.2)
    names = [label(report, run) for report in reports for run in report["runs"]]
    left.set_yticks(range(len(runs)), names)
    left.invert_yaxis()
    _draw_modules(right, plt.get_cmap("tab20").colors, runs)
    _save(figure, path)
    plt.close(figure)


def draw_ablations(report: dict[str, Any], path: pathlib.Path) -> None:
    """Draws the accuracy by variant, and by steps and scale of the sampler."""
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    names = list(dict.fromkeys(r["variant"] for r in report["variants"]))
    for offset, (key, text) in enumerate(
        (("accuracy", "source sampled"), ("accuracy_mean_source", "its mean"))
    ):
        places = [i + 0.4 * offset - 0.2 for i in range(len(names))]
        values = [
            [r[key] for r in report["variants"] if r["variant"] == name]
            for name in names
        ]
        means = [sum(v) / len(v) for v in values]
        left.barh(places, means, height=0.38, label=text)
        for place, seeds in zip(places, values, strict=True):
            left.plot(seeds, [place] * len(seeds), "k.", markersize=4)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set_xlim(0, 1)
    left.set_xlabel(f"accuracy after {report['steps']} steps; dots are seeds")
    left.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    scales = sorted({r["scale"] for r in report["sampling"]})
    for i, scale in enumerate(scales):
        for times, style in STYLES.items():
            points = sorted(
                (r["num_steps"], r["accuracy"])
                for r in report["sampling"]
                if (r["scale"], r["times"]) == (scale, times)
            )
            text = f"scale {scale:g}" if times == "release" else None
            right.plot(*zip(*points, strict=True), style, color=f"C{i}", label=text)
    right.set_xscale("log")
    ticks = sorted({r["num_steps"] for r in report["sampling"]})
    right.set_xticks(ticks, map(str, ticks))
    right.minorticks_off()
    right.set_ylim(0, 1.02)
    right.set_xlabel("Euler steps; times: line `release`, dashes `left`, dots `early`")
    right.set_ylabel(f"accuracy, n = {report['samples']}")
    right.legend(loc="lower right")
    _save(figure, path)
    plt.close(figure)


def main() -> int:
    """Draws results.png and returns the exit status."""
    reports = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    draw_results(reports, PICTURE)
    sys.stdout.write(f"{PICTURE}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
