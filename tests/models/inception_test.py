"""FID's Inception; its goldens are in tests/convert/parity_test.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu.parameter_overview import count_parameters

from flowtok_jax.models import inception
from flowtok_jax.models.inception import Inception, resize_legacy
from tests import tiny

RNG = np.random.default_rng(0)


def slow_resize(image: np.ndarray) -> np.ndarray:
    """TensorFlow 1's rule, pixel by pixel in float64."""
    h, w, _ = image.shape
    out = np.empty((299, 299, 3))
    for i in range(299):
        for j in range(299):
            y, x = i * h / 299, j * w / 299
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, h - 1), min(x0 + 1, w - 1)
            top = image[y0, x0] * (x0 + 1 - x) + image[y0, x1] * (x - x0)
            bottom = image[y1, x0] * (x0 + 1 - x) + image[y1, x1] * (x - x0)
            out[i, j] = top * (y0 + 1 - y) + bottom * (y - y0)
    return out


@pytest.mark.parametrize("side", [(20, 31), (350, 64)], ids=["larger", "smaller"])
def test_resize_is_that_of_the_slow_version(side):
    images = RNG.integers(0, 256, (2, *side, 3)).astype(np.float32)
    got = jax.jit(resize_legacy)(jnp.asarray(images))
    assert got.shape == (2, 299, 299, 3)
    for one, image in zip(got, images, strict=True):
        np.testing.assert_allclose(one, slow_resize(image), atol=2e-2)  # float32 places


def test_resize_leaves_images_of_its_size_alone():
    images = jnp.asarray(RNG.integers(0, 256, (1, 299, 299, 3)), jnp.float32)
    np.testing.assert_array_equal(resize_legacy(images), images)


def test_average_pool_leaves_its_padding_out():
    ones = jnp.ones((1, 4, 5, 2))
    np.testing.assert_allclose(inception._average_pool(ones), 1, rtol=1e-6)
    x = RNG.random((1, 4, 5, 2)).astype(np.float32)
    corner = x[:, :2, :2].mean((1, 2))
    pooled = inception._average_pool(jnp.asarray(x))
    np.testing.assert_allclose(pooled[:, 0, 0], corner, rtol=1e-6)


def test_normalisation_is_by_the_stored_statistics():
    net = inception.ConvNorm(3, (1, 1))
    x = jnp.asarray(RNG.standard_normal((2, 4, 4, 2)), jnp.float32)
    params = jax.jit(net.init)(jax.random.key(0), x)["params"]
    names = ("scale", "bias", "mean", "var")
    given = {k: RNG.random(3).astype(np.float32) + 0.1 for k in names}
    got = jax.jit(net.apply)({"params": params | given}, x)
    kernel = np.asarray(params["conv"]["kernel"])[0, 0]
    wanted = (np.asarray(x) @ kernel - given["mean"]) / np.sqrt(given["var"] + 1e-3)
    wanted = np.maximum(wanted * given["scale"] + given["bias"], 0)
    assert (wanted > 0).any()
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_it_has_the_published_number_of_parameters():
    images = jnp.zeros((1, 299, 299, 3))
    params = jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]
    # By the names and shapes of the file: 94 convolutions with four vectors each, and
    # the last layer without its 1008 biases.
    manifest = tiny.manifest("inception")
    sizes = {name: int(np.prod(shape)) for name, shape in manifest.items()}
    dropped = [n for n in sizes if n == "fc.bias" or n.endswith("batches_tracked")]
    assert len(dropped) == 95
    assert count_parameters(params) == sum(sizes.values()) - sum(
        sizes[name] for name in dropped
    )
    features, logits = jax.eval_shape(Inception().apply, {"params": params}, images)
    assert (features.shape, logits.shape) == ((1, 2048), (1, 1008))
    half = Inception(dtype=jnp.bfloat16)
    features, logits = jax.eval_shape(half.apply, {"params": params}, images)
    assert features.dtype == logits.dtype == jnp.float32
