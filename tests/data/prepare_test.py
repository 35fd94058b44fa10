import json
import os
import pathlib

import pytest

from flowtok_jax.data import captions, prepare, shards
from flowtok_jax.data.captions import CaptionOptions
from flowtok_jax.data.sources import make_source
from tests.data import made


@pytest.fixture(autouse=True)
def each_message_is_new():
    captions.log_once.cache_clear()


@pytest.fixture
def run(capsys, tmp_path):
    """Calls the command; its status, last line of stdout as JSON, and stderr."""

    def call(source, *flags, out=tmp_path / "out"):
        cache = f"--cache={tmp_path}/cache"
        argv = [f"--source={source}", f"--out={out}", cache, *flags]
        status = prepare.main(argv)
        stdout, stderr = capsys.readouterr()
        return status, json.loads(stdout.splitlines()[-1]) if stdout else None, stderr

    return call


def complaint(outcome) -> str:
    status, result, stderr = outcome
    assert (status, result) == (2, None)
    (line,) = (x for x in stderr.splitlines() if x.startswith("error: "))
    assert "Traceback" not in stderr
    return line


def test_a_dirty_set_becomes_clean_shards(run, planted, tmp_path):
    before = made.snapshot(tmp_path)
    status, result, stderr = run(f"tars:{planted}/*.tar", "--shard_mb=0")
    assert status == 0
    rejected = {reason: 1 for _, reason in made.PLANTED.values()}
    assert result == {"records": made.WHOLE, "rejected": rejected}
    assert all(len(line) <= 80 for line in stderr.splitlines() if "/" not in line)
    out = tmp_path / "out"
    shards.check_manifest(out, checksums=True)
    source = make_source(f"arrayrecord:{out}/*.arrayrecord", image_size=16, seed=0)
    assert len(source) == made.WHOLE
    for i in range(made.WHOLE):
        record = source.records[i]
        assert record.image == made.jpeg(i)
        assert record.captions == (f"picture {i}",)
        assert source[i]["rejected"] == ()
    new = {pathlib.Path(name).parts[0] for name in made.snapshot(tmp_path) - before}
    assert new == {"out", "cache"}


