"""Tables of timed programs, at most 80 columns wide."""

from typing import Any

import rich.box
import rich.console
import rich.table

COLUMNS = ("batch", "steps", "p50 s", "p95 s", "images/s", "TFLOP/s", "MFU", "GiB")


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
    for run in report["runs"]:
        if "profile" in run:
            console.print(_profile_table(run))


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
