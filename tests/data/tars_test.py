import json
import tarfile

import numpy as np
import pytest

from flowtok_jax.data import globs, tar_index
from flowtok_jax.data.captions import CaptionOptions
from flowtok_jax.data.records import BROKEN, BadRecord, RejectCounter
from flowtok_jax.data.sources import make_source
from flowtok_jax.data.tars import Tars
from flowtok_jax.runtime.errors import UserError
from tests.data import made


def tars(folder, **options) -> Tars:
    cache = str(folder / "cache")
    return Tars(f"{folder}/*.tar", cache=cache, **options)


def test_an_epoch_counts_what_is_broken_and_writes_nothing_outside(planted, tmp_path):
    before = made.snapshot(tmp_path)
    cache = planted / "cache"
    source = make_source(
        f"tars:{planted}/*.tar", image_size=16, seed=0, cache=str(cache)
    )
    assert len(source) == made.WHOLE + len(made.PLANTED)
    counter = RejectCounter(max_fraction=1.0)
    captions = []
    for position in range(len(source)):
        example = source[position]
        counter.add(example["rejected"], 1)
        captions.append(example["caption"])
        assert example["image"].shape == (16, 16, 3)
    wanted = {reason: 1 for _, reason in made.PLANTED.values()}
    assert dict(counter.counts) == wanted
    for key, (_, reason) in made.PLANTED.items():
        assert counter.names[reason] == [f"{planted}/1.tar:{key}"]
    assert set(captions) == {f"picture {i}" for i in range(made.WHOLE)}
    assert {p for p in made.snapshot(tmp_path) - before if "cache" not in p} == set()


def test_a_batch_tells_what_it_replaced(planted):
    source = make_source(
        f"tars:{planted}/*.tar", image_size=16, seed=0, cache=str(planted / "cache")
    )
    every = list(range(len(source)))
    batch = source.read_batch(every, every)
    assert batch["image"].shape == (len(every), 16, 16, 3)
    assert len(batch["caption"]) == len(every)
    singly = [pair for i in every for pair in source[i]["rejected"]]
    assert list(batch["rejected"]) == singly
    assert len(singly) >= len(made.PLANTED)


def test_records_hold_the_bytes_of_their_members(tmp_path):
    members = {
        "a/b.jpg": made.jpeg(1),
        "a/b.txt": b" a caption\n",
        "a/b.recap_txt": b"The image shows more",
        "a/b.json": json.dumps({"original_width": 7}).encode(),
        "c.PNG": b"not looked at here",
        "c.txt": "schön".encode(),
        "c.cls": b"ignored",
    }
    made.write_tar(tmp_path / "x.tar", members.items())
    first, second = tars(tmp_path).read_many([0, 1])
    assert first.name == f"{tmp_path}/x.tar:a/b"
    assert first.image == members["a/b.jpg"]
    assert first.captions == ("a caption",)
    assert first.recaptions == ("The image shows more",)
    assert first.metadata == {"original_width": 7}
    assert second.image == b"not looked at here"
    assert second.captions == ("schön",)


def test_the_content_decides_what_an_image_is(tmp_path):
    png = made.encode(made.picture())
    members = [("a.jpg", png), ("a.txt", b"a"), ("b.gif", png), ("b.txt", b"b")]
    made.write_tar(tmp_path / "x.tar", members)
    cache = str(tmp_path / "cache")
    source = make_source(f"tars:{tmp_path}/x.tar", image_size=8, seed=0, cache=cache)
    assert source[0]["rejected"] == ()
    assert source[1]["rejected"] == (("wrong_extension", f"{tmp_path}/x.tar:b"),)


def test_a_caption_may_stand_in_the_json(tmp_path):
    caption = json.dumps({"caption": ["one", "two"]}).encode()
    made.write_tar(tmp_path / "x.tar", [("a.jpg", b"x"), ("a.json", caption)])
    assert tars(tmp_path)[0].captions == ("one", "two")


def test_members_of_a_key_may_stand_apart(tmp_path):
    filler = [(f"{i}.jpg", bytes(70_000)) for i in range(3)]
    members = [("a.jpg", b"image"), *filler, ("a.txt", b"text")]
    made.write_tar(tmp_path / "x.tar", members)
    record = tars(tmp_path)[0]
    assert (record.image, record.captions) == (b"image", ("text",))


