"""Text of --help_config: the keys of a config with their values and meaning.

The meaning of a key is the comment beside it, or right above it, in configs/default.py;
a comment above a section is for all of its keys.
"""

import ast
import difflib
import io
import re
import tokenize
from collections.abc import Container, Iterator, Mapping, Sequence

from ml_collections import ConfigDict

from flowtok_jax.runtime.cli import wrap_text
from flowtok_jax.runtime.config import HOME
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import flatten

DEFAULT = HOME / "configs" / "default.py"
ALIKE = 0.6  # least likeness of a key that may be meant


def read_meanings(source: str) -> dict[str, str]:
    """Reads the keys that a config's file sets, in order, and the comment of each.

    Args:
        source: Python that assigns dictionaries to `config.SECTION`.
    """
    beside, above = _comments(source)
    meanings = {}
    for key, line in _keys(ast.parse(source)):
        block = []
        number = line - 1
        while number in above:
            block.insert(0, above[number])
            number -= 1
        block += [beside[line]] if line in beside else []
        meanings.setdefault(key, "\n".join(block))
    return meanings


def _comments(source: str) -> tuple[dict[int, str], dict[int, str]]:
    """Reads comments by their line: those beside code, and those on a line alone."""
    beside = {}
    above = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line, column = token.start
            is_alone = not token.line[:column].strip()
            text = token.string.removeprefix("#").removeprefix(" ").rstrip()
            (above if is_alone else beside)[line] = text
    return beside, above


def _keys(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yields each dotted key that a config's file sets, and the line it stands on."""
    variables: dict[str, ast.Dict] = {}  # dictionaries that others take in by **NAME
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign):
            continue
        (target,) = node.targets
        inner = [n for n in ast.walk(node.value) if isinstance(n, ast.Dict)][:1]
        if isinstance(target, ast.Name) and inner:
            variables[target.id] = inner[0]
        elif isinstance(target, ast.Attribute):
            yield target.attr, node.lineno
            for dictionary in inner:
                yield from _keys_within(target.attr, dictionary, node.lineno, variables)


def _keys_within(
    prefix: str, dictionary: ast.Dict, line: int, variables: Mapping[str, ast.Dict]
) -> Iterator[tuple[str, int]]:
    for name, value in zip(dictionary.keys, dictionary.values, strict=True):
        if name is None and isinstance(value, ast.Name):
            inner = variables[value.id]
            yield from _keys_within(prefix, inner, inner.lineno, variables)
        elif isinstance(name, ast.Constant):
            key = f"{prefix}.{name.value}"
            # A comment on one line for a section and its keys is the section's.
            yield key, name.lineno if name.lineno > line else 0
            if isinstance(value, ast.Dict):
                yield from _keys_within(key, value, name.lineno, variables)


def describe_keys(config: ConfigDict, asked: Sequence[str] = ()) -> str:
    """Lists keys of a config with their values and meaning, 80 columns wide.

    Args:
        asked: keys, sections, or parts of their names; all keys where there is none.

    Raises:
        UserError: for a name that no key has.
    """
    meanings = read_meanings(DEFAULT.read_text())
    values = flatten(config.copy_and_resolve_references().to_dict())
    stages = {
        stage: flatten(config.per_stage[stage].to_dict())
        for stage in config.stages
        if stage in config.per_stage
    }
    # A stage's own values stand at the keys that they replace.
    names = [key for key in values if key.split(".")[0] != "per_stage"]
    order = {key: place for place, key in enumerate(meanings)}
    names.sort(key=lambda key: order.get(_nearest(key, order), len(order)))
    lines: list[str] = []
    said: set[str] = set()  # sections whose meaning was said
    for key in _choose(names, asked):
        for section in _sections(key):
            if section in said:
                continue
            said.add(section)
            lines += [""] if "." not in section else []
            lines += _paragraph(meanings.get(section, ""), f"{section}: ")
        lines.append(f"{key} = {values[key]!r}")
        lines += [f"    {v[key]!r} in stage {s}" for s, v in stages.items() if key in v]
        lines += _paragraph(meanings.get(key, ""))
    return "\n".join(lines).strip("\n")


def _sections(key: str) -> list[str]:
    """Returns the sections that a key is in, the outermost first."""
    names = key.split(".")
    return [".".join(names[:count]) for count in range(1, len(names))]


def _nearest(key: str, known: Container[str]) -> str:
    """Returns the key, or the innermost of its sections that is known."""
    return next((name for name in [key, *_sections(key)[::-1]] if name in known), "")


def _choose(names: Sequence[str], asked: Sequence[str]) -> list[str]:
    """Returns the keys that were asked for: by their name, or by a part of it."""
    if not asked:
        return list(names)
    chosen: set[str] = set()
    for text in asked:
        text = text.removeprefix("--").removeprefix("config.")
        found = {n for n in names if text in (n, *_sections(n))}
        found = found or {n for n in names if text and text in n}
        if not found:
            raise _unknown(text, names)
        chosen |= found
    return [name for name in names if name in chosen]


def _unknown(text: str, names: Sequence[str]) -> UserError:
    """Makes the error of a name that no key has, with those nearest to it."""
    ends = {name: name.split(".")[-1] for name in names}
    last = text.split(".")[-1]
    likeness = {
        end: difflib.SequenceMatcher(None, end, last).ratio() for end in ends.values()
    }
    best = max(ALIKE, *likeness.values())
    near = [name for name, end in ends.items() if likeness[end] == best][:3]
    sections = dict.fromkeys(name.split(".")[0] for name in names)
    return UserError(
        f"--help_config: no key is called {text!r}; expected one such as "
        f"{', '.join(near or ['train.batch_size'])}, or a section: "
        f"{', '.join(sections)}"
    )


def _paragraph(text: str, start: str = "    ") -> list[str]:
    """Wraps a meaning; lines of a table in it stay as they are."""
    if not text:
        return []
    if re.search(r"\S  +\S", text):  # columns
        return [f"    {line}" for line in text.splitlines()]
    return wrap_text(text, start)
