"""docs/odd_input.md: each row names a test that exists, and no reason is left out."""

import ast
import re

import pytest

from flowtok_jax.data.records import REASONS
from tests.run import ROOT

PAGE = (ROOT / "docs" / "odd_input.md").read_text()
ROWS = re.findall(r"^\| (?!input \|)([^-].*?) \| (.*?) \| (.*) \|$", PAGE, re.MULTILINE)
TEST = re.compile(r"(tests/\S+_test\.py)::(test_\w+)")
COMMENT = re.compile(r"<!-- (.*) -->")


def defined_in(file: str) -> set[str]:
    """Names of the tests in a file."""
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_page_has_rows_of_every_kind_of_input():
    assert len(ROWS) >= 60
    assert all(COMMENT.search(last) for _, _, last in ROWS)
    lines = [line for line in PAGE.splitlines() if line.startswith("|")]
    headings = PAGE.count("\n|---|---|---|\n")
    assert len(lines) == len(ROWS) + 2 * headings


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_each_row_names_tests_that_exist(row):
    named = COMMENT.search(row[2])[1].split(", ")
    for name in named:
        file, test = TEST.fullmatch(name).groups()
        assert test in defined_in(file), name


def test_every_reason_is_in_a_row_of_its_own_and_no_other_is():
    cells = [COMMENT.sub("", last) for _, _, last in ROWS]
    named = {reason for cell in cells for reason in re.findall(r"`(\w+)`", cell)}
    assert named == set(REASONS)
