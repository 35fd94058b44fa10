import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from flowtok_jax.eval.features import Extractor, resize_clean
from flowtok_jax.eval.fid import Moments
from flowtok_jax.models import inception
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.mesh import make_mesh
from tests.eval import fake

MESHES = {
    "1": {"data": 1, "fsdp": 1, "tensor": 1},
    "2": {"data": 2, "fsdp": 1, "tensor": 1},
    "8": {"data": 2, "fsdp": 2, "tensor": 2},
    "8 rows": {"data": 8, "fsdp": 1, "tensor": 1},
}


def mesh(name="8"):
    sizes = MESHES[name]
    return make_mesh(**sizes, devices=jax.devices()[: int(name.split()[0])])


def extractor(name="8", **options):
    options = {"resize": "clean", "rows": 3, "threads": 2, **options}
    return Extractor(fake.inception(), mesh(name), **options)


def pictures(count=50, side=12):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, side, side, 3), np.uint8)


def by_hand(images):
    """The features of the fake network, in numpy."""
    images = np.stack([resize_clean(image) for image in images])
    net = fake.inception()
    features, logits = net.module.apply({"params": net.params}, images)
    return np.asarray(features), np.asarray(logits)


@pytest.mark.parametrize("name", MESHES)
def test_features_and_their_moments_are_numpys_on_any_mesh(name):
    """50 images in batches of 3 rows a device, the last one not full."""
    images = pictures()
    found = extractor(name)(len(images), images.__getitem__)
    features, logits = by_hand(images)
    np.testing.assert_array_equal(found.rows, np.arange(50))
    np.testing.assert_allclose(found.pool, features, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found.logits, logits, rtol=1e-5, atol=1e-5)
    moments = Moments()
    for part in np.array_split(found.pool, 7):
        moments = moments.add(part)
    exact = features.astype(np.float64)
    np.testing.assert_allclose(moments.mean, exact.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(moments.covariance, np.cov(exact.T), atol=1e-6)


def test_the_same_bits_on_any_mesh():
    images = pictures()
    found = [extractor(name)(len(images), images.__getitem__) for name in MESHES]
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_images_that_are_broken_are_left_out():
    images, asked = pictures(20), []

    def load(number):
        asked.append(number)
        return None if number in (0, 7, 19) else images[number]

    found = extractor()(20, load)
    kept = [i for i in range(20) if i not in (0, 7, 19)]
    assert found.rows.tolist() == kept
    assert sorted(asked) == list(range(20))
    np.testing.assert_allclose(found.pool, by_hand(images[kept])[0], atol=1e-5)


def test_no_images_have_no_features():
    extract = extractor()
    found = extract(0, pictures().__getitem__)
    assert extract._program._cache_size() == 0  # the network did not run
    assert found.pool.shape == (0, fake.FEATURES)
    assert found.logits.shape == (0, fake.CLASSES)


def test_one_program_serves_every_batch_and_call():
    extract, images = extractor(), pictures(30)
    extract(30, images.__getitem__)
    extract(7, images.__getitem__)
    assert extract._program._cache_size() == 1


def test_clean_resizing_is_pillows_bicubic_without_rounding():
    image = pictures(1, 400)[0] // 2 + 60  # no overshoot beyond a byte
    found = resize_clean(image)
    wanted = Image.fromarray(image).resize((299, 299), Image.Resampling.BICUBIC)
    assert found.shape == (299, 299, 3)
    assert np.abs(found - np.asarray(wanted)).max() < 1.5  # it rounds twice
    assert (found % 1 != 0).mean() > 0.9
    # Bicubic overshoots: what a byte cannot hold is cut off.
    edge = np.zeros((20, 20, 3), np.uint8)
    edge[:, 10:] = 255
    assert (resize_clean(edge).min(), resize_clean(edge).max()) == (0, 255)


def test_clean_resizing_leaves_299_px_alone():
    image = pictures(1, 299)[0]
    np.testing.assert_array_equal(resize_clean(image), image)


def test_legacy_resizing_is_done_by_the_networks_program():
    images = pictures(5, 16)
    found = extractor(resize="legacy", side=16)(5, images.__getitem__)
    net = fake.inception()
    resized = inception.resize_legacy(jnp.asarray(images, np.float32))
    wanted, _ = net.module.apply({"params": net.params}, resized)
    np.testing.assert_allclose(found.pool, wanted, rtol=1e-5, atol=1e-5)
    assert np.abs(found.pool - by_hand(images)[0]).max() > 0.01


def test_what_cannot_be_resized_is_refused():
    with pytest.raises(UserError, match="'bilinear'; expected one of clean, legacy"):
        extractor(resize="bilinear")
    images = [np.zeros((16, 16, 3), np.uint8), np.zeros((20, 16, 3), np.uint8)]
    with pytest.raises(UserError, match="image 1 is 16 x 20; legacy .* of 16 px"):
        extractor(resize="legacy", side=16)(2, images.__getitem__)
