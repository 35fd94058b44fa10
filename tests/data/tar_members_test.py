"""Tars as other tools make them: joined, with links, long names and dots in them."""

import io
import subprocess
import tarfile

import pytest

from flowtok_jax.data import globs, tar_index
from flowtok_jax.data.records import BadRecord, Record
from flowtok_jax.data.tars import Tars
from flowtok_jax.runtime.errors import UserError
from tests.data import made

MiB = 1 << 20


def tars(folder) -> Tars:
    return Tars(f"{folder}/x.tar", cache=str(folder / "cache"))


def read(folder) -> dict[str, Record | str]:
    """What each key of x.tar is: a record, or the reason of its absence."""
    found = tars(folder)
    records = found.read_many(range(len(found)))
    short = [r.name.removeprefix(f"{folder}/x.tar:") for r in records]
    assert len(set(short)) == len(short)
    answers = [r.reason if isinstance(r, BadRecord) else r for r in records]
    return dict(zip(short, answers, strict=True))


def captions(folder) -> dict[str, str]:
    """The caption, or the reason, of each key of x.tar."""
    items = read(folder).items()
    return {key: x if isinstance(x, str) else x.captions[0] for key, x in items}


def write(folder, *names: str) -> None:
    """Writes x.tar with images and texts; a text says its own name."""
    content = [(n, n.encode() if "txt" in n.lower() else b"image") for n in names]
    made.write_tar(folder / "x.tar", content)


@pytest.mark.parametrize("zeros", [512, 1024, 10240, 3 * MiB])
def test_joined_archives_are_read_to_the_end(tmp_path, zeros):
    a, b = (
        made.write_tar(tmp_path / n, made.pairs(3, start=i)).read_bytes()
        for n, i in (("a", 0), ("b", 3))
    )
    end = len(a.rstrip(b"\0"))
    end += -end % 512
    (tmp_path / "x.tar").write_bytes(a[:end] + bytes(zeros) + b)
    found = read(tmp_path)
    assert len(found) == 6
    for i, record in enumerate(found.values()):
        assert record.image == made.jpeg(i)
        assert record.captions == (f"picture {i}",)


def test_keys_that_joined_archives_share_are_records_of_their_own(tmp_path):
    one = made.write_tar(tmp_path / "a", made.pairs(2)).read_bytes()
    (tmp_path / "x.tar").write_bytes(one + one + one)
    assert list(read(tmp_path)) == [
        f"0000{i}{end}" for end in ("", " (archive 2)", " (archive 3)") for i in (0, 1)
    ]


def test_what_follows_the_end_mark_and_is_no_tar_is_named(tmp_path):
    whole = made.write_tar(tmp_path / "x.tar", made.pairs(2)).read_bytes()
    for rest in (b"signature", b"x" * 2000, b"\0" * 700 + b"x" * 2000):
        (tmp_path / "x.tar").write_bytes(whole + rest)
        at = len(whole) + len(rest) - len(rest.lstrip(b"\0"))
        with pytest.raises(UserError, match=rf"x\.tar goes on.*truncate -s {at} FILE"):
            tars(tmp_path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_second_archive_that_is_cut_short_is_named(tmp_path, share):
    one = made.write_tar(tmp_path / "a", made.pairs(3)).read_bytes()
    cut = one.rstrip(b"\0")[: int(share * len(one.rstrip(b"\0")))]
    (tmp_path / "x.tar").write_bytes(one + cut)
    with pytest.raises(UserError, match=r"x\.tar (is no whole tar|is cut|goes on)"):
        tars(tmp_path)


def add(tar: tarfile.TarFile, name: str, content: bytes | None, **fields) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content or b"")
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(content or b""))


