"""Imports go one way: a part imports lower levels only, never another of its own."""

import ast
from pathlib import Path

import pytest

PACKAGE = "flowtok_jax"
ROOT = Path(__file__).parents[1] / PACKAGE
LEVELS = (
    ("array_types",),
    ("runtime",),
    ("models", "flow", "data"),
    ("weights", "sampling", "tasks"),
    ("pipeline", "train"),
    ("eval", "perf", "serve"),
    ("convert", "modes"),
    ("main",),
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
        elif part == "data" and names[0] in ("flax", "optax"):
            found.append(f"data imports {names[0]}")
        elif names[0] == PACKAGE and len(names) > 1 and names[1] != part:
            if names[1] not in LEVEL:
                found.append(f"{module} has no level in this test")
            elif LEVEL[names[1]] >= LEVEL[part]:
                found.append(f"{part} imports {module}")
    return found


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


FILES = sorted(p for p in ROOT.rglob("*.py") if part_of(p) != "__init__")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path):
    assert part_of(path) in LEVEL
    assert faults(part_of(path), path.read_text()) == []


def test_there_are_files_to_check():
    assert {"array_types", "models", "flow"} <= {part_of(path) for path in FILES}


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("flow", "from flowtok_jax.models.dit import DiT"),
        ("data", "from flowtok_jax import flow"),
        ("data", "import flax.linen as nn"),
        ("models", "def f():\n    import flowtok_jax.data.loader"),
        ("runtime", "from flowtok_jax.data.records import Record"),
        ("weights", "from flowtok_jax.tasks import TASKS"),
        ("weights", "from flowtok_jax.pipeline import FlowTok"),
        ("tasks", "from flowtok_jax.weights.place import open_weights"),
        ("convert", "from flowtok_jax.modes import sample"),
        ("train", "from flowtok_jax.eval import previews"),
        ("eval", "from flowtok_jax.perf import flops"),
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
        ("flow", "from flowtok_jax.array_types import Time"),
        ("pipeline", "from flowtok_jax.weights import place"),
        ("train", "from flowtok_jax.tasks import TASKS"),
        ("tasks", "from flowtok_jax.models.build import Nets"),
        ("main", "from flowtok_jax.modes import train"),
        ("convert", "from flowtok_jax.tasks.step import train_step"),
        ("eval", "from flowtok_jax.pipeline import FlowTok"),
        ("data", "import grain, jax"),
    ],
)
def test_what_is_allowed_is_no_fault(part, source):
    assert faults(part, source) == []
