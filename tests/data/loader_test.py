import itertools

import numpy as np
import pytest

from configs import demo
from flowtok_jax.data.loader import Loader, abstract_batch, make_vocabulary


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
