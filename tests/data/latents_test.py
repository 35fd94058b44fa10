"""Latents in the release's tars and in ours, written and read, against plain numpy."""

import itertools
import json
import pathlib
import tarfile

import numpy as np
import pytest

from flowtok_jax.data import shards
from flowtok_jax.data.records import Record
from flowtok_jax.data.sources import make_source
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import file_sha256
from tests.data import made

TOKENS, CHANNELS = 77, 16


def release_reader(path: pathlib.Path) -> dict[str, dict]:
    """By the published description alone: KEY.token.npy is a raw float16 buffer
    [32, 77], 16 rows of means and then 16 of log variances; KEY.txt, KEY.recap_txt.
    """
    found: dict[str, dict] = {}
    with tarfile.open(path) as tar:
        for member in tar.getmembers():
            key, ending = member.name.split(".", 1)
            data = tar.extractfile(member).read()
            if ending == "token.npy":
                assert len(data) == 2 * 16 * 77 * 2
                rows = np.frombuffer(data, np.float16).reshape(32, 77)
                found.setdefault(key, {}).update(mean=rows[:16], logvar=rows[16:])
            else:
                found.setdefault(key, {})[ending] = data.decode()
    return found


def release_writer(path: pathlib.Path, what: list[Record]) -> None:
    """By the published description alone."""
    members = []
    for i, record in enumerate(what):
        mean, logvar = record.moments[:, :CHANNELS], record.moments[:, CHANNELS:]
        buffer = np.concatenate([mean.T, logvar.T]).astype(np.float16).tobytes()
        members.append((f"{i:04d}.token.npy", buffer))
        members.append((f"{i:04d}.txt", record.captions[0].encode()))
        if record.recaptions:
            members.append((f"{i:04d}.recap_txt", record.recaptions[0].encode()))
    made.write_tar(path, members)


def open_latents(spec: str, tmp_path: pathlib.Path, **options):
    defaults = dict(image_size=8, seed=0, tokens=TOKENS, channels=CHANNELS)
    cache = str(tmp_path / "cache")
    return make_source(f"latents:{spec}", **defaults | options, cache=cache)


def test_the_release_reads_what_we_write(tmp_path):
    what = made.latents(12)
    shard = shards.write_release_tar(tmp_path / "00000.tar", what)
    assert shard.records == 12
    found = release_reader(tmp_path / "00000.tar")
    assert len(found) == 12
    for record, entry in zip(what, found.values(), strict=True):
        np.testing.assert_array_equal(entry["mean"], record.moments.T[:CHANNELS])
        np.testing.assert_array_equal(entry["logvar"], record.moments.T[CHANNELS:])
        assert (entry["txt"],) == record.captions
        assert entry.get("recap_txt") == next(iter(record.recaptions), None)


def test_we_read_what_the_release_writes(tmp_path):
    what = made.latents(12)
    release_writer(tmp_path / "x.tar", what)
    source = open_latents(f"{tmp_path}/x.tar", tmp_path)
    assert len(source) == 12
    for i, record in enumerate(what):
        example = source[i]
        assert example["moments"].dtype == np.float16
        np.testing.assert_array_equal(example["moments"], record.moments)
        assert example["caption"] in (record.captions[0], f"Number {i}.")
        assert example["rejected"] == ()


def test_recaptions_take_their_share(tmp_path):
    release_writer(tmp_path / "x.tar", made.latents(2))
    source = open_latents(f"{tmp_path}/x.tar", tmp_path)
    texts = [source.read(position, 1)["caption"] for position in range(1000)]
    assert set(texts) == {"caption 1", "Number 1."}
    assert 0.92 < texts.count("Number 1.") / 1000 < 0.98
    never = {"recaption_rate": 0.0}
    source = open_latents(f"{tmp_path}/x.tar", tmp_path, transform=never)
    assert {source.read(p, 1)["caption"] for p in range(99)} == {"caption 1"}


