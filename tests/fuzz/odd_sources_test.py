"""Source strings: of any letters, and of paths that exist."""

import contextlib
import os
import pathlib
from collections.abc import Iterator

import pytest
from hypothesis import strategies as st

from flowtok_jax.data import globs
from flowtok_jax.data.centre import open_images
from flowtok_jax.data.sources import make_source, parse_sources
from flowtok_jax.runtime.errors import UserError
from tests.data import made
from tests.fuzz.bounds import check_error, fresh, odd, opened, read_all
from tests.fuzz.strategies import typed_names

KINDS = ("shapes", "folder", "tars", "arrayrecord", "latents", "tfds", "karpathy")
pieces = st.sampled_from(
    (*KINDS, ":", ":", "/", ",", "@", "@2", "{0..3}", "{9..0}", "{", "}", "*", "[", "]")
    + (
        "..",
        "~",
        "~root",
        "$HOME",
        "\\",
        "'",
        '"',
        " ",
        "é",
        "%20",
        "://",
        "gs:",
        "\x00",
    )
    + (
        "held_out",
        "a.tar",
        "-1",
        "nan",
        "1e999",
        "{0..99999999999}",
        "file://",
        "\udce9",
    )
)
strings = st.lists(pieces, max_size=8).map("".join)


@contextlib.contextmanager
def inside(folder: pathlib.Path) -> Iterator[None]:
    """Works in a folder, where relative paths are looked up."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


typed = st.text(max_size=20).filter(lambda text: not set(text) & {"\n", "\r"})


@odd(300, text=strings | typed)
def test_a_string_of_any_letters_is_parsed_or_refused(text):
    parts = opened(parse_sources, text)
    for part in parts or ():
        assert part.kind in KINDS
        assert part.weight is None or 0 < part.weight < float("inf")


# gs:// and the like would be looked up, http:// too.
local = strings.filter(lambda text: "://" not in text and "gs:" not in text)


@odd(150, text=local, kind=st.sampled_from(KINDS))
def test_a_string_of_any_letters_opens_nothing_but_what_is_there(text, kind):
    if text.startswith(("~", "/", '"', "'")) or kind in ("shapes", "tfds"):
        return
    with fresh() as root, inside(root):
        (root / "home").mkdir()
        source = opened(make_source, f"{kind}:{text}", image_size=8, seed=0)
        assert source is None or "shapes" in text
        opened(open_images, f"{kind}:{text}", key="--real", image_size=8, seed=0)


@odd(
    60,
    found=st.lists(
        st.tuples(typed_names, st.sampled_from(("folder", "tars"))),
        min_size=1,
        max_size=3,
        unique_by=lambda pair: pair[0],
    ),
    weighted=st.booleans(),
)
def test_sources_that_exist_are_read_whatever_they_are_called(found, weighted):
    with fresh() as root:
        texts = []
        for name, kind in found:
            if kind == "folder":
                (root / name).mkdir()
                (root / name / "a.jpg").write_bytes(made.jpeg())
                (root / name / "a.txt").write_text("a fox")
            else:
                name = f"{name}.tar"
                made.write_tar(root / name, made.pairs(1))
            texts.append(f"{kind}:{root / name}" + "@3" * weighted)
        options = {"image_size": 8, "seed": 0, "cache": str(root / ".cache")}
        try:
            source = make_source(",".join(texts), **options)
        except UserError as error:
            check_error(error)
            refusal = str(error)
        else:
            assert len(source) == len(found)
            return
        # Of plain names only two that exist can mean the same.
        signs = {sign for name, _ in found for sign in name} & set("{}$?*[]")
        assert signs or "two things" in refusal


@odd(
    100,
    first=st.integers(0, 10**20),
    last=st.integers(0, 10**20),
    width=st.integers(1, 12),
    more=st.sampled_from(("", "{0..9}", "{0..99999}")),
)
def test_a_range_of_any_length_ends_soon(first, last, width, more):
    pattern = f"no/such/{{{first:0{width}d}..{last}}}{more}.tar"
    with pytest.raises(UserError) as error:
        globs.find_files(pattern, pattern)
    check_error(error.value)


@odd(60, pattern=strings.filter(lambda text: "\x00" not in text))
def test_a_pattern_finds_files_or_says_that_it_finds_none(pattern):
    if "://" in pattern or "gs:" in pattern:
        return
    with fresh() as root, inside(root):
        made.write_tar(root / "a.tar", made.pairs(2))
        options = {"image_size": 8, "seed": 0, "cache": str(root / ".cache")}
        text = f"tars:{root}/{pattern}"
        source = opened(make_source, text, **options)
        if source is not None and "shapes" not in pattern:
            read_all(source.records)
