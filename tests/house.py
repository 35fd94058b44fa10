"""Numbers of the house: how far the package keeps to what was agreed on its form.

python tests/house.py             a table of all measures with their limits
python tests/house.py --places    and the places that count against each
"""

import ast
import dataclasses
import io
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "flowtok_jax"

ROOT_MODULES = 6
FRAGMENTS = 0.01
COMMENTS = 0.05
PACKED = 0.01
FUNCTION_LINES = 50
FILE_LINES = 400
TESTS_PER_SOURCE = 0.8
# Public names that several modules define. Each is a door that its caller looks up in a
# module by this name: `main` in a command, `run` in a file of modes/.
REPEATED = {"main": "flowtok_jax/", "run": "flowtok_jax/modes/"}

Function = ast.FunctionDef | ast.AsyncFunctionDef

# First words of a class's or module's docstring that name no thing.
FRAGMENT = re.compile(
    r"(What|How|Why|Where|When|Which|Whether|Those|That|These|This|Of|As|Itself|It|With"
    r"|Without|In|From|For|To|By|On|The same)\b"
)
# Plural nouns: they end in -s as verbs do, but open a phrase without one.
PLURALS = re.compile(
    "Arrays|Attributes|Blocks|Bytes|Cosines|Coverages|Distances|Entries|Features|Files"
    "|Heads|Ids|Images|Indices|Keys|Lines|Logits|Moments|Parameters|Parts|Paths"
    "|Patterns|Pictures|Pixels|Prompts|Rows|Seconds|Sizes|Statistics|Steps|Tokens"
    "|Values|Weights|Words"
)


@dataclasses.dataclass(frozen=True)
class File:
    """One source file, parsed."""

    path: pathlib.Path
    text: str
    tree: ast.Module

    @property
    def lines(self) -> list[str]:
        """All lines of the file."""
        return self.text.splitlines()

    def place(self, node: ast.AST | None = None) -> str:
        """Returns PATH or, for a node with a position, PATH:LINE."""
        line = getattr(node, "lineno", None)
        name = self.path.relative_to(ROOT).as_posix()
        return name if line is None else f"{name}:{line}"


@dataclasses.dataclass(frozen=True)
class Measure:
    """One number, its limit, and the places that count against it."""

    name: str
    value: float
    limit: float
    places: tuple[str, ...] = ()
    at_least: bool = False

    @property
    def holds(self) -> bool:
        """Whether the number is within its limit."""
        if self.at_least:
            return self.value >= self.limit
        return self.value <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        mark = "" if self.holds else "  NOT YET"
        return f"{self.name:<26} {self.value:>8.4g}   {sign} {self.limit:g}{mark}"


def read(folder: pathlib.Path) -> list[File]:
    """Parses all Python files below a folder."""
    paths = sorted(folder.rglob("*.py"))
    texts = [path.read_text(encoding="utf-8") for path in paths]
    trees = [ast.parse(text) for text in texts]
    return [File(*parts) for parts in zip(paths, texts, trees, strict=True)]


def nodes(files: Iterable[File], kind: type) -> Iterator[tuple[File, ast.AST]]:
    """Yields every node of a kind with the file that it stands in."""
    for file in files:
        for node in ast.walk(file.tree):
            if isinstance(node, kind):
                yield file, node


def opens_with_a_verb(text: str) -> bool:
    """Returns whether a docstring begins with a verb in the third person.

    Such a verb ends in -s, as do plural nouns. A noun is told from it by a list, and by
    the "of" or "whose" behind it: "Names of all files", "Records whose image fits".
    """
    first, second = (*text.split(maxsplit=2), "", "")[:2]
    if not re.fullmatch(r"[A-Z][a-z]*(-[a-z]+)*s", first):  # Re-reads, but not FLOPs
        return False
    if PLURALS.fullmatch(first) or first.endswith(("ss", "us", "ous")):
        return False
    return first not in ("As", "This", "Its") and second not in ("of", "whose")