def test_links_to_members_have_the_bytes_of_these(tmp_path):
    hard, soft = {"type": tarfile.LNKTYPE}, {"type": tarfile.SYMTYPE}
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        add(tar, "s/early.jpg", None, linkname="../d/a.jpg", **soft)
        add(tar, "./d/a.jpg", b"image")
        add(tar, "d/.one", b"stored")
        add(tar, "d/b.jpg", None, linkname="d/a.jpg", **hard)
        add(tar, "d/c.jpg", None, linkname="./d/b.jpg", **hard)
        add(tar, "d/e.jpg", None, linkname=".one", **soft)
        add(tar, "d/a.jpg", None, linkname="d/a.jpg", **hard)  # `tar c a.jpg a.jpg`
        # These lead out of the file, nowhere, in a circle, to a folder.
        add(tar, "d/f.jpg", None, linkname="/etc/hostname", **soft)
        add(tar, "d/g.jpg", None, linkname="../../d/a.jpg", **soft)
        add(tar, "d/h.jpg", None, linkname="none.jpg", **hard)
        add(tar, "d/i.jpg", None, linkname="j.jpg", **soft)
        add(tar, "d/j.jpg", None, linkname="i.jpg", **soft)
        add(tar, "d/k.jpg", None, linkname="../d", **soft)
        for key in ("s/early", *(f"d/{x}" for x in "abcefghijk")):
            add(tar, f"{key}.txt", key.encode())
    found = read(tmp_path)
    images = {k: x.image for k, x in found.items() if not isinstance(x, str)}
    same = dict.fromkeys(("s/early", "d/a", "d/b", "d/c"), b"image")
    assert images == {**same, "d/e": b"stored"}
    lost = {key: x for key, x in found.items() if isinstance(x, str)}
    assert lost == dict.fromkeys([f"d/{x}" for x in "fghijk"], "not_a_file")


def test_links_that_gnu_tar_writes_are_followed(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"image")
    (folder / "b.jpg").hardlink_to(folder / "a.jpg")
    (folder / "c.jpg").symlink_to("a.jpg")
    for key in "abc":
        (folder / f"{key}.txt").write_text(key)
    subprocess.run(["tar", "-cf", tmp_path / "x.tar", "-C", folder, "."], check=True)
    found = read(tmp_path)
    assert {key: x.image for key, x in found.items()} == dict.fromkeys("abc", b"image")


def test_labels_and_lists_of_gnu_tar_are_no_records(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"image")
    (folder / "a.txt").write_text("a")
    options = ["--label=backup of may", f"--listed-incremental={tmp_path}/state"]
    command = ["tar", *options, "-cf", tmp_path / "x.tar", "-C", folder, "."]
    subprocess.run(command, check=True)
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert {m.type for m in tar} == {b"V", b"D", tarfile.REGTYPE}
    assert list(captions(tmp_path).values()) == ["a"]


def test_a_member_with_holes_is_named(tmp_path):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.seek(4 * MiB)
        file.write(b"end")
    (tmp_path / "a.txt").write_text("a")
    options = ["--sparse", "-cf", tmp_path / "x.tar", "-C", tmp_path]
    subprocess.run(["tar", *options, "a.jpg", "a.txt"], check=True)
    assert (tmp_path / "x.tar").stat().st_size < MiB
    with pytest.raises(UserError, match=r"no image.*sparse_member 1, first a;"):
        tars(tmp_path)


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "v7", "oldgnu"])
def test_long_and_foreign_names_of_every_form_of_tar(tmp_path, form):
    folder = tmp_path / "in"
    names = ["ß" if form in ("gnu", "pax") else "s", "two words"]
    if form in ("gnu", "pax", "oldgnu"):
        names.append("long" * 50)
    for name in names:
        path = folder / ("deep" * 5) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".jpg").write_bytes(b"image")
        path.with_suffix(".txt").write_text(name)
    command = ["tar", f"--format={form}", "-cf", tmp_path / "x.tar", "-C", folder, "."]
    subprocess.run(command, check=True)
    assert sorted(captions(tmp_path).values()) == sorted(names)


def test_a_leading_dot_and_double_slashes_are_the_same_folder(tmp_path):
    write(
        tmp_path, "./a.jpg", "a.txt", "d//b.jpg", "./d/./b.txt", ".//c.jpg", "./c.txt"
    )
    assert captions(tmp_path) == {"a": "a.txt", "d/b": "./d/./b.txt", "c": "./c.txt"}