def test_a_record_is_one_read_and_a_tar_is_opened_once(tmp_path, monkeypatch):
    for i in range(2):
        made.write_tar(tmp_path / f"{i}.tar", made.pairs(5, start=5 * i))
    source, reads = tars(tmp_path), []
    read = globs.read_ranges
    monkeypatch.setattr(
        globs, "read_ranges", lambda *a: reads.append((a[0], len(a[1]))) or read(*a)
    )
    source.read_many([7, 2, 0, 9, 1])
    assert reads == [(f"{tmp_path}/0.tar", 3), (f"{tmp_path}/1.tar", 2)]


def test_the_order_of_what_is_asked_is_kept(tmp_path):
    made.write_tar(tmp_path / "0.tar", made.pairs(5))
    made.write_tar(tmp_path / "1.tar", made.pairs(5, start=5))
    asked = [9, 0, 5, 4, 9]
    found = tars(tmp_path).read_many(asked)
    assert [r.captions for r in found] == [(f"picture {i}",) for i in asked]


def test_odd_members(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("twice.jpg", "twice.jpg", "._hidden.jpg", "/root.jpg", "a.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    found = tars(tmp_path).read_many(range(4))
    assert [getattr(r, "reason", None) for r in found] == [
        "not_a_file",
        "duplicate_member",
        "unsafe_name",
        "missing_caption",
    ]
    assert len(tars(tmp_path)) == 4


def test_every_reason_is_a_known_one():
    assert {reason for _, reason in made.PLANTED.values()} <= set(BROKEN)
    with pytest.raises(AssertionError):
        BadRecord("because", "x")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.99])
def test_a_tar_cut_short_is_named(tmp_path, share):
    path = made.write_tar(tmp_path / "x.tar", made.pairs(8))
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data.rstrip(bytes(1))))])
    with pytest.raises(UserError, match=rf"{path} is (no whole tar|cut short)"):
        tars(tmp_path)


def test_a_tar_cut_between_members_is_named(tmp_path):
    path = made.write_tar(tmp_path / "x.tar", made.pairs(8))
    with tarfile.open(path) as tar:
        place = tar.getmembers()[6].offset
    path.write_bytes(path.read_bytes()[:place])
    with pytest.raises(UserError, match=f"{path} is cut short"):
        tars(tmp_path)


def test_a_tar_with_a_damaged_header_is_named(tmp_path):
    path = made.write_tar(tmp_path / "x.tar", made.pairs(8))
    with tarfile.open(path) as tar:
        place = tar.getmembers()[6].offset
    data = bytearray(path.read_bytes())
    data[place : place + 100] = b"x" * 100
    path.write_bytes(data)
    with pytest.raises(UserError, match=rf"{path} is cut short or damaged.*{place}"):
        tars(tmp_path)


def test_a_compressed_tar_is_refused(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"))
    with pytest.raises(UserError, match="compressed tars must be unpacked"):
        tars(tmp_path)


def test_missing_tars_are_named(tmp_path):
    made.write_tar(tmp_path / "0.tar", made.pairs(1))
    with pytest.raises(UserError, match=r"1\.tar does not exist"):
        Tars(f"{tmp_path}/{{0..1}}.tar", cache=str(tmp_path))
    with pytest.raises(UserError, match="y.tar does not exist"):
        Tars(f"{tmp_path}/y.tar", cache=str(tmp_path))
    with pytest.raises(UserError, match="matches no file"):
        Tars(f"{tmp_path}/y*.tar", cache=str(tmp_path))
    with pytest.raises(UserError, match=rf"is a directory; .*'{tmp_path}/\*\.tar'$"):
        Tars(f"{tmp_path}", cache=str(tmp_path))


def test_tars_without_images_are_refused(tmp_path):
    made.write_tar(tmp_path / "0.tar", [("a.txt", b"a")])
    with pytest.raises(UserError, match=r"no image: .*is it a source latents:"):
        tars(tmp_path)


def test_the_index_is_kept_and_follows_the_tar(tmp_path, monkeypatch):
    path = made.write_tar(tmp_path / "x.tar", made.pairs(3))
    assert len(tars(tmp_path)) == 3
    made_anew = []
    whole = tar_index.make_index
    monkeypatch.setattr(
        tar_index, "make_index", lambda *a: made_anew.append(a[0]) or whole(*a)
    )
    again = tars(tmp_path)
    assert made_anew == []
    assert again[2].captions == ("picture 2",)
    made.write_tar(path, made.pairs(4))
    assert len(tars(tmp_path)) == 4
    assert [file.path for file in made_anew] == [str(path)]


def test_a_damaged_index_is_made_again(tmp_path):
    made.write_tar(tmp_path / "x.tar", made.pairs(3))
    tars(tmp_path)
    (kept,) = (tmp_path / "cache").glob("*")
    kept.write_bytes(kept.read_bytes()[:90])
    assert tars(tmp_path)[1].captions == ("picture 1",)
    assert np.load(kept).shape == (3,)


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, caplog):
    made.write_tar(tmp_path / "x.tar", made.pairs(3))
    (tmp_path / "cache").write_text("a file")
    assert len(tars(tmp_path)) == 3
    assert "is not kept" in caplog.text


