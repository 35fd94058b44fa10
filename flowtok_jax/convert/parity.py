"""Our numbers against a folder of golden numbers of the release.

    python -m flowtok_jax.convert.parity --golden=DIR [--only=NAME,...]

One line a tensor: its largest absolute error, its relative L2 error |a - b| / |b|, and
what is allowed; a JSON object last. Exit status: 0; 1 where a tensor is over its
tolerance, missing or not known here; 2 for a mistake of the user's.
"""

import json
import math
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax.errors import FlaxError

from flowtok_jax.convert import checks, critic_checks, files
from flowtok_jax.convert.checks import Check, Report
from flowtok_jax.convert.goldens import Goldens
from flowtok_jax.convert.memory import peak_memory
from flowtok_jax.runtime.cli import make_command_parser, run_command, say
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.weights.safetensors import check_shapes

GOLDEN = "../shared/golden"  # need not be there
# The authors' files of the tiny models, where a folder has them.
RELEASED = (".pth", ".bin")
BY_ENDING = {
    ".forward": checks.check_forward,
    ".loss": checks.check_loss,
    ".sample": checks.check_sample,
    ".train": checks.check_train,
}


def find_check(goldens: Goldens, name: str) -> Callable[[Check], None]:
    """What computes a golden file's numbers.

    Raises:
        UserError: where nothing does.
    """
    if name in critic_checks.CHECKS:
        return critic_checks.CHECKS[name]
    ending = pathlib.PurePath(name).suffix
    if ending in BY_ENDING:
        return BY_ENDING[ending]
    if name.startswith("end_to_end_"):
        return checks.check_end_to_end
    if name in goldens.values and goldens.is_tokenizer(name):
        return checks.check_tokenizer
    raise UserError("is of no known kind, and golden.json has no sizes of it")


def select(names: Sequence[str], only: str) -> list[str]:
    """The files that --only names, each by its name or by its model's.

    Raises:
        UserError: where one names nothing.
    """
    chosen = []
    for wanted in filter(None, only.split(",")):
        wanted = wanted.removesuffix(".npz")
        found = [n for n in names if wanted in (n, n.split(".")[0])]
        if not found:
            raise UserError(
                f"--only={wanted} is no file of golden.json; wanted one of "
                f"{', '.join(names)}"
            )
        chosen += found
    selected = [n for n in names if n in chosen] if only else list(names)
    if not selected:
        raise UserError(f"golden.json and --only={only} leave no file to compare")
    return selected


def check_released(goldens: Goldens, model: str, report: Report) -> list[str]:
    """Compares the authors' file of a model with the rule; the files not read."""
    paths = [goldens.folder / f"{model}{ending}" for ending in RELEASED]
    unread = []
    for path in filter(pathlib.Path.is_file, paths):
        if not files.has_torch():
            say(f"{'note':7} {path.name:56} not read: PyTorch is not installed")
            unread.append(path.name)
            continue
        state, wanted = files.read_state(path), goldens.state(model)
        shapes = ({k: np.shape(x) for k, x in s.items()} for s in (state, wanted))
        check_shapes(f"{path} differs from its manifest", *shapes)
        error = np.max([abs(np.asarray(wanted[k]) - x).max() for k, x in state.items()])
        say(f"{'note':7} {path.name:56} max_abs {error:9.2e} from the rule's weights")
        if not error < 1e-5:
            report.fault(path.name, "holds other weights than the rule's")
    return unread


def compare(goldens: Goldens, names: Sequence[str], report: Report) -> dict[str, Any]:
    """Runs the checks of golden files; what else there is to say about them."""
    seconds, missing, unread = {}, [], []
    for name in names:
        start = time.monotonic()
        try:
            run = find_check(goldens, name)
            check = Check(goldens, name, report)
            run(check)
            check.finish()
        except UserError as error:
            report.fault(name, str(error))
            if not (goldens.folder / f"{name}.npz").is_file():
                missing.append(name)
        except (TypeError, ValueError, FlaxError) as error:
            # An input of a shape that the networks do not take.
            reason = (str(error).splitlines() or [""])[0]
            report.fault(name, f"cannot be computed: {type(error).__name__}: {reason}")
        seconds[name] = round(time.monotonic() - start, 1)
    for model in dict.fromkeys(name.split(".")[0] for name in names):
        try:
            unread += check_released(goldens, model, report)
        except UserError as error:
            report.fault(model, str(error))
    return {"missing": missing, "not_read": unread, "seconds": seconds}


def summarize(report: Report) -> dict[str, Any]:
    """What became of the tensors, and the worst by how near it is to its tolerance."""
    passed = [r for r in report.results if r.verdict == "ok"]
    finite = [r for r in report.results if math.isfinite(r.relative)]  # JSON has no nan
    worst = max(finite, key=lambda r: r.relative / r.tolerance, default=None)
    return {
        "passed": len(passed),
        "failed": report.failed,
        "worst": worst._asdict() if worst else None,
    }


def main(argv: Sequence[str]) -> int:
    """Runs the comparison."""
    parser = make_command_parser("flowtok_jax.convert.parity", __doc__)
    parser.add_argument("--golden", metavar="DIR", default=GOLDEN)
    parser.add_argument("--only", metavar="NAME", default="", help="files or models")
    flags = parser.parse_args(argv)
    return run_command(lambda: _compare_all(flags.golden, flags.only))


def _compare_all(folder: str, only: str) -> int:
    report = Report()
    goldens = Goldens(pathlib.Path(folder))
    listed = [name.removesuffix(".npz") for name in goldens.files]
    names = select(listed, only)
    with jax.default_matmul_precision("highest"):
        rest = compare(goldens, names, report)
    summary = summarize(report) | rest
    summary["not_selected"] = [name for name in listed if name not in names]
    there = {path.stem for path in goldens.folder.glob("*.npz")}
    summary["not_listed"] = sorted(there - set(listed))
    summary["peak_memory_gb"] = round(peak_memory(), 2)
    summary["device"] = jax.devices()[0].device_kind
    say(json.dumps(summary))
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
