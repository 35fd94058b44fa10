"""A share of a source held out of training, by a hash of each record's name."""

import itertools
import shutil

import numpy as np
import pytest

from configs import demo
from flowtok_jax.data import prepare, shards
from flowtok_jax.data.arrayrecord import ArrayRecords
from flowtok_jax.data.centre import open_images
from flowtok_jax.data.folder import open_folder
from flowtok_jax.data.loader import open_evaluation, open_training
from flowtok_jax.data.records import Record, Side
from flowtok_jax.data.source_strings import parse_sources
from flowtok_jax.data.sources import Shapes, make_records, make_source
from flowtok_jax.runtime.errors import UserError
from tests.data import made

HELD_OUT = Side(0.3, True)
TRAINING = Side(0.3, False)


def write(folder, numbers):
    """Pictures, each with its number as caption."""
    folder.mkdir(parents=True)
    for i in numbers:
        (folder / f"{i}.png").write_bytes(made.encode(made.picture(8, 8, i)))
        (folder / f"{i}.txt").write_text(f"picture {i}")
    return folder


def captions(spec, side):
    source = make_source(spec, image_size=8, seed=0, side=side)
    return [source[i]["caption"] for i in range(len(source))]


def test_the_sides_are_all_records_each_on_one(tmp_path):
    spec = f"folder:{write(tmp_path / 'a', range(40))}"
    seen = captions(spec, TRAINING)
    held_out = captions(spec, HELD_OUT)
    assert sorted(seen + held_out) == sorted(f"picture {i}" for i in range(40))
    assert 5 <= len(held_out) <= 20
    records = open_images(spec, key="data.eval", image_size=8, seed=0, side=HELD_OUT)
    read = records.read_many(range(len(records)))
    assert [record.captions[0] for record in read] == held_out


def test_a_side_stays_where_the_folder_moves_and_grows(tmp_path):
    small = write(tmp_path / "a", range(20))
    large = write(tmp_path / "elsewhere" / "b", range(40))
    held_out = set(captions(f"folder:{small}", HELD_OUT))
    grown = set(captions(f"folder:{large}", HELD_OUT))
    assert held_out == {f"picture {i}" for i in range(20)} & grown
    lines = [f'{{"file_name": "{i}.png", "text": "picture {i}"}}\n' for i in range(20)]
    (small / "metadata.jsonl").write_text("".join(lines[::-1]))
    assert set(captions(f"folder:{small}", HELD_OUT)) == held_out


def test_tars_and_shards_of_a_folder_have_its_sides(tmp_path):
    folder = write(tmp_path / "a" / "b", range(20)).parent
    held_out = set(captions(f"folder:{folder}", HELD_OUT))
    members = [
        (f"b/{file.name}", file.read_bytes())
        for file in sorted((folder / "b").iterdir())
    ]
    made.write_tar(tmp_path / "x.tar", members)
    assert set(captions(f"tars:{tmp_path}/x.tar", HELD_OUT)) == held_out
    flags = [f"--source=folder:{folder}", f"--out={tmp_path}/shards"]
    assert prepare.main(flags) == 0
    shutil.rmtree(folder)
    once = f"arrayrecord:{tmp_path}/shards/*.arrayrecord"
    assert set(captions(once, HELD_OUT)) == held_out
    flags = [f"--source={once}", f"--out={tmp_path}/again"]
    assert prepare.main(flags) == 0
    again = f"arrayrecord:{tmp_path}/again/*.arrayrecord"
    assert set(captions(again, HELD_OUT)) == held_out


