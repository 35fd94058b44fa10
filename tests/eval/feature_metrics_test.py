"""FID and its like of images that are changed more and more."""

import functools
import itertools

import numpy as np
import pytest
from PIL import Image, ImageFilter

from flowtok_jax.data.sources import make_source
from flowtok_jax.eval.features import Extractor, FeatureMetrics
from flowtok_jax.eval.reference import make_reference
from flowtok_jax.weights.nets import load_metric_net
from tests.eval import fake
from tests.eval.features_test import mesh


@functools.cache
def scenes(split, count):
    source = make_source(f"shapes:{split}", image_size=32, seed=0)
    return np.stack([source[i]["image"] for i in range(count)])


def blurred(images, radius):
    found = [
        Image.fromarray(x).filter(ImageFilter.GaussianBlur(radius)) for x in images
    ]
    return np.stack([np.asarray(image) for image in found])


def noisy(images, std):
    noise = np.random.default_rng(0).normal(0, std, images.shape)
    return (images + noise).clip(0, 255).astype(np.uint8)


def mixed(images, share):
    """Some of them replaced by others that show something else."""
    count = int(share * len(images))
    other = 255 - images[::-1]
    return np.concatenate([other[:count], images[count:]])


CHANGES = {
    "blur": (blurred, (0.5, 1, 2, 4)),
    "noise": (noisy, (10, 30, 60, 120)),
    "mixing": (mixed, (0.1, 0.3, 0.6, 1)),
}


def measure(net, change, levels, count):
    """Metrics at rising levels of a change, the first one none."""
    extract = Extractor(net, mesh(), resize="clean", rows=4, threads=2)
    images = scenes("held_out", count)
    reference = make_reference(extract, count, images.__getitem__, keeps_features=True)
    metrics = FeatureMetrics(extract, reference, count, lambda *counts: "")
    found = []
    for level in (0, *levels):
        changed = change(images, level) if level else images
        measured = metrics.measure(metrics.see(changed, range(count)))
        found.append(
            {k.replace("_random_inception", ""): v for k, v in measured.metrics.items()}
        )
    return found


def assert_rises(found):
    fids = [x["fid"] for x in found]
    assert fids[0] < 1e-6
    assert fids[1] > 1e-4 * fids[-1]
    assert all(b > 1.4 * a for a, b in itertools.pairwise(fids[1:])), fids
    assert found[0]["precision"] == found[0]["recall"] == 1


@pytest.mark.parametrize("name", CHANGES)
def test_fid_rises_steadily(name):
    assert_rises(measure(fake.inception(), *CHANGES[name], 128))


@pytest.mark.slow
@pytest.mark.parametrize("name", CHANGES)
def test_fid_of_random_inception_rises_steadily(name):
    assert_rises(measure(load_metric_net("inception", "random"), *CHANGES[name], 32))


def test_kid_sees_what_fid_sees():
    found = measure(fake.inception(), *CHANGES["noise"], 128)
    assert found[0]["kid"] < 1e-6
    assert found[-1]["kid"] > 10 * max(found[1]["kid"], 1e-6)


def test_it_looks_at_the_first_samples_only():
    extract = Extractor(fake.inception(), mesh(), resize="clean", rows=4, threads=2)
    images = scenes("held_out", 12)
    reference = make_reference(extract, 12, images.__getitem__, keeps_features=False)
    metrics = FeatureMetrics(extract, reference, 8, lambda *counts: "")
    assert len(metrics.see(images[:6], range(6))["pool"]) == 6
    assert len(metrics.see(images[6:], range(6, 12))["pool"]) == 2
    numbers = np.array([6, 9, 7])
    assert len(metrics.see(images[:3], numbers)["pool"]) == 2


def test_too_few_samples_have_no_score_and_no_nan():
    extract = Extractor(fake.inception(), mesh(), resize="clean", rows=4, threads=2)
    images = scenes("held_out", 12)
    reference = make_reference(extract, 12, images.__getitem__, keeps_features=True)
    metrics = FeatureMetrics(extract, reference, 9, lambda *counts: "")
    assert metrics.protocol["kid"]["subset_size"] == 9
    arrays = metrics.see(images, range(12))
    found = metrics.measure(arrays)
    assert set(found.metrics) == {"fid", "kid", "kid_std", "precision", "recall"}
    assert np.isfinite(list(found.metrics.values())).all()
    assert found.not_measured == {"inception_score": "expected at least 10 samples"}
    found = metrics.measure({key: rows[:1] for key, rows in arrays.items()})
    assert not found.metrics
    assert found.not_measured["fid"] == "expected at least 2 samples"
    assert "kid" in found.not_measured
