"""Command that compares our numbers with a folder of golden numbers of the release.

    python -m flowtok_jax.convert.parity --golden=DIR [--only=NAME,...]

Prints one line per tensor: its largest absolute error, its relative L2 error
|a - b| / |b|, and the error allowed; a JSON object comes last. Files that golden.json
lists and that do not exist are `absent`, and have not `failed`. Exit status: 0 if all
was compared and is within its tolerance; 1 if a tensor is over its tolerance, missing
or not known here, or a file absent (--only leaves files out); 2 for a mistake of the
user's.
"""

import json
import math
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax.errors import FlaxError

from flowtok_jax.convert import checks, state_dicts
from flowtok_jax.convert.goldens import AbsentError, Check, Goldens, ParityReport
from flowtok_jax.perf.machine import process_peak_bytes
from flowtok_jax.runtime.cli import make_command_parser, run_command, say
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.paths import expand_path
from flowtok_jax.weights.safetensors import check_shapes

GOLDEN = "../shared/golden"  # may not exist
RELEASED = (".pth", ".bin")  # endings of the authors' files of the tiny models


def select(names: Sequence[str], only: str) -> list[str]:
    """Returns the golden files that --only names, by their own or their model's name.

    Raises:
        UserError: if a name fits no file.
    """
    chosen = []
    for asked in filter(None, only.split(",")):
        asked = asked.removesuffix(".npz").removesuffix(".json")
        found = [n for n in names if asked in (n, n.split(".")[0])]
        if not found:
            raise UserError(
                f"--only={asked} is no file of golden.json; expected one of "
                f"{', '.join(names)}"
            )
        chosen += found
    # In the order of golden.json, each once, whatever the order in --only.
    selected = [n for n in names if n in chosen] if only else list(names)
    if not selected:
        raise UserError(f"golden.json and --only={only} leave no file to compare")
    return selected


def check_released(goldens: Goldens, model: str, report: ParityReport) -> list[str]:
    """Compares the authors' files of a model with the rule's weights.

    Returns:
        Names of files that were not read, because PyTorch is not installed.
    """
    paths = [goldens.folder / f"{model}{ending}" for ending in RELEASED]
    unread = []
    for path in filter(pathlib.Path.is_file, paths):
        if not state_dicts.has_torch():
            say(f"{'note':7} {path.name:56} not read: PyTorch is not installed")
            unread.append(path.name)
            continue
        state = state_dicts.read_state(path)
        expected = goldens.state(model)
        shapes = ({k: np.shape(x) for k, x in s.items()} for s in (state, expected))
        check_shapes(f"{path} differs from its manifest", *shapes)
        errors = [abs(np.asarray(expected[k]) - x).max() for k, x in state.items()]
        error = np.max(errors)
        say(f"{'note':7} {path.name:56} max_abs {error:9.2e} from the rule's weights")
        if not error < 1e-5:  # true for nan, too
            report.fault(path.name, "holds other weights than the rule's")
    return unread


def compare(
    goldens: Goldens, names: Sequence[str], report: ParityReport
) -> dict[str, Any]:
    """Runs the checks of golden files into the report.

    Returns:
        Fields of the summary that the report does not hold.
    """
    seconds = {}
    unread = []
    for name in names:
        start = time.monotonic()
        try:
            run = checks.find_check(goldens, name)
            check = Check(goldens, name, report)
            run(check)
            check.finish()
        except AbsentError as error:
            report.lack(name, str(error))
        except UserError as error:
            report.fault(name, str(error))
        except (TypeError, ValueError, FlaxError) as error:
            # An input of a shape that the networks do not take.
            reason = (str(error).splitlines() or [""])[0]
            report.fault(name, f"cannot be computed: {type(error).__name__}: {reason}")
        seconds[name] = round(time.monotonic() - start, 1)
    # The authors' own file of a model once, whatever number of its golden files ran.
    for model in dict.fromkeys(name.split(".")[0] for name in names):
        try:
            unread += check_released(goldens, model, report)
        except AbsentError as error:
            report.lack(model, str(error))
        except UserError as error:
            report.fault(model, str(error))
    return {"not_read": unread, "seconds": seconds}


def summarize(report: ParityReport) -> dict[str, Any]:
    """Counts the outcomes, and names the tensor nearest to its tolerance as worst."""
    passed = [r for r in report.results if r.verdict == "ok"]
    finite = [r for r in report.results if math.isfinite(r.relative)]  # JSON has no nan
    worst = max(finite, key=lambda r: r.relative / r.tolerance, default=None)
    return {
        "passed": len(passed),
        "failed": report.failed,
        "absent": report.absent,
        "worst": worst._asdict() if worst else None,
    }


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit status."""
    parser = make_command_parser("flowtok_jax.convert.parity", __doc__)
    parser.add_argument("--golden", metavar="DIR", default=GOLDEN)
    parser.add_argument("--only", metavar="NAME", default="", help="files or models")
    flags = parser.parse_args(argv)
    return run_command(lambda: _compare_all(flags.golden, flags.only))


def _compare_all(folder: str, only: str) -> int:
    report = ParityReport()
    goldens = Goldens(pathlib.Path(expand_path(folder)))
    listed = [pathlib.PurePath(name).stem for name in goldens.files]
    names = select(listed, only)
    # Golden numbers are float32 of a CPU; accelerators round products by default.
    with jax.default_matmul_precision("highest"):
        rest = compare(goldens, names, report)
    summary = summarize(report) | rest
    summary["not_selected"] = [name for name in listed if name not in names]
    stored = {path.stem for path in goldens.folder.glob("*.npz")}
    summary["not_listed"] = sorted(stored - set(listed))
    summary["peak_memory_gb"] = round(process_peak_bytes() / 1e9, 2)
    summary["device"] = jax.devices()[0].device_kind
    say(json.dumps(summary))
    return 1 if report.failed or report.absent else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