def test_several_captions_become_several_keys(tmp_path):
    moments = made.latents(1)[0].moments
    five = Record("x", tuple("abcde"), ("The image shows r", "s"), moments=moments)
    only = Record("y", (), ("The image shows t",), moments=moments)
    shard = shards.write_release_tar(tmp_path / "x.tar", [five, only])
    assert shard.records == 6
    found = list(release_reader(tmp_path / "x.tar").values())
    assert [entry["txt"] for entry in found] == [*"abcde", "The image shows t"]
    assert found[3]["recap_txt"] == "s"
    for entry in found:
        np.testing.assert_array_equal(entry["mean"], moments.T[:CHANNELS])


def test_our_shards_hold_what_was_written(tmp_path):
    what = [
        record._replace(captions=tuple("abcde"), metadata={"cocoid": i})
        for i, record in enumerate(made.latents(12))
    ]
    shard = shards.write_arrayrecord(tmp_path / "x.arrayrecord", what)
    assert (shard.file, shard.records) == ("x.arrayrecord", 12)
    source = open_latents(f"{tmp_path}/*.arrayrecord", tmp_path)
    for wanted, found in zip(what, source.records.read_many(range(12)), strict=True):
        assert found._replace(moments=None) == wanted._replace(moments=None)
        np.testing.assert_array_equal(found.moments, wanted.moments)
    batch = source.read_batch([0, 1], [7, 2])
    np.testing.assert_array_equal(batch["moments"][0], what[7].moments)
    assert batch["moments"].dtype == np.float16


@pytest.mark.parametrize("kind", ["arrayrecord", "tar"])
def test_writing_again_gives_the_same_bytes(tmp_path, kind):
    write = shards.WRITERS[kind]
    first = write(tmp_path / f"a.{kind}", made.latents(3))
    again = write(tmp_path / f"a.{kind}", made.latents(3))
    assert first == again
    assert first.sha256 == file_sha256(tmp_path / f"a.{kind}")