def test_names_with_dots_are_names_of_their_own(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    for i in range(20):
        (folder / f"photo.{i}.png").write_bytes(made.encode(made.picture(8, 8, i)))
        (folder / f"photo.{i}.txt").write_text(f"picture {i}")
    records = open_folder(str(folder))
    assert sorted(records.keys()) == sorted(f"photo.{i}" for i in range(20))
    rows = [f'{{"file_name": "photo.{i}.png", "text": "one"}}\n' for i in range(20)]
    (folder / "metadata.jsonl").write_text("".join(rows))
    assert set(open_folder(str(folder)).keys()) == set(records.keys())


def test_every_record_has_the_name_that_it_is_split_by(tmp_path):
    folder = write(tmp_path / "é", range(3))
    made.write_tar(
        tmp_path / "x.tar", [(f.name, f.read_bytes()) for f in sorted(folder.iterdir())]
    )
    assert prepare.main([f"--source=folder:{folder}", f"--out={tmp_path}/shards"]) == 0
    for spec in (
        f"folder:{folder}",
        f"tars:{tmp_path}/x.tar",
        f"arrayrecord:{tmp_path}/shards/*.arrayrecord",
        "shapes",
    ):
        (part,) = parse_sources(spec)
        records = make_records(part, image_size=8, seed=0)
        keys = list(itertools.islice(records.keys(), 3))
        found = records.read_many(range(3))
        assert [record.key or record.name for record in found] == keys
        assert spec == "shapes" or keys == ["0", "1", "2"]


def test_shards_are_read_once_for_their_names(tmp_path, monkeypatch):
    folder = write(tmp_path / "a", range(5))
    assert prepare.main([f"--source=folder:{folder}", f"--out={tmp_path}/shards"]) == 0
    pattern = f"{tmp_path}/shards/*.arrayrecord"
    first = list(ArrayRecords(pattern).keys())
    monkeypatch.setattr(ArrayRecords, "read_many", None)
    assert list(ArrayRecords(pattern).keys()) == first == list("01234")


def test_shards_of_older_versions_have_sides_by_their_names(tmp_path):
    names = [f"/photos/{i}.png" for i in range(20)]
    image = made.encode(made.picture(8, 8))
    old = (Record(name, captions=(name,), image=image) for name in names)
    shards.write_arrayrecord(tmp_path / "old.arrayrecord", old)
    spec = f"arrayrecord:{tmp_path}/old.arrayrecord"
    sides = captions(spec, HELD_OUT), captions(spec, TRAINING)
    assert min(map(len, sides)) > 0
    assert sorted(sum(sides, [])) == sorted(names)


def test_a_bad_record_is_replaced_by_one_of_its_side(tmp_path):
    folder = write(tmp_path / "a", range(20))
    spec = f"folder:{folder}"
    seen = captions(spec, TRAINING)
    for caption in seen[1:]:
        (folder / f"{caption.split()[1]}.png").write_bytes(b"no image")
    assert captions(spec, TRAINING) == seen[:1] * len(seen)


def test_joined_sources_are_split_one_by_one_and_keep_their_weights(tmp_path):
    one = f"folder:{write(tmp_path / 'a', range(40))}"
    other = f"folder:{write(tmp_path / 'b', range(40, 60))}"
    parts = captions(one, HELD_OUT), captions(other, HELD_OUT)
    mixed = make_source(f"{one}@3,{other}", image_size=8, seed=0, side=HELD_OUT)
    assert mixed.weights == [3.0, 1.0]
    assert [len(part) for part in mixed.parts] == list(map(len, parts))
    assert captions(f"{one},{other}", HELD_OUT) == parts[0] + parts[1]


def test_scenes_are_split_by_their_number():
    every = Shapes("train", 32, 0, length=100)
    sides = [every.on_side(side) for side in (TRAINING, HELD_OUT)]
    numbers = np.concatenate([side.indices for side in sides])
    assert sorted(numbers) == list(range(100))
    for side in sides:
        assert side.scene(1) == every.scene(side.indices[1])
        np.testing.assert_array_equal(side[1]["image"], every[side.indices[1]]["image"])


@pytest.mark.parametrize(("share", "what"), [(1e-6, "none"), (1 - 1e-6, "all")])
def test_a_share_that_leaves_a_side_empty_is_refused(tmp_path, share, what):
    spec = f"folder:{write(tmp_path / 'a', range(5))}"
    side = Side(share, what == "none")
    options = {"image_size": 8, "seed": 0, "side": side}
    message = f"^data.held_out = .* holds out {what} of the 5 records of .*such as 0.2"
    with pytest.raises(UserError, match=message):
        make_source(spec, **options)
    with pytest.raises(UserError, match=message):
        open_images(spec, key="data.eval", **options)


def test_tars_of_latents_are_not_split():
    with pytest.raises(UserError, match="^data.held_out cannot split latents:x.tar"):
        make_source("latents:x.tar", image_size=8, seed=0, side=HELD_OUT)


def test_a_config_s_evaluation_sees_what_training_does_not(tmp_path):
    config = demo.get_config()
    spec = f"folder:{write(tmp_path / 'a', range(20))}"
    own = {"data.train": spec, "data.eval": "", "tokenizer.image_size": 8}
    config.update_from_flattened_dict(own)
    assert len(open_training(config)) == len(open_evaluation(config)) == 20
    config.data.held_out = 0.3
    assert len(open_training(config)) == len(captions(spec, TRAINING))
    assert len(open_evaluation(config)) == len(captions(spec, HELD_OUT))
    config.data.eval = spec  # pictures of their own are not split
    assert len(open_evaluation(config)) == 20
    config.data.held_out = 1.0
    with pytest.raises(UserError, match="^data.held_out is 1; expected a share"):
        open_training(config)
