"""The numbers of the house hold, and what measures them tells good from bad."""

import ast

import pytest

from tests import house

MEASURES = house.measures()


def a_file(text):
    return house.File(house.PACKAGE / "made.py", text, ast.parse(text))


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.name)
def test_the_house_keeps_its_numbers(measure):
    assert measure.holds, "\n".join([str(measure), *measure.places])


def test_every_measure_has_a_limit_of_its_own():
    names = [measure.name for measure in MEASURES]
    assert len(set(names)) == len(names) == 9


@pytest.mark.parametrize(
    "text",
    [
        "Returns the sizes.",
        "Encodes images as tokens.",
        "Re-reads the file.",
        "Is true of buckets.",
        "Records the step.",
        "Passes what it gets on.",
        "Names the file.",
    ],
)
def test_a_verb_opens_a_docstring(text):
    assert house.opens_with_a_verb(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Of all the arrays of a type.",
        "Itself, or a UserError.",
        "That of stored moments.",
        "Return the sizes.",
        "Arrays by name.",
        "Names of all files.",
        "Records whose image fits.",
        "Loss of a batch.",
        "FLOPs a step.",
        "As of the release.",
        "`depth` blocks.",
        "torchvision's names.",
    ],
)
def test_a_fragment_opens_a_docstring(text):
    assert not house.opens_with_a_verb(text)


@pytest.mark.parametrize(
    ("source", "is_fragment"),
    [
        ('class A:\n    """Weights of a run."""', False),
        ('class A:\n    """What a run has."""', True),
        ('class A:\n    """Of a run."""', True),
        ('def a():\n    """Size of a run."""', True),
        ('def a():\n    """Returns a size."""', False),
        ('@property\ndef a():\n    """Size of a run."""', False),
        ('@property\ndef a():\n    """That of a run."""', True),
    ],
)
def test_a_thing_is_named_and_a_function_does_something(source, is_fragment):
    assert house.opens_with_a_fragment(ast.parse(source).body[0]) is is_fragment


def test_comments_are_counted_where_they_are_and_strings_are_none():
    text = '"""Doc # no."""\n\n# One.\na = "# no"  # Two.\n'
    assert house.comments([a_file(text)]).value == pytest.approx(2 / 3)


def test_only_several_values_in_one_line_are_packed():
    text = "a, b = 1, 2\na = 1, 2\na, b = f()\n[a, b] = 1, 2\na = 1\n"
    measure = house.packed([a_file(text)])
    assert measure.value == pytest.approx(1 / 5)
    assert measure.places == ("flowtok_jax/made.py:1",)


def test_functions_are_as_long_as_their_lines_nested_ones_too():
    text = "def a():\n    def b():\n        c = 1\n        return c\n    return b\n"
    sizes = sorted(house.function_sizes([a_file(text)]))
    assert [lines for lines, _ in sizes] == [3, 5]
    measure = house.longest("lines", sizes, 4)
    assert measure.value == 5
    assert measure.places == ("flowtok_jax/made.py:1 a: 5 lines",)


def test_public_names_repeat_only_where_they_are_looked_up_by_name():
    first = a_file("def f(): ...\ndef _g(): ...\ndef main(): ...\ndef run(): ...\n")
    second = a_file(first.text + "class C:\n    def f(self): ...\n")
    measure = house.repeated_names([first, second])
    assert [place.split(":")[0] for place in measure.places] == ["f", "run"]
    assert measure.value == 2


def test_a_limit_is_a_ceiling_or_a_floor():
    assert house.Measure("a", 1, 1).holds
    assert not house.Measure("a", 2, 1).holds
    assert house.Measure("a", 1, 1, at_least=True).holds
    assert not house.Measure("a", 0.5, 1, at_least=True).holds
