import collections
import pickle

import grain
import numpy as np
import pytest

from flowtok_jax.data import sources
from flowtok_jax.data.examples import Mixture, RecordSource, collate
from flowtok_jax.data.records import BadRecord, Record, Records
from flowtok_jax.data.source_strings import parse_sources
from flowtok_jax.data.sources import Shapes, make_records, make_source
from flowtok_jax.data.transforms import ImageTransform
from flowtok_jax.runtime.errors import UserError
from tests.data import made


class Memory(Records):
    """Records by number; those in `broken` are bad."""

    def __init__(self, length, broken=(), name="r"):
        self.length, self.broken, self.name = length, set(broken), name
        self.image = made.encode(made.picture(8, 8))

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        name = f"{self.name}{index}"
        if index in self.broken:
            raise BadRecord("empty_file", name)
        return Record(name, (name,), image=self.image)


def examples(length, broken=(), name="r", seed=0, **options):
    return RecordSource(
        Memory(length, broken, name),
        ImageTransform(8),
        content="image",
        seed=seed,
        **options,
    )


def test_one_source_is_itself_whatever_its_weight():
    assert isinstance(make_source("shapes@3", image_size=8, seed=0), Shapes)


def test_the_order_is_that_of_grain_over_the_records():
    wanted = grain.MapDataset.source(range(50)).seed(3).shuffle().repeat()
    picks = examples(50).picks(3)
    assert [picks[i] for i in range(120)] == [(i, wanted[i]) for i in range(120)]


def test_an_epoch_sees_each_record_once():
    mixed = Mixture([examples(13), examples(7, name="s")], None)
    picks = mixed.picks(0)
    for epoch in range(3):
        seen = [picks[20 * epoch + i][1] for i in range(20)]
        assert sorted(seen) == list(range(20))
        assert seen != list(range(20))


def test_weights_set_the_proportions_and_each_part_has_its_epochs():
    mixed = Mixture([examples(10), examples(90, name="s")], [3.0, 1.0])
    picks = mixed.picks(0)
    indices = [picks[i][1] for i in range(360)]
    first = [i for i in indices if i < 10]
    assert len(first) == 270
    assert set(collections.Counter(first).values()) == {27}
    assert sorted(i for i in indices if i >= 10) == list(range(10, 100))
    for start in range(0, 360, 40):  # throughout, not one after the other
        assert 28 <= sum(i < 10 for i in indices[start : start + 40]) <= 32


def test_orders_differ_by_seed_and_part():
    mixed = Mixture([examples(50), examples(50, name="s")], [1.0, 1.0])

    def orders(seed):
        indices = [mixed.picks(seed)[i][1] for i in range(100)]
        return [i for i in indices if i < 50], [i - 50 for i in indices if i >= 50]

    first, second = orders(0)
    assert sorted(first) == sorted(second)
    assert first != second
    assert first != orders(9)[0]
    assert (first, second) == orders(0)


def test_weights_that_are_no_whole_numbers():
    mixed = Mixture([examples(100), examples(100), examples(100)], [0.7, 0.2, 0.1])
    picks = mixed.picks(0)
    counts = collections.Counter(picks[i][1] // 100 for i in range(10_000))
    for part, weight in enumerate((0.7, 0.2, 0.1)):
        assert counts[part] / 10_000 == pytest.approx(weight, rel=0.01)


def test_a_mixture_reads_its_parts():
    mixed = Mixture([examples(3), examples(2, name="s")], None)
    wanted = ["r0", "r1", "r2", "s0", "s1"]
    assert [mixed[i]["caption"] for i in range(5)] == wanted
    order = [4, 0, 3, 2, 4]
    batch = mixed.read_batch(order, order)
    assert batch["caption"] == [wanted[i] for i in order]


def test_missing_weights_are_one():
    mixed = make_source("shapes@3,shapes:seen", image_size=8, seed=0)
    assert mixed.weights == [3.0, 1.0]
    assert make_source("shapes,shapes:seen", image_size=8, seed=0).weights is None


def test_a_bad_record_is_replaced_by_a_function_of_seed_and_index():
    broken = {2, 3, 5, 7}
    source, again = examples(10, broken), examples(10, broken)
    for index in range(10):
        found = source.read(100, index)
        assert found["caption"] == again.read(999, index)["caption"]
        if index not in broken:
            assert found["caption"] == f"r{index}"
            assert found["rejected"] == ()
        else:
            assert int(found["caption"][1:]) not in broken
            assert found["rejected"][0] == ("empty_file", f"r{index}")
    others = {examples(10, broken, seed=s)[2]["caption"] for s in range(20)}
    assert len(others) > 2


def test_records_that_replace_and_are_bad_are_told_too():
    source = examples(10, set(range(9)))
    found = source[0]
    assert found["caption"] == "r9"
    assert all(reason == "empty_file" for reason, _ in found["rejected"])
    assert len(found["rejected"]) >= 1


def test_a_bad_record_is_replaced_within_its_part():
    mixed = Mixture([examples(4, {1}), examples(400, name="s")], None)
    assert mixed[1]["caption"].startswith("r")


def test_a_source_of_bad_records_alone_stops():
    with pytest.raises(
        UserError, match="none of the 5 records .*: empty_file 5, first r0; mend"
    ):
        examples(5, range(5), tries=9)[0]


def test_a_batch_is_its_examples_stacked():
    source = examples(10, {4})
    batch = source.read_batch(np.arange(10), np.arange(10))
    singly = [source[i] for i in range(10)]
    np.testing.assert_array_equal(batch["image"], [e["image"] for e in singly])
    assert batch["caption"] == [e["caption"] for e in singly]
    assert batch["rejected"] == singly[4]["rejected"]


def test_a_source_ends():
    assert [e["caption"] for e in examples(3)] == ["r0", "r1", "r2"]
    with pytest.raises(IndexError):
        examples(3)[-1]
    with pytest.raises(IndexError):
        Shapes("train", 8, 0, length=5)[5]


def test_shapes_go_through_the_same_door():
    source = make_source("shapes", image_size=16, seed=1)
    batch = source.read_batch([5, 6], [3, 4])
    np.testing.assert_array_equal(batch["image"][1], source[4]["image"])
    assert batch == collate([source[3], source[4]]) | {"image": batch["image"]}


def test_grain_reads_picks_in_threads():
    source = examples(30, {4, 9})
    picks = source.picks(0)[1::2]
    records = picks.map(lambda pick: source.read(*pick))
    options = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)
    found = records[10:].to_iter_dataset(options).batch(5, batch_fn=collate)
    batch = next(iter(found))
    wanted = [source.read(*picks[i]) for i in range(10, 15)]
    assert batch["caption"] == [e["caption"] for e in wanted]


