"""Tables of timed programs, at most 80 columns wide."""

from typing import Any

import rich.box
import rich.console
import rich.table

from flowtok_jax.runtime.cli import wrap_text

COLUMNS = ("batch", "steps", "p50 s", "p95 s", "images/s", "TFLOP/s", "MFU", "GiB")

SUITE_COLUMNS = ("images/s", "TFLOP/s", "MFU", "of own", "GiB", "cold", "warm")


def show_bench(report: dict[str, Any]) -> None:
    """Prints the report of --mode=bench."""
    console = rich.console.Console(width=80)  # also where stdout is no terminal
    on = report["machine"]
    table = rich.table.Table(
        title=f"{on['devices']} x {on['device_kind']}, {report['precision']}",
        box=rich.box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("part", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for run in report["runs"]:
        table.add_row(
            run["part"],
            str(run["batch_size"]),
            str(run["options"].get("num_steps", "")),
            *(f"{run['seconds'][p]:.3f}" for p in ("p50", "p95")),
            f"{run['images_per_sec']:.3g}",
            f"{run['tflops_per_sec']:.3g}",
            "-" if run["mfu"] is None else f"{100 * run['mfu']:.1f} %",
            f"{run['memory']['program_gib']:.2f}",
        )
    console.print(table)
    _show_profiles(console, report["runs"])


def _show_profiles(console: rich.console.Console, runs: list[dict[str, Any]]) -> None:
    for run in runs:
        if "profile" in run:
            console.print(_profile_table(run))


def show_suite(report: dict[str, Any]) -> None:
    """Prints the report of --mode=bench with a suite, and which rows it lacks."""
    console = rich.console.Console(width=80)
    rows = [row for row in report["rows"] if "reason" not in row]
    table = rich.table.Table(
        title=f"{report['machine']['device_kind']}, suite {report['suite']}",
        box=rich.box.SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption="MFU: share of the published peak; of own: of the matmul above; cold, "
        "warm: seconds to compile without the cache and with it",
    )
    table.add_column("row", no_wrap=True)
    for name in SUITE_COLUMNS:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_suite_cells(row))
    console.print(table)
    _show_profiles(console, rows)
    for row in report["rows"]:
        if "reason" in row:
            _show_text(console, f"{row['name']}: {row['reason']}")
    total = len(report["rows"]) + len(report["left"])
    failed = len(report["rows"]) - len(rows)
    counts = f"{len(rows)} of {total} rows measured, {failed} failed"
    if not report["left"]:
        _show_text(console, f"{counts}; all rows are there")
        return
    left = ", ".join(report["left"])
    _show_text(
        console,
        f"{counts}; the {report['minutes']:g} minutes of bench.minutes were not enough "
        f"for {len(report['left'])}, and the same command goes on with them: {left}",
    )


def _show_text(console: rich.console.Console, text: str) -> None:
    for line in wrap_text(text, ""):
        console.print(line, markup=False, highlight=False)


def _suite_cells(row: dict[str, Any]) -> list[str]:
    """Returns the cells of a row that was measured."""
    name = row["name"]
    rate = f"{row['tflops_per_sec']:.3g}"
    if "images_per_sec" not in row:  # a matrix product
        return [name, "", rate]
    if row["part"] == "train":
        name += f", batch {row['batch_size']}"
    shares = (row["mfu"], row["mfu_by_matmul"])
    speed = row["images_per_sec"]
    times = [row.get(f"{kind}compile_seconds") for kind in ("", "warm_")]
    return [
        name,
        f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}",
        rate,
        *("-" if share is None else f"{100 * share:.1f} %" for share in shares),
        f"{row['memory']['program_gib']:.2f}",
        *("" if seconds is None else f"{seconds:.1f}" for seconds in times),
    ]


def _profile_table(run: dict[str, Any]) -> rich.table.Table:
    """Makes the table of one program's time by module."""
    found = run["profile"]
    table = rich.table.Table(
        title=f"{run['part']} at batch {run['batch_size']}: {found['seconds']:.2f} s",
        box=rich.box.SIMPLE,
    )
    table.add_column("module")
    for name in ("seconds", "share", "GFLOP", "GFLOP/s"):
        table.add_column(name, justify="right")
    for row in found["modules"]:
        if row["share"] < 5e-4 and not row["gflop"]:
            continue  # too small to be seen in the columns
        rate = row["gflop"] / row["seconds"] if row["seconds"] else 0
        table.add_row(
            f"{row['network']} {row['part']}",
            f"{row['seconds']:.3f}",
            f"{100 * row['share']:.1f} %",
            f"{row['gflop']:.1f}" if row["gflop"] else "",
            f"{rate:.0f}" if rate else "",
        )
    whole = found["instructions_seconds"]
    share = f"{100 * whole / found['seconds']:.1f} %"
    table.add_row("all instructions", f"{whole:.3f}", share, "", "")
    return table