def test_the_report_says_what_the_data_is_like(run, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, (width, height) in enumerate([(40, 20), (40, 40), (20, 40)]):
        (folder / f"{i}.jpg").write_bytes(made.jpeg(i, width, height))
        (folder / f"{i}.txt").write_text("one two three"[: 3 + 5 * i])
    (folder / "3.webp").write_bytes(made.encode(made.picture(10, 30), "WEBP"))
    (folder / "3.txt").write_text("a b c d")
    (folder / "4.png").write_bytes(b"")
    (folder / "4.txt").write_text("a")
    status, result, stderr = run(f"folder:{folder}")
    assert (status, result["records"]) == (0, 4)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["formats"] == {"JPEG": 3, "WEBP": 1}
    assert report["rejected"] == {"empty_file": 1}
    assert report["first"] == {"empty_file": [f"{folder}/4"]}
    width = report["measures"]["width"]
    assert (width["min"], width["median"], width["max"]) == (10, 30, 40)
    aspect = report["measures"]["aspect (height/width)"]
    assert (aspect["min"], aspect["mean"], aspect["max"]) == (0.5, 1.625, 3)
    assert report["measures"]["words a caption"]["max"] == 4
    assert "records: 4 (3 JPEG, 1 WEBP)" in stderr
    lines = stderr.splitlines()
    # A path is as long as it is.
    assert [s for s in lines if len(s) > 80 and not s.startswith("wrote ")] == []
    assert "rejected" in lines
    (line,) = (line.split() for line in lines if "empty_file" in line)
    assert line[:2] == ["empty_file", "1"]
    assert line[2].endswith("/4")


def test_rejects_of_one_name_are_counted_each(run, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "0.jpg").write_bytes(made.jpeg())
    names = ["0.jpg", "no.jpg", "no.jpg", "no.jpg"]
    rows = [json.dumps({"file_name": name, "text": "a"}) for name in names]
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    _, result, _ = run(f"folder:{folder}")
    assert result == {"records": 1, "rejected": {"missing_image": 3}}


def test_odd_metadata_survives(run, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    name = b"caf\xe9"  # no UTF-8
    (folder / os.fsdecode(name + b".jpg")).write_bytes(made.jpeg())
    (folder / os.fsdecode(name + b".txt")).write_text("a")
    _, result, _ = run(f"folder:{folder}")
    assert result == {"records": 1, "rejected": {}}
    row = {"file_name": "0.jpg", "text": "a", "id": 10**30, "odd": "\ud800", "x": [{}]}
    (folder / "0.jpg").write_bytes(made.jpeg())
    (folder / "metadata.jsonl").write_text(json.dumps(row))
    run(f"folder:{folder}", out=tmp_path / "b")
    source = make_source(f"arrayrecord:{tmp_path}/b/*.array*", image_size=8, seed=0)
    metadata = {"id": 10**30, "odd": "\ud800", "x": [{}]}
    assert source.records[0].metadata == metadata


def test_records_that_came_before_are_dropped_if_wanted(run, tmp_path):
    members = made.pairs(3) + [("9.jpg", made.jpeg(1)), ("9.txt", b"again")]
    made.write_tar(tmp_path / "x.tar", members)
    _, result, _ = run(f"tars:{tmp_path}/x.tar")
    assert result == {"records": 4, "rejected": {}}
    _, result, _ = run(f"tars:{tmp_path}/x.tar", "--dedupe", out=tmp_path / "b")
    assert result == {"records": 3, "rejected": {"duplicate": 1}}
    source = make_source(f"arrayrecord:{tmp_path}/b/*.array*", image_size=8, seed=0)
    captions = [source.records[i].captions[0] for i in range(3)]
    assert captions == ["picture 0", "picture 1", "picture 2"]


def test_filters_and_limits(run, tmp_path):
    sizes = [(40, 20), (40, 40), (20, 81), (30, 30)]
    members = []
    for i, size in enumerate(sizes):
        members += [(f"{i}.jpg", made.jpeg(i, *size)), (f"{i}.txt", b"a")]
    made.write_tar(tmp_path / "x.tar", members)
    spec = f"tars:{tmp_path}/x.tar"
    _, result, _ = run(spec, "--aspect=0.5,2", "--min_side=40")
    wanted = {"filtered_aspect": 1, "filtered_size": 1}
    assert result == {"records": 2, "rejected": wanted}
    _, result, _ = run(spec, "--limit=3", out=tmp_path / "b")
    assert result == {"records": 3, "rejected": {}}


def test_several_sources_become_one(run, tmp_path):
    for i in range(2):
        made.write_tar(tmp_path / f"{i}.tar", made.pairs(3, start=3 * i))
    _, result, _ = run(
        f"tars:{tmp_path}/1.tar,tars:{tmp_path}/0.tar,shapes", "--limit=8"
    )
    assert result["records"] == 8
    source = make_source(f"arrayrecord:{tmp_path}/out/*.array*", image_size=8, seed=0)
    captions = [source.records[i].captions[0] for i in range(6)]
    assert captions == [f"picture {i}" for i in (3, 4, 5, 0, 1, 2)]
    assert source.records[7].name == "shapes:train:1"


def test_shards_have_their_size_and_the_same_bytes_each_time(run, tmp_path):
    members = []
    for i in range(5):  # of 0.6 MB each
        members.append((f"{i}.jpg", made.encode(made.picture(500, 400, i), "BMP")))
        members.append((f"{i}.txt", b"a"))
    made.write_tar(tmp_path / "x.tar", members)
    for name in "ab":
        run(f"tars:{tmp_path}/x.tar", "--shard_mb=1", out=tmp_path / name)
    first, again = (
        json.loads((tmp_path / name / "manifest.json").read_text()) for name in "ab"
    )
    assert first == again
    assert [shard["records"] for shard in first["shards"]] == [2, 2, 1]


def test_latents_keep_their_values(run, tmp_path):
    shards.write_release_tar(tmp_path / "x.tar", made.latents(5))
    _, result, _ = run(f"latents:{tmp_path}/x.tar")
    assert result == {"records": 5, "rejected": {}}
    source = make_source(f"latents:{tmp_path}/out/*.array*", image_size=8, seed=0)
    every = source.records.read_many(range(5))
    for wanted, found in zip(made.latents(5), every, strict=True):
        assert (found.moments == wanted.moments).all()
        assert found.recaptions == wanted.recaptions


def test_mistakes_end_in_one_line_and_leave_nothing(run, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    made.write_tar(tmp_path / "bad.tar", [("a.jpg", b"<html>"), ("a.txt", b"a")])
    before = made.snapshot(tmp_path)
    spec = f"tars:{tmp_path}/bad.tar"
    assert "no record that can be used: not_an_image 1" in complaint(run(spec))
    full = run("shapes", "--limit=1", out=tmp_path / "full")
    assert "exists already and is not empty" in complaint(full)
    assert "has weights" in complaint(run("shapes@2"))
    assert "does not exist" in complaint(run(f"tars:{tmp_path}/no.tar"))
    assert "expected one of" in complaint(run("webdata:x"))
    assert "--aspect=2" in complaint(run("shapes", "--aspect=2"))
    assert "cannot be written" in complaint(
        run("shapes", "--limit=1", out=tmp_path / "full" / "mine" / "out")
    )
    assert prepare.main(["--source=shapes"]) == 2
    assert "expected --source=SPEC and --out=DIR" in capsys.readouterr().err
    left = {name for name in made.snapshot(tmp_path) - before if "cache" not in name}
    assert left == set()


def test_an_empty_directory_is_taken(run, tmp_path):
    (tmp_path / "out").mkdir()
    status, _, _ = run("shapes", "--limit=2", "--image_size=16")
    assert status == 0
    assert (tmp_path / "out" / "manifest.json").is_file()


def test_help_lists_the_sources(capsys):
    with pytest.raises(SystemExit):
        prepare.main(["--help"])
    assert "karpathy:JSON:IMAGEDIR:SPLIT" in capsys.readouterr().out


def test_captions_are_read_as_asked(run, tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()
    for i, name in enumerate(["a.cap", "b.cap", "c.txt"]):
        (folder / name).write_bytes(b"\xef\xbb\xbfone\r\ntwo words\n")
        (folder / f"{name[0]}.jpg").write_bytes(made.jpeg(i))
    (folder / "notes.md").write_text("x")
    flags = ("--captions=first_line", "--caption_extensions=cap")
    status, result, stderr = run(f"folder:{folder}", *flags)
    assert (status, result) == (0, {"records": 2, "rejected": {"missing_caption": 1}})
    assert "captions: first_line (data.captions) of .cap, or keys caption" in stderr
    assert "of no record\n  .txt                                 1\n" in stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["passed_over"] == {".txt": 1, ".md": 1}
    assert report["measures"]["lines a caption"]["max"] == 1
    spec = f"arrayrecord:{tmp_path}/out/*.arrayrecord"
    assert make_source(spec, image_size=8, seed=0)[1]["caption"] == "one"

    flags = ("--caption_extensions=.cap,txt",)
    status, result, stderr = run(f"folder:{folder}", *flags, out=tmp_path / "whole")
    assert (status, result) == (0, {"records": 3, "rejected": {}})
    report = json.loads((tmp_path / "whole" / "report.json").read_text())
    assert report["measures"]["lines a caption"]["max"] == 2
    # Shards that hold the whole captions are read by the same options.
    spec = f"arrayrecord:{tmp_path}/whole/*.arrayrecord"
    first = CaptionOptions("first_line")
    for options, caption in (({}, "one\r\ntwo words"), ({"captions": first}, "one")):
        source = make_source(spec, image_size=8, seed=0, **options)
        assert source[0]["caption"] == caption


def test_caption_flags_that_cannot_be(run, tmp_path):
    made.write_folder(tmp_path / "x", 2)
    line = complaint(run(f"folder:{tmp_path}/x", "--captions=first"))
    assert "data.captions is 'first'; expected one of whole, first_line" in line
