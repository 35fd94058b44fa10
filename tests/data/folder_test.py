import csv
import json

import pytest

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