def test_extensions_may_be_in_capitals_keys_differ_by_them(tmp_path):
    write(tmp_path, "a.JPG", "a.Txt", "b.Jpeg", "B.TXT")
    assert captions(tmp_path) == {
        "a": "a.Txt",
        "b": "missing_caption",
        "B": "missing_image",
    }


# Members of a tar that also has z.jpg and z.txt, and what is said of their keys.
PAIRS = {
    "a line's end": (("a\nb.jpg", "a\nb.txt"), {r"a\nb": "a\nb.txt"}),
    "dots": (
        ("v1.0 photo.png", "v1.0 photo.txt", "v1.1 photo.png", "v1.1 photo.txt"),
        {"v1.0 photo": "v1.0 photo.txt", "v1.1 photo": "v1.1 photo.txt"},
    ),
    "dates": (
        ("2024.05.01.png", "2024.05.01.txt", "2024.05.02.JPG", "2024.05.02.txt"),
        {"2024.05.01": "2024.05.01.txt", "2024.05.02": "2024.05.02.txt"},
    ),
    "one has further dots": (
        ("a.jpg", "a.txt", "a.2.jpg", "a.2.txt"),
        {"a": "a.txt", "a.2": "a.2.txt"},
    ),
    "webdataset's further parts": (
        ("a.jpg", "a.txt", "a.mask.png", "a.depth.png", "a.cls", "a.clip.npy"),
        {"a": "a.txt"},
    ),
    "further parts alone": (
        ("a.left.jpg", "a.right.jpg", "a.txt"),
        {
            "a.left": "missing_caption",
            "a.right": "missing_caption",
            "a": "missing_image",
        },
    ),
    "an image of many dots alone": (("1.5.jpg",), {"1.5": "missing_caption"}),
    "a text alone": (("1.5.txt",), {"1.5": "missing_image"}),
    "no known extension": (("a.b.dat", "a.b.txt"), {"a.b": "wrong_extension"}),
    "a format of others": (
        ("a.b.heic", "a.b.txt"),
        {"a.b.heic": "unsupported_image"},
    ),
    "no extension": (("README",), {"README": "wrong_extension"}),
    "a recaption": (("a.b.recap_txt", "a.b.png"), {"a.b": "a.b.recap_txt"}),
    "hidden": ((".a.jpg", "._z.jpg", "a/.jpg"), {}),
    "two images": (("a.jpg", "a.png", "a.txt"), {"a": "duplicate_member"}),
    "trailing dots": (("a..jpg", "a..txt"), {"a.": "a..txt"}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_and_parts(tmp_path, name):
    members, wanted = PAIRS[name]
    write(tmp_path, *members, "z.jpg", "z.txt")
    found = read(tmp_path)
    assert found.pop("z").captions == ("z.txt",)
    texts = {
        key: x if isinstance(x, str) else (*x.captions, *x.recaptions)[0]
        for key, x in found.items()
    }
    assert texts == wanted


def test_the_first_extension_of_captions_is_taken(tmp_path):
    path = made.write_tar(
        tmp_path / "y.tar",
        [("a.jpg", b"image"), ("a.txt", b"t"), ("a.caption", b"caption")],
    )
    (file,) = globs.find_files(str(path), "y")
    place = tar_index.PARTS.index("caption")
    for order, size in ((("txt",), 1), (("caption", "txt"), 7), (("caption",), 7)):
        index = tar_index.make_index(file, order)
        assert (len(index), index["fault"][0], index["size"][0, place]) == (1, 0, size)
    with pytest.raises(UserError, match="1 records have captions of several kinds"):
        tar_index.make_index(file)


def test_of_a_tar_of_other_pictures_the_message_names_what_it_has(tmp_path):
    write(tmp_path, "a.heic", "a.txt", "b.heic", "b.txt", "c.txt")
    expected = (
        r"no image: unsupported_image 2, first a.heic, missing_image 1, first c; .*jpg"
    )
    with pytest.raises(UserError, match=expected):
        tars(tmp_path)


def test_an_empty_tar_is_refused(tmp_path):
    for content in (bytes(10240), b"", bytes(100)):
        (tmp_path / "x.tar").write_bytes(content)
        with pytest.raises(UserError, match=r"x\.tar (has no image|is no whole tar)"):
            tars(tmp_path)
