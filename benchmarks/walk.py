"""Counts the walk of `--mode=sample`: files of the package crossed, and moves made.

    python benchmarks/walk.py --workdir=runs/demo [--root=ANOTHER_CHECKOUT]

A move is a call from one file of flowtok_jax/ to another one, made after `main()` began
and outside of any import, whatever library lies between the two files (Flax and JAX
call our modules back). Moves before the caption enters are those up to the first call of
`Vocabulary.encode`. A caller that is itself the callee's file is no move, nor is a
return. A reader who follows the program makes about these jumps.
"""

import argparse
import contextlib
import io
import json
import pathlib
import sys
import tempfile
from types import FrameType

PROMPT = "a red circle at the top left"


class Walk:
    """The profiler of one run: every move between files, in order."""

    def __init__(self, package: pathlib.Path):
        self._package = f"{package}/"
        self.moves: list[tuple[str, str, str]] = []
        self.before: int | None = None

    def _file(self, frame: FrameType) -> str | None:
        name = frame.f_code.co_filename
        return name.removeprefix(self._package) if self._is_ours(name) else None

    def _is_ours(self, name: str) -> bool:
        return name.startswith(self._package)

    def __call__(self, frame: FrameType, event: str, _) -> None:
        """Notes a call, where it is a move; the hook of sys.setprofile."""
        if event != "call" or not self._is_ours(frame.f_code.co_filename):
            return
        caller = frame.f_back
        if DIRECT:
            caller = (
                caller if caller and self._is_ours(caller.f_code.co_filename) else None
            )
        while caller is not None and not self._is_ours(caller.f_code.co_filename):
            if caller.f_code.co_filename.startswith("<frozen importlib"):
                return
            caller = caller.f_back
        if caller is None or frame.f_code.co_name == "<module>":
            return
        here, there = self._file(caller), self._file(frame)
        if frame.f_code.co_qualname == "Vocabulary.encode" and self.before is None:
            self.before = len(self.moves)
        if here != there:
            self.moves.append((here, there, frame.f_code.co_qualname))


DIRECT = False


def main() -> None:
    global DIRECT
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--root", default=str(pathlib.Path(__file__).parents[1]))
    parser.add_argument("--direct", action="store_true")
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    DIRECT = options.direct
    root = pathlib.Path(options.root).resolve()
    sys.path.insert(0, str(root))
    from flowtok_jax import main as cli

    walk = Walk(root / "flowtok_jax")
    with tempfile.TemporaryDirectory() as out:
        argv = [
            "main",
            "--mode=sample",
            f"--checkpoint={options.workdir}",
            f"--workdir={out}",
            f"--prompts={PROMPT}",
        ]
        sys.argv = argv
        with contextlib.redirect_stdout(io.StringIO()):
            sys.setprofile(walk)
            try:
                cli.main(argv)
            finally:
                sys.setprofile(None)
    files = {f for move in walk.moves for f in move[:2]}
    if options.show:
        from collections import Counter

        for i, m in enumerate(walk.moves):
            if i == walk.before:
                print("=====")
            print(*m)
    print(
        json.dumps(
            {"files": len(files), "moves": len(walk.moves), "before": walk.before}
        )
    )


if __name__ == "__main__":
    main()
