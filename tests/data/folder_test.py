import csv
import json
import logging
import os

import pytest

from flowtok_jax.data.captions import CaptionOptions
from flowtok_jax.data.folder import open_folder
from flowtok_jax.data.karpathy import open_karpathy
from flowtok_jax.data.records import BadRecord
from flowtok_jax.data.sources import make_source
from flowtok_jax.runtime.errors import UserError
from tests.data import made


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "folder"
    (root / "sub.dir").mkdir(parents=True)
    for i in range(4):
        (root / f"{i}.jpg").write_bytes(made.jpeg(i))
    (root / "sub.dir" / "4.v2.PNG").write_bytes(made.encode(made.picture(seed=4)))
    return root


def outcomes(records) -> dict[str, str | tuple]:
    """Captions, or the reason against it, by the end of a record's name."""
    found = {}
    for record in records.read_many(range(len(records))):
        bad = isinstance(record, BadRecord)
        name = record.name.rpartition("/")[2]
        found[name] = record.reason if bad else record.captions
    return found


def test_images_are_paired_with_texts_of_their_name(folder):
    for i in range(3):
        (folder / f"{i}.txt").write_text(f"picture {i}\n")
    (folder / "sub.dir" / "4.v2.txt").write_text("deep")
    (folder / "0.recap_txt").write_text("The image shows more")
    (folder / "lonely.txt").write_text("no image")
    (folder / ".hidden.jpg").write_bytes(b"")
    (folder / "notes.md").write_text("not read")
    records = open_folder(str(folder))
    assert outcomes(records) == {
        "0": ("picture 0",),
        "1": ("picture 1",),
        "2": ("picture 2",),
        "3": "missing_caption",
        "4.v2": ("deep",),
        "lonely": "missing_image",
    }
    assert records[0].image == made.jpeg(0)
    assert records[0].recaptions == ("The image shows more",)


def test_dirty_files_have_their_reasons(folder):
    (folder / "0.txt").write_text(" ")
    (folder / "1.txt").write_bytes("é".encode("latin-1"))
    (folder / "2.txt").write_text("two images")
    (folder / "2.png").write_bytes(b"")
    (folder / "3.txt").mkdir()
    found = outcomes(open_folder(str(folder)))
    assert found["0"] == "empty_caption"
    assert found["1"] == "bad_text_encoding"
    assert found["2"] == "duplicate_member"
    assert found["3"] == "missing_caption"
    assert open_folder(str(folder)).passed_over == {}


def test_metadata_in_json_lines(folder):
    rows = [
        {"file_name": "0.jpg", "text": "zero", "aesthetic_score": 6.5},
        {"file_name": "sub.dir/4.v2.PNG", "text": ["a", "b"]},
        {"file_name": "absent.jpg", "text": "x"},
        {"file_name": "1.jpg", "text": ""},
        {"file_name": "2.jpg"},
        {"file_name": "../../secret.jpg", "text": "x"},
        {"file_name": "/etc/secret.jpg", "text": "x"},
        {"text": "x"},
    ]
    lines = [json.dumps(row).encode() for row in rows]
    lines += [b"{broken", b'{"file_name": "\xff", "text": "x"}', b"[]", b""]
    (folder / "metadata.jsonl").write_bytes(b"\n".join(lines))
    records = open_folder(str(folder))
    assert outcomes(records) == {
        "0.jpg": ("zero",),
        "4.v2.PNG": ("a", "b"),
        "absent.jpg": "missing_image",
        "1.jpg": "empty_caption",
        "2.jpg": "missing_caption",
        "secret.jpg": "unsafe_name",
        "metadata.jsonl:8": "missing_image",
        "metadata.jsonl:9": "bad_json",
        "metadata.jsonl:10": "bad_text_encoding",
        "metadata.jsonl:11": "bad_json",
    }
    assert len(records) == 11
    assert records[0].metadata == {"aesthetic_score": 6.5}