def is_property(node: ast.AST) -> bool:
    """Returns whether a function is read as an attribute, and so named as a thing."""
    if not isinstance(node, Function):
        return False
    names = {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
    return not names.isdisjoint({"property", "cached_property"})


def opens_with_a_fragment(node: ast.AST) -> bool:
    """Returns whether a docstring begins with neither a verb nor a thing's name."""
    text = ast.get_docstring(node) or ""
    if isinstance(node, Function) and not is_property(node):
        return not opens_with_a_verb(text)
    return bool(FRAGMENT.match(text))


def fragments(name: str, files: list[File], kind: type) -> Measure:
    """Measures the share of docstrings of a kind that begin with a fragment."""
    documented = [(f, n) for f, n in nodes(files, kind) if ast.get_docstring(n)]
    found = [(f, n) for f, n in documented if opens_with_a_fragment(n)]
    places = [f"{f.place(n)}: {ast.get_docstring(n).splitlines()[0]}" for f, n in found]
    return Measure(name, len(found) / len(documented), FRAGMENTS, tuple(places))


def comments(files: list[File]) -> Measure:
    """Measures the comments, also those behind code, over the lines not blank."""
    count = 0
    for file in files:
        tokens = tokenize.generate_tokens(io.StringIO(file.text).readline)
        count += sum(token.type == tokenize.COMMENT for token in tokens)
    lines = sum(bool(line.strip()) for file in files for line in file.lines)
    return Measure("comments / lines", count / lines, COMMENTS, at_least=True)


def packed(files: list[File]) -> Measure:
    """Measures the share of assignments that pack several values: `a, b = x, y`."""
    assignments = list(nodes(files, ast.Assign))
    places = [
        file.place(node)
        for file, node in assignments
        if isinstance(node.value, ast.Tuple)
        and any(isinstance(target, ast.Tuple) for target in node.targets)
    ]
    share = len(places) / len(assignments)
    return Measure("packed assignments", share, PACKED, tuple(places))


def longest(name: str, sizes: Iterable[tuple[int, str]], limit: int) -> Measure:
    """Measures the longest of several pieces of code, given as (lines, place)."""
    found = sorted(sizes, reverse=True)
    places = [f"{place}: {lines} lines" for lines, place in found if lines > limit]
    return Measure(name, found[0][0], limit, tuple(places))


def function_sizes(files: list[File]) -> Iterator[tuple[int, str]]:
    """Yields the lines of every function, and its place."""
    for file, node in nodes(files, Function):
        yield node.end_lineno - node.lineno + 1, f"{file.place(node)} {node.name}"


def repeated_names(files: list[File]) -> Measure:
    """Measures how many public functions and classes share their name with another."""
    found: dict[str, list[str]] = {}
    for file in files:
        for node in file.tree.body:
            if not isinstance(node, Function | ast.ClassDef) or node.name[0] == "_":
                continue
            place = file.place(node)
            if not place.startswith(REPEATED.get(node.name, "nowhere")):
                found.setdefault(node.name, []).append(place)
    repeated = {name: places for name, places in found.items() if len(places) > 1}
    places = [f"{name}: {', '.join(where)}" for name, where in sorted(repeated.items())]
    return Measure("repeated public names", len(repeated), 0, tuple(places))


def measures() -> list[Measure]:
    """Measures the package and the tests of this checkout."""
    files, tests = read(PACKAGE), read(ROOT / "tests")
    top = [file.place() for file in files if file.path.parent == PACKAGE]
    file_sizes = [(len(file.lines), file.place()) for file in files]
    test_lines = sum(len(file.lines) for file in tests)
    ratio = test_lines / sum(lines for lines, _ in file_sizes)
    return [
        Measure("modules on the root", len(top), ROOT_MODULES, tuple(top)),
        fragments("fragments of functions", files, Function),
        fragments("fragments of the others", files, ast.ClassDef | ast.Module),
        comments(files),
        packed(files),
        longest("lines of a function", function_sizes(files), FUNCTION_LINES),
        longest("lines of a file", file_sizes, FILE_LINES),
        Measure("tests / source", ratio, TESTS_PER_SOURCE, at_least=True),
        repeated_names(files),
    ]


def main(argv: list[str]) -> None:
    """Prints the table."""
    for measure in measures():
        lines = [str(measure)]
        if "--places" in argv and not measure.holds:
            lines += [f"    {place}" for place in measure.places]
        sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv)
