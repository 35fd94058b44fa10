"""Folders of pairs with odd names, damaged images and captions of any bytes."""

import json
import pathlib
import unicodedata
from typing import NamedTuple

from hypothesis import strategies as st

from flowtok_jax.data import prepare
from flowtok_jax.data.sources import make_records, parse_sources
from tests.data import made
from tests.fuzz.bounds import fresh, odd, open_records, opened, read_all
from tests.fuzz.strategies import (
    WHOLE,
    caption_bytes,
    image_bytes,
    names,
    plain_captions,
    typed_names,
    words,
)
from tests.run import own_logging

IMAGE = WHOLE[0]
MANY = 12  # pairs of an example


class Pair(NamedTuple):
    """Files of one stem, as they are to be written; None: no such file."""

    stem: str
    image: bytes | None
    caption: bytes | None
    extension: str = "jpg"


pairs = st.builds(
    Pair,
    names.filter(lambda name: not name.startswith(".")),
    st.none() | image_bytes,
    st.none() | caption_bytes,
    st.sampled_from(("jpg", "JPEG", "png", "Webp", "tif")),
)
folders = st.lists(st.sampled_from((".", "sub", "sub/b.c", "é [1]", "a,b@2", "x; y")))


WHOLE_PAIR = Pair("zz whole", IMAGE + b"1", b"a fox")


def write(root: pathlib.Path, pair: Pair, folder: str = ".") -> bool:
    """Writes a pair, and returns whether anything was written."""
    place = root / folder
    place.mkdir(parents=True, exist_ok=True)
    parts = ((pair.extension, pair.image), ("txt", pair.caption))
    for extension, data in parts:
        if data is not None:
            (place / f"{pair.stem}.{extension}").write_bytes(data)
    return any(data is not None for _, data in parts)


def key_of(stem: str) -> str:
    """A stem in one of the two ways to write é, of which systems choose either."""
    return unicodedata.normalize("NFC", stem)


def some(pairs_of: st.SearchStrategy, most: int) -> st.SearchStrategy:
    """Lists of pairs, each with a stem of its own."""
    return st.lists(pairs_of, max_size=most, unique_by=lambda pair: key_of(pair.stem))


@odd(100, made_of=some(pairs, MANY))
def test_every_stem_of_a_folder_is_a_record_or_rejected(made_of):
    with fresh() as root:
        count = 1 + sum([write(root, pair) for pair in made_of])
        write(root, WHOLE_PAIR)  # a folder without one is refused
        usable, rejected = read_all(open_records(f"folder:{root}"))
        assert len(usable) + len(rejected) == count
        images = {key_of(pair.stem): pair.image for pair in [*made_of, WHOLE_PAIR]}
        for record in usable:
            assert record.image == images[key_of(record.name).removeprefix(f"{root}/")]
        assert WHOLE_PAIR.image in [record.image for record in usable]


@odd(60, made_of=some(pairs, MANY))
def test_a_folder_that_has_no_whole_pair_may_be_refused(made_of):
    with fresh() as root:
        count = sum([write(root, pair) for pair in made_of])
        records = opened(open_records, f"folder:{root}")
        if records is not None:
            assert len(records) == count
            read_all(records)


@odd(
    60,
    stems=st.lists(names, min_size=1, max_size=MANY),
    places=folders,
    texts=st.data(),
)
def test_a_whole_pair_keeps_its_caption_whatever_it_is_called(stems, places, texts):
    with fresh() as root:
        wanted = {}
        for number, stem in enumerate(stems):
            stem = f"{number}{stem}"
            folder = places[number % len(places)] if places else "."
            caption = texts.draw(plain_captions)
            write(root, Pair(stem, IMAGE, caption.encode()), folder)
            wanted[key_of((root / folder / stem).as_posix())] = (caption,)
        usable, rejected = read_all(open_records(f"folder:{root}"))
        assert not rejected
        assert {key_of(record.name): record.captions for record in usable} == wanted


# "x " is two things where "x" exists too, as the folder around it does here.
folder_names = typed_names.filter(lambda name: name == name.strip())


@odd(100, folder=folder_names, weight=st.sampled_from(("", "@2.5")))
def test_an_existing_folder_is_found_whatever_it_is_called(folder, weight):
    with fresh() as root:
        write(root, WHOLE_PAIR, folder)
        (part,) = parse_sources(f"folder:{root / folder}{weight}")
        assert part.weight == (2.5 if weight else None)
        usable, _ = read_all(make_records(part, image_size=8, seed=0))
        assert [record.captions for record in usable] == [("a fox",)]


OTHERS = ("notes.md", ".hidden", "Thumbs.db", "README", "x.mp4", "a.json.bak", "b.txt~")


@odd(60, made_of=some(pairs, MANY), others=st.sets(st.sampled_from(OTHERS)))
def test_files_that_are_of_no_record_are_counted_too(made_of, others):
    with fresh() as root:
        files = 0
        for pair in [*made_of, WHOLE_PAIR]:
            write(root, pair)
            files += (pair.image is not None) + (pair.caption is not None)
        for name in others:
            (root / name).write_bytes(b"x")
        lying = [path for path in root.iterdir() if path.is_file()]
        records = open_records(f"folder:{root}")
        assert sum(records.passed_over.values()) == len(lying) - files


def prepared(source: str, out: pathlib.Path) -> dict:
    """Prepares a source, and returns report.json; {} where the source is refused."""
    arguments = [f"--source={source}", f"--out={out}", f"--cache={out}.cache"]
    with own_logging():
        status = prepare.main(arguments)
    assert status in (0, 2)
    assert out.exists() == (status == 0)
    return {} if status else json.loads((out / "report.json").read_text())


@odd(25, made_of=some(pairs, 6), kind=st.sampled_from(("folder", "tars")))
def test_the_report_of_prepare_adds_up(made_of, kind):
    with fresh() as root:
        folder = root / "in"
        folder.mkdir()
        count = sum([write(folder, pair) for pair in [WHOLE_PAIR, *made_of]])
        source = f"folder:{folder}"
        if kind == "tars":
            source = f"tars:{root}/in.tar"
            files = sorted(folder.iterdir())
            members = [(path.name, path.read_bytes()) for path in files]
            made.write_tar(root / "in.tar", members)
            count = len(open_records(source, cache=str(root / "cache")))
        report = prepared(source, root / "out")
        if report:
            assert report["records"] + sum(report["rejected"].values()) == count
            records = open_records(f"arrayrecord:{root}/out/*.arrayrecord")
            usable, rejected = read_all(records)
            assert len(usable) == report["records"]
            assert not rejected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner),
    max_leaves=5,
)
KARPATHY = ("split", "filename", "filepath", "sentences", "cocoid")
sentences = st.lists(st.fixed_dictionaries({"raw": words | json_values}) | json_values)
rows = st.dictionaries(st.sampled_from(KARPATHY), json_values) | st.fixed_dictionaries(
    {"split": st.just("test")},
    optional={
        "filename": st.just("0.png") | words | json_values,
        "filepath": words | json_values,
        "sentences": sentences | json_values,
    },
)


@odd(150, content=st.fixed_dictionaries({"images": st.lists(rows)}) | json_values)
def test_karpathys_json_of_any_form(content):
    with fresh() as root:
        (root / "0.png").write_bytes(made.jpeg())
        (root / "it.json").write_text(json.dumps(content))
        records = opened(open_records, f"karpathy:{root}/it.json:{root}:test")
        if records is not None:
            read_all(records)