def test_metadata_in_csv(folder):
    with (folder / "metadata.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "text", "pwatermark"])
        rows.writerow(["0.jpg", 'zero, "quoted"', "0.25"])
        rows.writerow(["1.jpg", "", ""])
    with (folder / "metadata.csv").open("ab") as file:
        file.write(b"2.jpg,caf\xe9,0\n3.jpg,three,0,too,many\n")
    records = open_folder(str(folder))
    assert outcomes(records) == {
        "0.jpg": ('zero, "quoted"',),
        "1.jpg": "empty_caption",
        "metadata.csv:4": "bad_text_encoding",
        "metadata.csv:5": "bad_row",
    }
    assert records[0].metadata == {"pwatermark": "0.25"}


def test_a_csv_without_the_columns_is_refused(folder):
    (folder / "metadata.csv").write_text("image,text\n0.jpg,zero\n")
    with pytest.raises(UserError, match="has the columns image, text; expected file_"):
        open_folder(str(folder))


def test_a_folder_becomes_examples(folder):
    for i in range(4):
        (folder / f"{i}.txt").write_text(f"picture {i}")
    source = make_source(f"folder:{folder}", image_size=16, seed=0)
    assert len(source) == 5
    assert source[1]["caption"] == "picture 1"
    assert source[4]["rejected"] == ((("missing_caption"), f"{folder}/sub.dir/4.v2"),)


def test_folders_that_cannot_be(tmp_path):
    with pytest.raises(UserError, match="is no directory"):
        open_folder(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="is empty"):
        open_folder(str(tmp_path))
    (tmp_path / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(UserError, match="is a file; expected its folder"):
        open_folder(f"{tmp_path}/metadata.csv")
    with pytest.raises(UserError, match="local files only"):
        open_folder("gs://bucket/folder")


@pytest.fixture
def coco(tmp_path):
    """Karpathy's JSON in small, its images in folders by their origin."""
    root, rows = tmp_path / "images", []
    splits = ["train", "restval", "val", "test", "test"]
    for i, split in enumerate(splits):
        origin = "train2014" if split == "train" else "val2014"
        (root / origin).mkdir(parents=True, exist_ok=True)
        (root / origin / f"{i}.jpg").write_bytes(made.jpeg(i))
        rows.append(
            {
                "filepath": origin,
                "filename": f"{i}.jpg",
                "split": split,
                "cocoid": 100 + i,
                "sentences": [{"raw": f"caption {i} {j} "} for j in range(5)],
            }
        )
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": rows}))
    return path


def test_karpathys_splits_have_five_captions_an_image(coco):
    test = open_karpathy(f"{coco}:{coco.parent}/images:test")
    assert len(test) == 2
    assert test[1].captions == tuple(f"caption 4 {j}" for j in range(5))
    assert test[1].image == made.jpeg(4)
    assert test[1].metadata == {"cocoid": 104, "split": "test"}
    train = open_karpathy(f"{coco}:{coco.parent}/images:train+restval")
    assert [train[i].metadata["cocoid"] for i in range(len(train))] == [100, 101]


def test_images_may_stand_in_one_folder(coco):
    test = open_karpathy(f"{coco}:{coco.parent}/images/val2014:val")
    assert test[0].image == made.jpeg(2)


def test_karpathy_strings_that_cannot_be(coco):
    images = coco.parent / "images"
    with pytest.raises(UserError, match="no split trian; it has restval, test, train"):
        open_karpathy(f"{coco}:{images}:trian")
    with pytest.raises(UserError, match="expected karpathy:JSON:IMAGEDIR:SPLIT"):
        open_karpathy(f"{coco}:{images}")
    with pytest.raises(UserError, match="is no directory"):
        open_karpathy(f"{coco}:{images}/no:test")
    with pytest.raises(UserError, match="cannot be read"):
        open_karpathy(f"{coco}.no:{images}:test")
    coco.write_text("[1]")
    with pytest.raises(UserError, match="is not Karpathy's JSON"):
        open_karpathy(f"{coco}:{images}:test")


def write_images(root, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(made.jpeg())


def test_metadata_lie_at_any_depth(tmp_path):
    write_images(tmp_path, "train/a.jpg", "train/in/b.jpg", "val/c.jpg", "val/d.jpg")
    rows = '{"file_name": "a.jpg", "text": "a"}\n{"file_name": "in/b.jpg", "text": "b"}'
    (tmp_path / "train" / "metadata.jsonl").write_text(rows)
    (tmp_path / "val" / "Metadata.CSV").write_text("file_name;text\nc.jpg;c\n")
    (tmp_path / "val" / "d.txt").write_text("d")  # beside what metadata names
    records = open_folder(str(tmp_path))
    assert outcomes(records) == {
        "a.jpg": ("a",),
        "b.jpg": ("b",),
        "c.jpg": ("c",),
        "d": ("d",),
    }
    assert records.passed_over == {}


def test_images_that_no_metadata_names_are_counted(tmp_path):
    write_images(tmp_path, "a.jpg", "b.jpg", "in/c.jpg")
    (tmp_path / "a.txt").write_text("not read")
    (tmp_path / "readme.txt").write_text("no caption")
    (tmp_path / "metadata.csv").write_text("file_name,text\na.jpg,a\n")
    records = open_folder(str(tmp_path))
    assert outcomes(records) == {"a.jpg": ("a",)}
    assert records.passed_over == {"images that no metadata names": 2, ".txt": 2}


def test_two_metadata_files_of_a_folder_are_refused(folder):
    (folder / "metadata.csv").write_text("file_name,text\n0.jpg,zero\n")
    (folder / "metadata.jsonl").write_text('{"file_name": "0.jpg", "text": "other"}')
    with pytest.raises(UserError, match=r"has two of metadata.jsonl, .*keep one"):
        open_folder(str(folder))


def test_two_captions_of_a_row_are_refused_until_one_is_chosen(folder):
    rows = [
        {"file_name": "0.jpg", "text": "zero", "caption": "zero"},
        {"file_name": "1.jpg", "text": "one", "caption": "uno"},
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(
        UserError,
        match="jsonl:2 has different texts under caption and text; .*_keys=caption",
    ):
        open_folder(str(folder))
    records = open_folder(str(folder), CaptionOptions(keys=("text",)))
    assert records[1].captions == ("one",)
    assert records[1].metadata == {"caption": "uno"}


def test_names_written_elsewhere_find_their_files(tmp_path):
    write_images(tmp_path, "sub/a.png", "b.JPG", "cafe\u0301.jpg", "d\\e.jpg")
    lines = [
        "file_name,text",
        "sub\\a.png,a",
        "B.jpg,b",
        "café.jpg,c",
        "d\\e.jpg,d",
        f"{tmp_path}/sub/a.png,absolute",
        "..\\a.png,x",
        "sub\\..\\..\\a.png,x",
        "C:\\photos\\a.png,x",
        "\\\\host\\a.png,x",
        "a\0.png,x",
    ]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    found = open_folder(str(tmp_path)).read_many(range(10))
    texts = [record.captions[0] for record in found[:5]]
    assert texts == ["a", "b", "c", "d", "absolute"]
    reasons = [bad.reason for bad in found[5:]]
    assert reasons == ["unsafe_name"] * 4 + ["missing_image"]


def test_accents_pair_however_they_are_written(tmp_path):
    write_images(tmp_path, "cafe\u0301.jpg")
    (tmp_path / "café.txt").write_text("a cup")
    assert open_folder(str(tmp_path))[0].captions == ("a cup",)


def test_linked_folders_are_read_once(tmp_path):
    write_images(tmp_path, "root/a.jpg", "other/b.jpg", "far/c.jpg")
    for name in ("root/a", "other/b", "far/c"):
        (tmp_path / f"{name}.txt").write_text(name)
    root = tmp_path / "root"
    (root / "link").symlink_to(tmp_path / "other")
    (root / "twice").symlink_to(tmp_path / "other")
    (tmp_path / "other" / "up").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "dead.jpg").symlink_to(tmp_path / "absent.jpg")
    (root / "far.jpg").symlink_to(tmp_path / "far" / "c.jpg")
    (root / "far.txt").symlink_to(tmp_path / "far" / "c.txt")
    (root / "dead.txt").write_text("x")
    records = open_folder(str(root))
    assert outcomes(records) == {
        "a": ("root/a",),
        "b": ("other/b",),
        "dead": "missing_image",
        "far": ("far/c",),
    }
    assert records.passed_over == {
        "links to folders already read": 2,
        "files without extension": 1,
    }


def test_what_cannot_be_opened_is_counted(folder, monkeypatch):
    (folder / "0.txt").write_text("zero")
    os.mkfifo(folder / "pipe.jpg")
    scan = os.scandir

    def refuse(path):
        if path.name == "sub.dir":
            raise PermissionError(path)
        return scan(path)

    monkeypatch.setattr("os.scandir", refuse)
    records = open_folder(str(folder))
    assert records.passed_over == {
        "pipes, sockets or devices": 1,
        "folders that cannot be read": 1,
    }


def test_pictures_of_other_formats_are_named_by_these(tmp_path):
    write_images(tmp_path, "a.jpg", "b.SVG", "c.heic", "in/d.psd", "a.cr2", "a.HEIC")
    for name in ("a", "b", "e"):
        (tmp_path / f"{name}.txt").write_text(name)
    (tmp_path / "e.npz").write_bytes(b"")
    records = open_folder(str(tmp_path))
    assert outcomes(records) == {
        "a": ("a",),
        "b.SVG": "unsupported_image",
        "c.heic": "unsupported_image",
        "d.psd": "unsupported_image",
        "e.npz": "wrong_extension",
    }
    assert records.passed_over == {".heic": 1, ".cr2": 1}
    rows = [{"file_name": name, "text": name} for name in ("b.SVG", "no.svg", "a.jpg")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert outcomes(open_folder(str(tmp_path))) == {
        "b.SVG": "unsupported_image",
        "no.svg": "missing_image",
        "a.jpg": ("a.jpg",),
    }


def test_json_beside_an_image_has_its_caption_if_no_text_has(tmp_path):
    write_images(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    (tmp_path / "a.json").write_text('{"caption": "a", "width": 9}')
    (tmp_path / "b.json").write_text('{"caption": "not read"}')
    (tmp_path / "b.txt").write_text("b")
    (tmp_path / "c.json").write_text("[" * 100_000)
    (tmp_path / "d.json").write_text('{"shapes": []}')
    records = open_folder(str(tmp_path))
    assert outcomes(records) == {
        "a": ("a",),
        "b": ("b",),
        "c": "bad_json",
        "d": "missing_caption",
    }
    assert records[0].metadata["width"] == 9
    assert records.passed_over == {".json": 1}


def test_all_that_lies_there_is_counted(folder, caplog):
    for i in range(3):
        (folder / f"{i}.txt").write_text(f"picture {i}")
    (folder / "0.recap_txt").write_text("The image shows more")
    for name in ("notes.md", "0.npz", "all.json", "LICENSE", ".hidden", "x.md"):
        (folder / name).write_bytes(b"")
    (folder / "@eaDir").mkdir()
    with caplog.at_level(logging.INFO):
        records = open_folder(str(folder))
    passed = {
        ".md": 2,
        ".npz": 1,
        ".json": 1,
        "files without extension": 1,
        "hidden files": 2,
    }
    assert records.passed_over == passed
    assert len(records) == 5  # of 5 images, 3 captions and a recaption
    files = [path for path in folder.rglob("*") if path.name != "sub.dir"]
    assert len(files) == 5 + 3 + 1 + sum(passed.values())
    assert f"folder:{folder}: 5 records; other files there: " in caplog.text
    assert "2 .md" in caplog.text


def test_a_folder_of_which_nothing_can_be_used_is_refused(tmp_path):
    write_images(tmp_path, "a.jpg", "b.svg")
    (tmp_path / "captions.json").write_text("{}")
    with pytest.raises(UserError) as found:
        open_folder(str(tmp_path))
    assert str(found.value) == (
        f"source folder:{tmp_path} has no record that can be used: missing_caption 1, "
        f"first {tmp_path}/a, unsupported_image 1, first {tmp_path}/b.svg; expected "
        "a.jpg with a.txt or a.caption beside it, or metadata.jsonl with file_name and "
        "caption; other files there: 1 .json"
    )


def test_a_folder_of_empty_captions_is_refused_by_its_reasons(tmp_path):
    write_images(tmp_path, "a.jpg", "b.jpg")
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("\ufeff \u200b")
    source = make_source(f"folder:{tmp_path}", image_size=16, seed=0)
    with pytest.raises(UserError, match="none of the 2 records .*: empty_caption 2, f"):
        source[0]


def test_a_karpathy_row_of_another_form_is_a_broken_record(coco):
    content = json.loads(coco.read_text())
    content["images"] += [
        {"split": "test", "filename": None, "sentences": None},
        {"split": "test", "filename": "4.jpg", "filepath": "val2014", "sentences": [1]},
        {"split": "test", "filename": "../../4.jpg"},
        {"split": 7},
    ]
    coco.write_text(json.dumps(content))
    found = open_karpathy(f"{coco}:{coco.parent}/images:test").read_many(range(2, 5))
    reasons = [bad.reason for bad in found]
    assert reasons == ["missing_caption", "missing_caption", "unsafe_name"]
