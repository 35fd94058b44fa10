"""ConvNeXt's remat; its logits' goldens are in tests/convert/parity_test.py."""

import jax
import numpy as np
import pytest

from flowtok_jax.models.convnext import ConvNeXt
from tests import tiny

NET = ConvNeXt(depths=(1, 6), widths=(4, 8), classes=5)


@pytest.fixture(scope="module")
def compiled():
    """The gradient of the logits' squares by the image, without and with remat."""
    image = np.asarray(tiny.uniform("image", 2, 32, 32, 3))
    params = jax.eval_shape(NET.init, jax.random.key(0), image)["params"]
    params = tiny.random_like(params)

    def make(remat):
        net = NET.clone(remat=remat)

        def loss(image):
            return (net.apply({"params": params}, image) ** 2).sum()

        return jax.jit(jax.value_and_grad(loss)).lower(image).compile()

    return image, [make(remat) for remat in (False, True)]


def test_remat_changes_neither_logits_nor_gradient(compiled):
    image, (plain, again) = compiled
    (value, slope), (other, other_slope) = plain(image), again(image)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    assert np.abs(slope).max() > 0
    error = np.abs(other_slope - slope).max()
    assert error <= 1e-4 * np.abs(slope).max()


def test_remat_takes_less_memory(compiled):
    _, programs = compiled
    plain, again = (p.memory_analysis().temp_size_in_bytes for p in programs)
    assert again < 0.6 * plain
