"""Imports go one way: a part imports lower levels only, never another of its own."""

import ast
from pathlib import Path

import pytest

PACKAGE = "flowtok_jax"
ROOT = Path(__file__).parents[1] / PACKAGE
LEVELS = (
    ("shapes", "errors"),
    ("processes", "mesh", "places", "logs", "config_files"),
    ("models", "flow", "data"),
    ("workdir", "pictures", "tensors", "programs", "collectives", "topologies"),
    ("pretrained",),
    ("weights",),
    ("convert",),
    ("pipeline",),
    ("train", "eval", "commands", "shard_folder"),
    ("compilation", "stages", "pretokenize", "evaluation"),
    ("bench",),
    ("convert.checks", "convert.critic_checks", "convert.metrics"),
    (
        "main",
        "convert.__main__",
        "convert.parity",
        "data.prepare",
        "eval.reference",
        "eval.score",
    ),
)
# Commands, and what they alone use, that live in a part below the one they belong to.
DOORS = (
    "convert.__main__",
    "convert.checks",
    "convert.critic_checks",
    "convert.metrics",
    "convert.parity",
    "data.prepare",
    "eval.reference",
    "eval.score",
)
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}


def imported_modules(source: str) -> list[str]:
    """Full names of all that a file imports, wherever in the file."""
    modules = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            modules += [f"{origin}.{alias.name}" for alias in node.names]
    return modules


def faults(part: str, source: str) -> list[str]:
    """What a file of this part of the package must not import."""
    found = []
    for module in imported_modules(source):
        names = module.split(".")
        if module.startswith("."):
            found.append(f"{module} is relative")
        elif module.startswith(("jax._src", "jaxlib._src")):
            found.append(f"{module} is private")
        elif ".".join(names[1:3]) in DOORS and part not in DOORS:
            found.append(f"{module} is a command")
        elif part == "data" and names[0] in ("flax", "optax"):
            found.append(f"data imports {names[0]}")
        elif names[0] == PACKAGE and len(names) > 1 and names[1] != part:
            if names[1] not in LEVEL:
                found.append(f"{module} has no level in this test")
            elif LEVEL[names[1]] >= LEVEL[part]:
                found.append(f"{part} imports {module}")
    return found


def part_of(path: Path) -> str:
    names = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(names) if ".".join(names) in DOORS else names[0]


FILES = sorted(p for p in ROOT.rglob("*.py") if part_of(p) != "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path):
    assert part_of(path) in LEVEL
    assert faults(part_of(path), path.read_text()) == []


def test_there_are_files_to_check():
    assert {"shapes", "models", "flow", "convert"} <= {part_of(path) for path in FILES}


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("flow", "from flowtok_jax.models.dit import DiT"),
        ("data", "from flowtok_jax import flow"),
        ("data", "import flax.linen as nn"),
        ("models", "def f():\n    import flowtok_jax.data.loader"),
        ("convert", "from flowtok_jax.train.state import State"),
        ("weights", "from flowtok_jax.pipeline import FlowTok"),
        ("weights", "from flowtok_jax.convert.convert import convert"),
        ("pretrained", "from flowtok_jax.weights import read_group"),
        ("convert", "from flowtok_jax.pipeline import FlowTok"),
        ("convert", "from flowtok_jax.convert.parity import main"),
        ("train", "from flowtok_jax.eval import runner"),
        ("eval", "from flowtok_jax.train import loop"),
        ("train", "from flowtok_jax import main"),
        ("models", "from . import layers"),
        ("main", "from flowtok_jax.helpers import anything"),
        ("flow", "from jax._src import core"),
        ("flow", "from jax import _src"),
    ],
)
def test_a_fault_is_found(part, source):
    assert len(faults(part, source)) == 1


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("models", "from flowtok_jax.models.layers import Mlp"),
        ("flow", "from flowtok_jax.shapes import Time"),
        ("pipeline", "from flowtok_jax import weights"),
        ("pipeline", "from flowtok_jax.convert.convert import convert"),
        ("main", "from flowtok_jax.train import loop"),
        ("convert.__main__", "from flowtok_jax.pipeline import FlowTok"),
        ("convert.parity", "from flowtok_jax.train.steps import train_step"),
        ("eval", "from flowtok_jax.pipeline import FlowTok"),
        ("data", "import grain, jax"),
    ],
)
def test_what_is_allowed_is_no_fault(part, source):
    assert faults(part, source) == []