def test_the_default_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tar_index.default_cache() == tmp_path / "flowtok_jax" / "tars"


def test_a_tar_that_shrinks_later_is_named(tmp_path):
    path = made.write_tar(tmp_path / "x.tar", made.pairs(3))
    source = tars(tmp_path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match=f"{path} has become shorter"):
        source[2]
    path.unlink()
    with pytest.raises(UserError, match=f"{path} cannot be read"):
        source[0]


def test_tars_on_another_file_system(tmp_path):
    import fsspec

    local = made.write_tar(tmp_path / "x.tar", made.pairs(3))
    system = fsspec.filesystem("memory")
    system.pipe("/set/x.tar", local.read_bytes())
    try:
        source = Tars("memory://set/*.tar", cache=str(tmp_path / "cache"))
        assert [r.captions[0] for r in source.read_many([2, 0])] == [
            "picture 2",
            "picture 0",
        ]
        assert source[1].image == made.jpeg(1)
        with pytest.raises(UserError, match="matches no file"):
            Tars("memory://set/*.zip", cache=str(tmp_path))
    finally:
        system.rm("/set", recursive=True)


def test_a_file_system_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="needs a file system"):
        Tars("nosuch://set/*.tar", cache=str(tmp_path))


def test_captions_of_tars_have_the_usual_names(tmp_path):
    rows = [{"text": "t"}, {"prompt": "p", "width": 9}, {"caption": " "}, {"tags": "x"}]
    members = [("a.png", made.jpeg()), ("a.CAPTION", b"\xef\xbb\xbfa fox\n")]
    for i, row in enumerate(rows):
        members.append((f"{i}.jpg", made.jpeg()))
        members.append((f"{i}.json", json.dumps(row).encode()))
    members += [("deep.jpg", made.jpeg()), ("deep.json", b"[" * 100_000)]
    made.write_tar(tmp_path / "x.tar", members)
    found = tars(tmp_path).read_many(range(6))
    assert [record.captions for record in found[:3]] == [("a fox",), ("t",), ("p",)]
    reasons = [bad.reason for bad in found[3:]]
    assert reasons == ["empty_caption", "missing_caption", "bad_json"]
    chosen = tars(tmp_path, captions=CaptionOptions(keys="tags", extensions="cap"))
    assert chosen[4].captions == ("x",)
    with pytest.raises(BadRecord, match="missing_caption"):
        chosen[0]


def test_tars_with_captions_of_several_kinds_are_refused(tmp_path):
    members = [*made.pairs(2), ("00000.caption", b"other")]
    made.write_tar(tmp_path / "x.tar", members)
    with pytest.raises(UserError, match=r"x.tar: 1 records .*, 00000 first; which"):
        tars(tmp_path)
    for extensions, caption in [("caption,txt", "other"), ("txt", "picture 0")]:
        chosen = tars(tmp_path, captions=CaptionOptions(extensions=extensions))
        assert chosen[0].captions == (caption,)
        assert chosen[1].captions == (("picture 1"),)


def test_several_captions_in_json_are_said(tmp_path, caplog):
    row = json.dumps({"text": "t", "caption": "c"}).encode()
    made.write_tar(tmp_path / "x.tar", [("0.jpg", made.jpeg()), ("0.json", row)])
    assert tars(tmp_path)[0].captions == ("c",)
    assert "different texts under caption and text; the first one is" in caplog.text


def test_pictures_of_other_formats_in_tars_are_named_by_these(tmp_path):
    members = [*made.pairs(1), ("b.HEIC", b"x"), ("b.txt", b"b"), ("c.svg", b"x")]
    made.write_tar(tmp_path / "x.tar", members)
    found = tars(tmp_path).read_many([1, 2])
    assert [bad.reason for bad in found] == ["unsupported_image"] * 2
    assert [bad.name.rpartition(":")[2] for bad in found] == ["b.heic", "c.svg"]
