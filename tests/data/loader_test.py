import itertools
import json
import shutil
import threading

import numpy as np
import pytest
from absl import flags
from PIL import Image

from configs import demo
from flowtok_jax.data import images, loader, shards
from flowtok_jax.data.examples import Example, Source
from flowtok_jax.data.loader import Loader, abstract_batch, make_vocabulary
from flowtok_jax.data.records import Record
from flowtok_jax.runtime.errors import UserError
from tests import tiny
from tests.data import made


@pytest.fixture(scope="module")
def config():
    config = demo.get_config()
    config.train.batch_size = 4
    config.data.prefetch = 2
    return config


@pytest.fixture(scope="module")
def vocabulary(config):
    return make_vocabulary(config)


def batches(config, vocabulary, start, count):
    return list(itertools.islice(Loader(config, vocabulary, start), count))


def test_a_batch_holds_images_and_the_ids_of_their_captions(config, vocabulary):
    (batch,) = batches(config, vocabulary, 0, 1)
    assert batch["image"].shape == (4, 32, 32, 3)
    assert batch["image"].dtype == np.uint8
    assert batch["caption_ids"].shape == (4, 16)
    assert len(set(vocabulary.decode(batch["caption_ids"]))) > 1


def test_a_folder_s_captions_get_the_ids_of_the_release_s_tokenizer(config, tmp_path):
    tiny.write_clip_vocabulary(tmp_path / "clip")
    texts, ids = tiny.golden_captions()
    # Nothing but white space is no caption, and would be replaced.
    kept = [i for i, text in enumerate(texts) if text.strip()]
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in kept:
        (folder / f"{i:03d}.jpg").write_bytes(made.jpeg())
        (folder / f"{i:03d}.txt").write_text(texts[i], "utf-8", newline="")
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(
        {
            "data.train": f"folder:{folder}",
            "text.vocabulary": str(tmp_path / "clip"),
            "latent.tokens": 77,
            "train.batch_size": len(kept),
        }
    )
    (batch,) = batches(config, make_vocabulary(config), 0, 1)
    assert sorted(batch["caption_ids"].tolist()) == sorted(ids[kept].tolist())


def test_the_abstract_batch_is_that_of_the_loader(config, vocabulary):
    (batch,) = batches(config, vocabulary, 0, 1)
    wanted = {key: (array.shape, array.dtype) for key, array in batch.items()}
    found = {key: (a.shape, a.dtype) for key, a in abstract_batch(config).items()}
    assert found == wanted


def test_stored_latents_are_moments_in_the_place_of_images(config):
    stored = config.copy_and_resolve_references()
    stored.data.train = "latents:data/*.tar"
    found = {key: (a.shape, a.dtype) for key, a in abstract_batch(stored).items()}
    assert found == {
        "moments": ((4, 16, 32), np.float16),
        "caption_ids": ((4, 16), np.int32),
    }