@pytest.mark.parametrize("kind", ["arrayrecord", "tar"])
def test_a_shard_that_is_not_finished_has_no_name(tmp_path, kind):
    def broken():
        yield from made.latents(2)
        assert not list(tmp_path.glob("a.*"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.WRITERS[kind](tmp_path / f"a.{kind}", broken())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def listed(tmp_path):
    """Two shards with their manifest."""
    folder = tmp_path / "set"
    folder.mkdir()
    written = [
        shards.write_arrayrecord(folder / f"{i}.arrayrecord", made.latents(4, 4 * i))
        for i in range(2)
    ]
    shards.write_manifest(folder, reversed(written))
    return folder


def test_a_manifest_counts_what_is_there(listed):
    content = json.loads((listed / "manifest.json").read_text())
    assert content["records"] == 8
    assert [shard["file"] for shard in content["shards"]] == [
        "0.arrayrecord",
        "1.arrayrecord",
    ]
    shards.check_manifest(listed, checksums=True)


def test_shards_that_are_not_as_listed_are_named(listed, tmp_path):
    spec, path = f"{listed}/*.arrayrecord", listed / "1.arrayrecord"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    shards.check_manifest(listed)
    with pytest.raises(UserError, match=r"1\.arrayrecord differs from its SHA-256"):
        shards.check_manifest(listed, checksums=True)
    path.write_bytes(data + b"x")
    with pytest.raises(UserError, match=r"1\.arrayrecord has \d+ bytes"):
        open_latents(spec, tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"1\.arrayrecord does not exist"):
        open_latents(spec, tmp_path)
    (listed / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        open_latents(spec, tmp_path)


def test_a_tar_of_latents_that_is_listed_and_missing_is_named(tmp_path):
    paths = [tmp_path / f"{i}.tar" for i in range(2)]
    written = [shards.write_release_tar(path, made.latents(2)) for path in paths]
    shards.write_manifest(tmp_path, written)
    assert len(open_latents(f"{tmp_path}/*.tar", tmp_path)) == 4
    paths[1].unlink()
    with pytest.raises(UserError, match=f"{paths[1]} does not exist, but manifest"):
        open_latents(f"{tmp_path}/*.tar", tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_a_shard_cut_short_is_named(listed, tmp_path, share):
    (listed / "manifest.json").unlink()
    path = listed / "1.arrayrecord"
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(UserError, match=f"{path} is no whole ArrayRecord file"):
        open_latents(f"{listed}/*.arrayrecord", tmp_path)


def test_a_damaged_record_is_replaced(listed, tmp_path):
    (listed / "manifest.json").unlink()
    path = listed / "1.arrayrecord"
    data = bytearray(path.read_bytes())
    place = bytes(data).index(b"caption 6")
    data[place] ^= 255
    path.write_bytes(data)
    source = open_latents(f"{listed}/*.arrayrecord", tmp_path)
    batch = source.read_batch(range(8), range(8))
    name = f"{listed}/*.arrayrecord:6"
    assert batch["rejected"] == (("unreadable_file", name),)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_replaced(tmp_path, value):
    what = made.latents(4)
    what[2].moments[5, 5] = value
    release_writer(tmp_path / "x.tar", what)
    source = open_latents(f"{tmp_path}/x.tar", tmp_path)
    batch = source.read_batch(range(4), range(4))
    assert batch["rejected"] == (("not_finite", f"{tmp_path}/x.tar:0002"),)
    assert np.isfinite(batch["moments"]).all()


def test_a_buffer_of_another_length_is_replaced(tmp_path):
    release_writer(tmp_path / "x.tar", made.latents(4))
    with tarfile.open(tmp_path / "x.tar") as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()]
    members[0] = ("0000.token.npy", members[0][1] + b"ab")  # as with a header
    members += [("9.token.npy", b""), ("9.txt", b"a"), ("8.txt", b"a")]
    made.write_tar(tmp_path / "x.tar", members)
    source = open_latents(f"{tmp_path}/x.tar", tmp_path)
    reasons = {source[i]["rejected"][0][0] for i in (0, 4, 5)}
    assert reasons == {"wrong_shape", "empty_file", "missing_image"}


def test_latents_of_another_config_are_refused(tmp_path):
    release_writer(tmp_path / "x.tar", made.latents(2))
    with pytest.raises(UserError, match="4928 bytes; 16 tokens of 4 channels take 256"):
        open_latents(f"{tmp_path}/x.tar", tmp_path, tokens=16, channels=4)
    shards.write_arrayrecord(tmp_path / "x.arrayrecord", made.latents(2))
    with pytest.raises(UserError, match=r"\(77, 32\); expected latents \(16, 8\)"):
        open_latents(f"{tmp_path}/x.arrayrecord", tmp_path, tokens=16, channels=4)


def test_kinds_are_not_confused(tmp_path):
    release_writer(tmp_path / "x.tar", made.latents(2))
    shards.write_arrayrecord(tmp_path / "x.arrayrecord", made.latents(2))
    options = dict(image_size=8, seed=0, cache=str(tmp_path / "cache"))
    with pytest.raises(UserError, match="is it a source latents:"):
        make_source(f"tars:{tmp_path}/x.tar", **options)
    with pytest.raises(UserError, match="holds latents .*; expected images"):
        make_source(f"arrayrecord:{tmp_path}/x.arrayrecord", **options)
    with pytest.raises(UserError, match="mixes images and latents"):
        make_source(f"shapes,latents:{tmp_path}/x.arrayrecord", **options)


def test_what_is_no_record_of_ours_is_refused(tmp_path):
    writer = shards.ArrayRecordWriter(str(tmp_path / "x.arrayrecord"), "group_size:1")
    for _ in range(3):
        writer.write(b"something else")
    writer.close()
    with pytest.raises(UserError, match="holds no records of this package"):
        open_latents(f"{tmp_path}/x.arrayrecord", tmp_path)
    with pytest.raises(UserError, match="local files only"):
        open_latents("gs://b/x.arrayrecord", tmp_path)


def test_weighted_latents_come_batch_by_batch(tmp_path):
    for i in range(2):
        shards.write_arrayrecord(tmp_path / f"{i}.arrayrecord", made.latents(6, 6 * i))
    spec = f"{tmp_path}/0.arrayrecord@2,latents:{tmp_path}/1.arrayrecord"
    source = open_latents(spec, tmp_path)
    batches = source.picks(0).batch(9).map(lambda pick: source.read_batch(*pick))
    for batch in itertools.islice(batches, 4):
        own = [int(text.rstrip(".").split()[1]) < 6 for text in batch["caption"]]
        assert sum(own) == 6
