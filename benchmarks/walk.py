"""Counts the walk of `--mode=sample`: files of the package crossed, and moves made.

    python benchmarks/walk.py --checkpoint=runs/demo [--root=CHECKOUT] [--show]

A move is a call from one file of flowtok_jax/ to another one, after `main` began; where
Flax or JAX lie between the two, the file that called them counts. Imports are no moves.
Neither are the calls that networks make of their layers and of one another: they happen
once a layer in every trace, and a reader opens models/ once. A move is before the
caption where it comes before the prompts are encoded. --root measures another checkout.
"""

import argparse
import contextlib
import importlib
import io
import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence
from types import FrameType

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "flowtok_jax"
PROMPT = "a red circle at the top left"
ENTRY = "Vocabulary.encode"  # where the caption enters


class Walk:
    """The moves of a program, in order; an object is a hook of sys.setprofile.

    Attributes:
        files: files of the package that were crossed.
        moves: caller's file, file and name of what was called.
        before: number of moves before the caption; None until it enters.
    """

    def __init__(self, root: pathlib.Path):
        self._folder = f"{root / PACKAGE}/"
        self.files: set[str] = set()
        self.moves: list[tuple[str, str, str]] = []
        self.before: int | None = None

    def _file(self, frame: FrameType) -> str:
        """Returns the file of a frame within the package, "" if outside."""
        name = frame.f_code.co_filename
        return name.removeprefix(self._folder) if name.startswith(self._folder) else ""

    def _caller(self, frame: FrameType) -> str:
        """Returns the file of the nearest caller within the package, "" for none.

        An import has none, although importlib was called from somewhere.
        """
        above = frame.f_back
        while above is not None and not self._file(above):
            if above.f_code.co_filename.startswith("<frozen importlib"):
                return ""
            above = above.f_back
        return "" if above is None else self._file(above)

    def __call__(self, frame: FrameType, event: str, _) -> None:
        """Notes a call from one file to another."""
        there = self._file(frame)
        if event != "call" or not there or frame.f_code.co_name == "<module>":
            return
        here = self._caller(frame)
        name = frame.f_code.co_qualname
        if name == ENTRY and self.before is None:
            self.before = len(self.moves)
        if here not in ("", there):
            self.files |= {here, there}
            if not here.startswith("models/"):
                self.moves.append((here, there, name))


def measure(checkpoint: str, root: pathlib.Path = ROOT) -> Walk:
    """Samples one prompt by the command line of a checkout.

    Raises:
        RuntimeError: where the command failed.
    """
    main = importlib.import_module(f"{PACKAGE}.main").main
    walk = Walk(root)
    with tempfile.TemporaryDirectory() as out:
        flags = [f"--checkpoint={checkpoint}", f"--workdir={out}"]
        argv = ["main", "--mode=sample", *flags, f"--prompts={PROMPT}"]
        with contextlib.redirect_stdout(io.StringIO()):
            sys.setprofile(walk)
            try:
                status = main(argv)
            finally:
                sys.setprofile(None)
    if status:
        raise RuntimeError(f"--mode=sample ended with status {status}")
    return walk


def main(argv: Sequence[str]) -> None:
    """Writes the counts as one JSON object, after the moves where --show asks."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--checkpoint", required=True, help="a run's workdir")
    parser.add_argument("--root", type=pathlib.Path, default=ROOT)
    parser.add_argument("--show", action="store_true", help="list the moves")
    options = parser.parse_args(argv)
    root = options.root.resolve()
    sys.path.insert(0, str(root))
    walk = measure(options.checkpoint, root)
    for move in walk.moves if options.show else ():
        sys.stdout.write("{} -> {} {}\n".format(*move))
    counts = {"files": len(walk.files), "moves": len(walk.moves)}
    sys.stdout.write(json.dumps(counts | {"before_the_caption": walk.before}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
