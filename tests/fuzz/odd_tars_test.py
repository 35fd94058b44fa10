"""Tars with odd members, damaged, cut short or joined."""

import io
import pathlib
import tarfile

from hypothesis import strategies as st

from flowtok_jax.data.records import Record, Records
from tests.data import made
from tests.fuzz.bounds import fresh, odd, open_records, opened, read_all
from tests.fuzz.strategies import (
    WHOLE,
    caption_bytes,
    image_bytes,
    names,
    plain_captions,
    plain_names,
)

IMAGE = WHOLE[6]
ENDINGS = ("jpg", "JPG", "png", "txt", "json", "recap_txt", "cls", "token.npy", "")
TYPES = {
    "file": tarfile.REGTYPE,
    "folder": tarfile.DIRTYPE,
    "link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "pipe": tarfile.FIFOTYPE,
    "device": tarfile.CHRTYPE,
}
folders = st.sampled_from(("", "", "a/", "./", "a.b/", "../", "/", "a//", ".hidden/"))
keys = st.builds(str.__add__, folders, names | plain_names)
members = st.tuples(
    keys,
    st.sampled_from(ENDINGS),
    caption_bytes | image_bytes,
    st.sampled_from(("file", "file", "file", *TYPES)),
)
formats = st.sampled_from(
    (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
)


def pack(members: list, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of (name, data, type) each; what a form cannot hold is left out."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data, kind in members:
            info = tarfile.TarInfo(name)
            info.type = TYPES[kind]
            if kind == "file":
                info.size = len(data)
            elif "link" in kind:
                info.linkname = members[0][0]
            try:
                tar.addfile(info, io.BytesIO(data))
            except (ValueError, UnicodeError):
                continue
    return out.getvalue()


def open_tars(root: pathlib.Path, data: bytes) -> Records | None:
    """Writes and opens one tar."""
    (root / "a.tar").write_bytes(data)
    return opened(open_records, f"tars:{root}/a.tar", cache=str(root / "cache"))


@odd(150, content=st.lists(members, max_size=10), form=formats)
def test_members_of_any_name_and_type_are_records_or_rejected(content, form):
    packed = [(f"{key}.{end}", data, kind) for key, end, data, kind in content]
    with fresh() as root:
        records = open_tars(root, pack(packed, form))
        if records is not None:
            usable, rejected = read_all(records)
            names = [found.name for found in [*usable, *rejected]]
            assert len(records) <= len(packed)
            assert len(names) == len(records)


@odd(
    60,
    keys=st.lists(plain_names, min_size=1, max_size=6, unique=True),
    texts=st.data(),
    form=formats,
    folder=st.sampled_from(("", "a/", "./", "a/b.c/", "日本/")),
)
def test_whole_pairs_come_back(keys, texts, form, folder):
    wanted = {}
    packed = []
    for key in keys:
        caption = texts.draw(plain_captions)
        wanted[key] = (caption,)
        packed.append((f"{folder}{key}.jpg", IMAGE, "file"))
        packed.append((f"{folder}{key}.txt", caption.encode(), "file"))
    with fresh() as root:
        records = open_tars(root, pack(packed, form))
        usable, rejected = read_all(records)
        assert not rejected
        assert {key_of(record): record.captions for record in usable} == wanted
        assert all(record.image == IMAGE for record in usable)


def key_of(record: Record) -> str:
    """The key of a record, without tar and folder."""
    return record.name.rpartition("/")[2].rpartition(":")[2]


def blocks_of(members: list[tuple[str, bytes]]) -> bytes:
    """The blocks of a tar without those that end it."""
    data = pack([(name, content, "file") for name, content in members])
    used = sum(512 - (-len(content) // 512) * 512 for _, content in members)
    assert not data[used:].strip(b"\0")
    return data[:used]


@odd(
    60,
    sizes=st.lists(st.integers(1, 3), min_size=2, max_size=3),
    zeros=st.integers(0, 40),
)
def test_tars_joined_by_cat_are_read_on_or_refused(sizes, zeros):
    joined = b""
    start = 0
    for size in sizes:
        joined += blocks_of(made.pairs(size, start)) + bytes(512 * zeros)
        start += size
    joined += bytes(10240)
    with fresh() as root:
        records = open_tars(root, joined)
        if records is not None:
            usable, _ = read_all(records)
            assert len(usable) == start


@odd(100, change=st.data(), count=st.integers(1, 4))
def test_a_damaged_tar_is_refused_or_what_is_left_counted(change, count):
    with fresh() as root:
        data = bytearray(made.write_tar(root / "b.tar", made.pairs(count)).read_bytes())
        end = 512 * 2 * count + sum(
            -(-len(content) // 512) * 512 for _, content in made.pairs(count)
        )
        for _ in range(change.draw(st.integers(1, 3))):
            at = change.draw(st.integers(0, len(data) - 1))
            data[at : at + 1] = change.draw(st.binary(min_size=1, max_size=4))
        data = data[: change.draw(st.just(len(data)) | st.integers(0, end))]
        records = open_tars(root, bytes(data))
        if records is not None:
            read_all(records)
