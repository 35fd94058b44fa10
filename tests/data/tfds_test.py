import io

import numpy as np
import pytest

from flowtok_jax.data.captions import CaptionOptions
from flowtok_jax.data.sources import make_source
from flowtok_jax.data.tfds import Tfds
from flowtok_jax.runtime.errors import UserError
from tests.data import made

SPLITS = {"train": 4, "restval": 2, "val": 1, "test": 3}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data set of the form of coco_captions, prepared on disk."""
    folder = tmp_path_factory.mktemp("tfds")
    make_builder(folder).download_and_prepare()
    return folder


def make_builder(folder):
    import tensorflow_datasets as tfds

    class TinyCaptions(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = tfds.features.Text()
            captions = tfds.features.Sequence({"id": np.int64, "text": text})
            features = {"image": tfds.features.Image(), "captions": captions}
            features |= {"image/filename": tfds.features.Text(), "image/id": np.int64}
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, downloads):
            return {name: self._generate_examples(name) for name in SPLITS}

        def _generate_examples(self, split):
            for i in range(SPLITS[split]):
                captions = [{"id": j, "text": f"{split} {i} {j} "} for j in range(5)]
                yield (
                    i,
                    {
                        "image": io.BytesIO(made.jpeg(i)),
                        "image/filename": f"{split}_{i}.jpg",
                        "image/id": 100 + i,
                        "captions": captions,
                    },
                )

    return TinyCaptions(data_dir=folder, file_format="array_record")


@pytest.fixture
def tiny(prepared, monkeypatch):
    import tensorflow_datasets as tfds

    # As TFDS_DATA_DIR, which is read when the library is imported.
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(prepared))
    return "tiny_captions"


def test_records_have_five_captions_and_the_files_bytes(tiny):
    records = Tfds(f"{tiny}:test")
    assert len(records) == 3
    found = {record.name: record for record in records.read_many(range(3))}
    assert sorted(found) == ["test_0.jpg", "test_1.jpg", "test_2.jpg"]
    record = found["test_1.jpg"]
    assert record.captions == tuple(f"test 1 {j}" for j in range(5))
    assert record.image == made.jpeg(1)
    assert record.metadata == {"image_id": 101}


def test_captions_are_read_by_the_options(tiny):
    records = Tfds(f"{tiny}:test", CaptionOptions("first_line", ("prompt",)))
    assert records[1].captions[0].startswith("test")
    records._rows = [{"image": made.jpeg(), "prompt": b"\xef\xbb\xbfone\ntwo"}]
    assert records[0].captions == ("one",)


def test_splits_are_joined_and_cut(tiny):
    assert len(Tfds(f"{tiny}:train+restval")) == 6
    assert len(Tfds(f"{tiny}:train[:50%]")) == 2
    assert len(Tfds(f"{tiny}:1.0.0:train[1:]+test")) == 6


def test_it_becomes_examples(tiny):
    source = make_source(f"tfds:{tiny}:val", image_size=16, seed=0)
    captions = {source.read(position, 0)["caption"] for position in range(60)}
    assert captions == {f"val 0 {j}" for j in range(5)}
    assert source[0]["image"].shape == (16, 16, 3)


def test_what_cannot_be_opened_says_how_to_prepare_it(tiny):
    with pytest.raises(UserError, match=r"Unknown split.*tfds build tiny_captions"):
        Tfds(f"{tiny}:trian")
    with pytest.raises(UserError, match=r"DatasetNotFoundError.*tfds build no_such"):
        Tfds("no_such_set:train")
    with pytest.raises(UserError, match="expected tfds:NAME:SPLIT"):
        Tfds("coco_captions")


def test_messages_have_one_line(tiny):
    with pytest.raises(UserError) as found:
        Tfds("no_such_set:train")
    assert "\n" not in str(found.value)