def test_a_loader_started_later_goes_on_with_the_same_batches(config, vocabulary):
    whole, rest = batches(config, vocabulary, 0, 5), batches(config, vocabulary, 3, 2)
    for a, b in zip(whole[3:], rest, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
    assert (whole[0]["image"] != whole[1]["image"]).any()


def test_another_seed_gives_other_batches(config, vocabulary):
    other = config.copy_and_resolve_references()
    other.train.seed = 1
    (a,), (b,) = batches(config, vocabulary, 0, 1), batches(other, vocabulary, 0, 1)
    assert (a["image"] != b["image"]).any()


COUNT, ROWS, EPOCHS = 24, 9, 3  # 8 batches are 3 epochs, whose ends fall inside batches


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Two folders of images and a shard of latents, all of whose values are i."""
    root = tmp_path_factory.mktemp("sources")
    for start, name in ((0, "a"), (100, "b")):
        folder = root / name
        folder.mkdir()
        lines = []
        for i in range(COUNT):
            pixels = np.full((40, 60, 3), start + i, np.uint8)
            pixels[:, ::2, 1] = 255  # so that crop and flip show
            Image.fromarray(pixels).save(folder / f"{i}.png")
            texts = ["a red circle", "a blue square", "a green triangle"]
            lines.append(json.dumps({"file_name": f"{i}.png", "text": texts}))
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    moments = (np.full((16, 32), i, np.float16) for i in range(COUNT))
    records = [
        Record(f"r{i}", ("a red circle",), ("The image shows a blue square",), None, m)
        for i, m in enumerate(moments)
    ]
    shards.write_arrayrecord(root / "x.arrayrecord", records)
    return root


SPECS = {
    "folder": "folder:{0}/a",
    "latents": "latents:{0}/x.arrayrecord",
    "joined": "folder:{0}/a,folder:{0}/b",
    "mixture": "folder:{0}/a@2,folder:{0}/b",
    "scenes": "folder:{0}/a@2,shapes",
}


@pytest.fixture(params=SPECS)
def random_config(request, config, sources):
    """Random in everything that may be."""
    made = config.copy_and_resolve_references()
    made.data.train = SPECS[request.param].format(sources)
    made.data.transform.update({"crop": "random", "flip": True, "recaption_rate": 0.5})
    made.train.batch_size = ROWS
    return made


def rows_of(config, vocabulary, start, count, rows=None):
    """Batches, stacked: [count, rows, ...] by key."""
    loader = Loader(config, vocabulary, start, rows)
    found = list(itertools.islice(loader, count))
    return {key: np.stack([batch[key] for batch in found]) for key in found[0]}


def assert_equal(got, wanted):
    assert got.keys() == wanted.keys()
    for key in wanted:
        np.testing.assert_array_equal(got[key], wanted[key])


def content(batches):
    """Which record each row is of."""
    key = "image" if "image" in batches else "moments"
    return batches[key].reshape(*batches[key].shape[:2], -1)[:, :, 0].astype(int)


def test_captions_alone_are_those_beside_the_images(
    random_config, vocabulary, monkeypatch
):
    wanted = rows_of(random_config, vocabulary, 1, 5)
    monkeypatch.setattr(images, "decode", lambda *_: pytest.fail("decoded an image"))
    loader = Loader(random_config, vocabulary, 1, with_images=False)
    found = list(itertools.islice(loader, 5))
    for batch, ids in zip(found, wanted["caption_ids"], strict=True):
        assert_equal(batch, {"caption_ids": ids})
        abstract = abstract_batch(random_config, with_images=False)
        assert {k: (a.shape, a.dtype) for k, a in abstract.items()} == {
            "caption_ids": (ids.shape, ids.dtype)
        }


@pytest.mark.parametrize("processes", [2, 4])
def test_the_rows_of_several_processes_are_those_of_one(
    random_config, vocabulary, processes
):
    random_config.train.batch_size = 8
    whole = rows_of(random_config, vocabulary, 0, 7)
    parts = [
        rows_of(random_config, vocabulary, 0, 7, rows)
        for rows in np.split(np.arange(8), processes)
    ]
    joined = {key: np.concatenate([p[key] for p in parts], 1) for key in whole}
    assert_equal(joined, whole)
    assert len(set(content(whole).ravel().tolist())) > 8


def test_more_processes_go_on_where_one_was_in_an_epoch(random_config, vocabulary):
    whole = rows_of(random_config, vocabulary, 0, 6)
    for rows in ([0, 3, 8], [1, 2, 4, 5, 6, 7]):
        rest = rows_of(random_config, vocabulary, 4, 2, np.array(rows))
        assert_equal(rest, {key: array[4:, rows] for key, array in whole.items()})


def test_reading_ahead_changes_nothing(random_config, vocabulary):
    wanted = rows_of(random_config, vocabulary, 1, 5)
    for threads, prefetch in ((1, 1), (4, 7)):
        random_config.data.update({"threads": threads, "prefetch": prefetch})
        assert_equal(rows_of(random_config, vocabulary, 1, 5), wanted)


@pytest.mark.parametrize("name", ["folder", "joined", "mixture"])
def test_kept_images_are_decoded_once_and_are_the_same(
    config, vocabulary, sources, monkeypatch, name, tmp_path
):
    """Both folders have files of one name."""
    own = shutil.copytree(sources, tmp_path / "own")
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(
        {"data.train": SPECS[name].format(own), "data.transform.flip": True}
    )
    config.train.batch_size = ROWS
    config.data.threads = 1  # two at once may meet an image that neither has kept
    decode, decoded = images.decode, []

    def count(data, file, *options):
        if str(own) in file:  # loaders of other tests may still read ahead
            decoded.append(file)
        return decode(data, file, *options)

    monkeypatch.setattr(images, "decode", count)
    found = {}
    different = COUNT * len(config.data.train.split(","))
    for gib in (1.0, 0.0):  # the first reads on ahead, and decodes nothing more
        config.data.keep_gib = gib
        taken = batches(config, vocabulary, 0, 20)  # 180 images: three epochs or more
        found[gib] = {key: np.stack([x[key] for x in taken]) for key in taken[0]}
        assert len(decoded) == different if gib else len(decoded) >= different + 180
    assert_equal(found[1.0], found[0.0])


def test_images_are_kept_where_all_of_a_source_fit(config, sources):
    config = config.copy_and_resolve_references()
    config.data.train = SPECS["joined"].format(sources)
    one = 3 * 32**2 * COUNT / 2**30
    for gib, kept in ((0.9 * one, [0, 0]), (1.5 * one, [COUNT, 0]), (3, [COUNT] * 2)):
        config.data.keep_gib = gib
        parts = loader.open_training(config).parts
        assert [part.transform.most_kept for part in parts] == kept
    config.data.workers = 4  # each has its own
    config.data.keep_gib = 7 * one
    assert [p.transform.most_kept for p in loader.open_training(config).parts] == [
        COUNT,
        0,
    ]


@pytest.mark.parametrize("name", ["folder", "latents"])
def test_each_epoch_sees_each_record_once(config, vocabulary, sources, name):
    config = config.copy_and_resolve_references()
    config.data.train = SPECS[name].format(sources)
    config.train.batch_size = ROWS
    seen = content(rows_of(config, vocabulary, 0, EPOCHS * COUNT // ROWS)).ravel()
    epochs = seen.reshape(EPOCHS, COUNT)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(COUNT))
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == EPOCHS


def test_weights_draw_two_of_one_for_each_of_the_other(config, vocabulary, sources):
    config = config.copy_and_resolve_references()
    config.data.train = SPECS["mixture"].format(sources)
    config.train.batch_size = ROWS
    seen = content(rows_of(config, vocabulary, 0, 8)).ravel()
    assert (seen < 100).sum() == 48
    # Each goes through its own epochs: 2 of the one, 1 of the other.
    assert np.bincount(seen)[:COUNT].tolist() == [2] * COUNT
    assert np.bincount(seen)[100:].tolist() == [1] * COUNT


def test_replaced_records_are_the_same_wherever_they_are_read(
    config, vocabulary, tmp_path
):
    folder = made.write_planted(tmp_path / "set")
    config = config.copy_and_resolve_references()
    config.data.train, config.train.batch_size = f"tars:{folder}/*.tar", 8
    config.data.cache = str(tmp_path / "cache")
    whole = rows_of(config, vocabulary, 0, 9)
    counts = []
    for rows in np.split(np.arange(8), 2):
        loader = Loader(config, vocabulary, 0, rows)
        for step, batch in zip(range(9), loader, strict=False):
            part = {key: array[step, rows] for key, array in whole.items()}
            assert_equal(batch, part)
        counts.append(loader.rejects.counts)
    wanted = {reason for _, reason in made.PLANTED.values()}
    assert set(counts[0]) | set(counts[1]) == wanted


class Waiting(Source):
    """Images that come only when as many are being read as there are threads."""

    content = "image"

    def __init__(self, threads: int):
        self._barrier = threading.Barrier(threads)

    def __len__(self) -> int:
        return 8

    def read(self, position, index) -> Example:
        self._barrier.wait(timeout=60)
        image = np.zeros((32, 32, 3), np.uint8)
        return {"image": image, "caption": "a red circle", "rejected": ()}


def test_images_of_a_batch_are_read_by_as_many_threads_as_asked_for(
    config, vocabulary, monkeypatch
):
    monkeypatch.setattr(loader, "open_source", lambda *_, **__: Waiting(4))
    config = config.copy_and_resolve_references()
    config.data.threads = 4
    assert len(batches(config, vocabulary, 0, 2)) == 2


def test_workers_of_their_own_load_the_same_batches(config, vocabulary):
    flags.FLAGS.mark_as_parsed()  # grain's workers read absl's flags
    more = config.copy_and_resolve_references()
    more.data.workers = 2
    one, two = batches(config, vocabulary, 3, 4), batches(more, vocabulary, 3, 4)
    for a, b in zip(one, two, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


@pytest.fixture
def worded(config, tmp_path):
    """A config of a folder whose 12 captions have 13 words."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.png").write_bytes(made.encode(made.picture(8, 8)))
        (folder / f"{i}.txt").write_text(f"bird word{i}")
    config = config.copy_and_resolve_references()
    config.data.train = f"folder:{folder}"
    return config