def test_a_mistake_passes_through_grains_threads():
    source = examples(5, range(5), tries=3)
    records = source.picks(0).map(lambda pick: source.read(*pick))
    batches = records.to_iter_dataset().batch(2, batch_fn=collate)
    with pytest.raises(UserError, match="3 records in a row"):
        next(iter(batches))


def test_a_source_can_go_to_another_process(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(made.encode(made.picture(seed=i)))
        (tmp_path / f"{i}.txt").write_text(f"picture {i}" if i != 3 else "")
    source = make_source(f"folder:{tmp_path}", image_size=8, seed=0)
    clone = pickle.loads(pickle.dumps(source))
    assert clone[3]["rejected"] == (("empty_caption", f"{tmp_path}/3"),)
    assert clone[5]["caption"] == "picture 5"


def test_transform_options_reach_the_images(tmp_path):
    (tmp_path / "a.png").write_bytes(made.encode(made.picture(90, 30)))
    (tmp_path / "a.txt").write_text("a")
    spec = f"folder:{tmp_path}"
    wide = make_source(spec, image_size=8, seed=0, transform={"crop": "random"})
    assert (wide.read(0, 0)["image"] != wide.read(1, 0)["image"]).any()
    square = make_source(spec, image_size=8, seed=0, filters={"aspect": (0.5, 2)})
    with pytest.raises(
        UserError, match="filtered_aspect 1, first .*or loosen data.filters"
    ):
        square.read(0, 0)
    with pytest.raises(TypeError):
        make_source(spec, image_size=8, seed=0, transform={"krop": "random"})


@pytest.mark.parametrize("aspect", [(2, 0.5), (1,), (1, 2, 3), ("a", "b"), "ab"])
def test_a_range_of_aspects_that_is_none_is_refused(tmp_path, aspect):
    made.write_tar(tmp_path / "0.tar", made.pairs(1))
    options = {"image_size": 8, "seed": 0, "cache": str(tmp_path)}
    with pytest.raises(
        UserError, match=r"data\.filters\.aspect is .*as in \(0\.5, 2\)"
    ):
        make_source(f"tars:{tmp_path}/0.tar", filters={"aspect": aspect}, **options)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, 2**64, True])
def test_what_is_no_seed_is_refused(seed):
    with pytest.raises(UserError, match="^seed is .*; expected an integer from 0"):
        make_source("shapes", image_size=8, seed=seed)
    (part,) = parse_sources("shapes")
    with pytest.raises(UserError, match="^seed is .*; expected an integer from 0"):
        make_records(part, image_size=8, seed=seed)


def test_the_largest_seed_draws_and_orders_as_any_other():
    spec = "shapes@3,shapes:seen"
    last, first = (make_source(spec, image_size=8, seed=s) for s in (2**32 - 1, 0))
    position, index = last.picks(2**32 - 1)[7]
    assert last.picks(2**32 - 1)[7] == (7, index)
    one, other = (source.read(position, index) for source in (last, first))
    assert (one["image"] != other["image"]).any()


def test_a_remote_cache_is_refused(monkeypatch):
    monkeypatch.setattr(sources, "to_place", lambda path: path)  # asks no store
    with pytest.raises(UserError, match=r"data\.cache = gs://b/x is remote"):
        make_source("tars:x.tar", image_size=8, seed=0, cache="gs://b/x")
