"""Executes the notebooks and stores what they show: `make notebooks`.

    python notebooks/execute.py                   all of them
    python notebooks/execute.py quickstart        one
    FLOWTOK_NOTEBOOK_SMALL=1 python notebooks/execute.py --out=DIR     small, elsewhere

Each runs in a new folder, from an empty kernel, top to bottom. Beside its outputs a
notebook keeps a digest of the cells that made them, and how long they took where, so
that a test can tell outputs that are no longer those of its cells.
"""

import argparse
import hashlib
import json
import pathlib
import platform
import re
import sys
import tempfile
import time
from collections.abc import Sequence

try:
    import nbclient
    import nbformat
except ImportError as error:
    raise SystemExit(
        f"{error.name} is not installed; install what executes notebooks with "
        "pip install -r requirements-notebooks.txt"
    ) from error

FOLDER = pathlib.Path(__file__).parent
NAMES = ("quickstart", "train_your_own", "released_weights")
KEY = "flowtok"  # of a notebook's metadata
CELL_SECONDS = 3600
ADDRESS = re.compile(r"github(\.com)?/[\w-]+/flowtok_jax")


def digest(notebook: nbformat.NotebookNode) -> str:
    """Returns the SHA-256 of the cells, whatever they gave, and whoever publishes."""
    cells = [
        [cell.cell_type, ADDRESS.sub("flowtok_jax", cell.source)]
        for cell in notebook.cells
    ]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def as_shown(text: str) -> str:
    """Returns what a terminal shows of a text whose bars go back to a line's begin."""
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return "\n".join(line.rstrip() for line in lines)


def tidy(notebook: nbformat.NotebookNode) -> None:
    """Joins the pieces of each output, and drops what no reader needs."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of each cell
        joined = []
        for output in cell.get("outputs", ()):
            last = joined[-1] if joined else {}
            # A bar comes in a piece for each of its steps.
            if output.output_type == "stream" and output.name == last.get("name"):
                last.text += output.text
            else:
                joined.append(output)
            # IPython gives pictures of Pillow as PNG and JPEG.
            output.get("data", {}).pop("image/jpeg", None)
        for output in joined:
            if output.output_type == "stream":
                output.text = as_shown(output.text)
        if cell.cell_type == "code":
            cell.outputs = joined


def execute(path: pathlib.Path) -> nbformat.NotebookNode:
    """Runs a notebook in a new folder and returns it with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: where a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="flowtok_notebook_") as folder:
        resources = {"metadata": {"path": folder}}
        nbclient.NotebookClient(
            notebook, timeout=CELL_SECONDS, kernel_name="python3", resources=resources
        ).execute()
    tidy(notebook)
    notebook.metadata.pop("widgets", None)
    notebook.metadata[KEY] = {
        "cells_sha256": digest(notebook),
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "python": platform.python_version(),
    }
    return notebook


def main(argv: Sequence[str]) -> int:
    """Executes the notebooks that are named, and writes them with their outputs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}; all of them"
    )
    parser.add_argument(
        "--out", type=pathlib.Path, default=FOLDER, metavar="DIR", help="%(default)s"
    )
    flags = parser.parse_args(argv)
    for name in flags.names or NAMES:
        notebook = execute(FOLDER / f"{name}.ipynb")
        flags.out.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, flags.out / f"{name}.ipynb")
        minutes = notebook.metadata[KEY]["minutes"]
        sys.stdout.write(f"{name}: {minutes} minutes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