def test_a_vocabulary_too_small_for_the_captions_is_refused_with_its_size(worded):
    worded.clip.vocab_size = 6
    message = r"lacks 42 % of the tokens of 12 captions .*clip.vocab_size=16 at least, "
    with pytest.raises(UserError, match=message):
        loader.check_captions(worded, make_vocabulary(worded), "")
    worded.clip.vocab_size = 16
    loader.check_captions(worded, make_vocabulary(worded), "")


def test_a_vocabulary_has_the_words_of_every_caption_of_an_image(worded, tmp_path):
    folder = tmp_path / "photos"
    captions = [[f"{word}{i}" for word in ("one", "also", "or")] for i in range(12)]
    for i, texts in enumerate(captions):
        (folder / f"{i}.txt").unlink()
        with (folder / "metadata.jsonl").open("a") as rows:
            rows.write(f"{json.dumps({'file_name': f'{i}.png', 'text': texts})}\n")
    vocabulary = make_vocabulary(worded)
    assert not vocabulary.count(list(itertools.chain(*captions))).unknown


def test_captions_that_inherited_words_do_not_fit_are_refused(
    worded, vocabulary, caplog
):
    with pytest.raises(UserError, match=r"100 % .*words of runs/demo, or training"):
        loader.check_captions(worded, vocabulary, "runs/demo")
    worded.text.max_unknown = 1.0
    loader.check_captions(worded, vocabulary, "runs/demo")
    assert "the vocabulary lacks 100 %" in caplog.text


def test_words_beyond_the_captions_that_a_vocabulary_is_made_of_are_counted(worded):
    worded.text.vocabulary_captions = 6
    made_of_half = make_vocabulary(worded)
    with pytest.raises(UserError, match="a larger --config.text.vocabulary_captions"):
        loader.check_captions(worded, made_of_half, "")


def test_records_without_captions_make_no_vocabulary(worded, tmp_path):
    for text in (tmp_path / "photos").glob("*.txt"):
        text.write_text(" ")
    with pytest.raises(UserError, match="none of the 12 records of a source can be"):
        make_vocabulary(worded)


def test_captions_that_are_cut_are_said(worded, caplog):
    short = make_vocabulary(worded).with_context(2)
    loader.check_captions(worded, short, "")
    assert "100 % of the captions are longer than latent.tokens = 2" in caplog.text
