"""The image tokenizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu.parameter_overview import count_parameters

from flowtok_jax.models.tokenizer import SIZES, Tokenizer, patchify, unpatchify
from flowtok_jax.tasks.losses import gaussian_kl
from tests import tiny


@pytest.fixture(scope="module")
def golden():
    return tiny.golden("flowtitok_tiny")


@pytest.fixture(scope="module")
def golden_posterior(golden):
    nets, params = tiny.golden_nets()
    image = jnp.asarray(golden["image"].transpose(0, 2, 3, 1))
    encode = jax.jit(lambda p, x: nets.tokenizer.apply(p, x, method="encode"))
    return encode({"params": params["tokenizer"]}, image)


@pytest.fixture(scope="module")
def golden_decode():
    nets, params = tiny.golden_nets()
    decode = jax.jit(lambda p, *x: nets.tokenizer.apply(p, *x, method="decode"))
    return lambda *x: decode({"params": params["tokenizer"]}, *x)


def abstract_params(tokenizer: Tokenizer):
    side = tokenizer.image_size
    inputs = jnp.zeros((1, side, side, 3)), jnp.zeros((1, 77, 768))
    return jax.eval_shape(tokenizer.init, jax.random.key(0), *inputs)["params"]


@pytest.mark.parametrize("image_size", [256, 512])
def test_parameter_count(image_size):
    tokenizer = Tokenizer(SIZES["base"], SIZES["large"], image_size)
    count = count_parameters(abstract_params(tokenizer))
    assert round(count / 1e6, 2) == 389.85


def test_small_builds():
    params = abstract_params(Tokenizer(SIZES["small"], SIZES["small"]))
    kernel = params["encoder"]["transformer"]["blocks"]["mlp"]["w12"]["kernel"]
    assert kernel.shape == (8, 512, 2 * int(2 / 3 * 4 * 512))
    assert 40e6 < count_parameters(params) < 60e6


def test_patches_go_row_by_row_and_flatten_to_row_column_colour():
    grid, patch = 3, 2
    image = np.zeros((1, 6, 6, 3), np.float32)
    for place in np.ndindex(6, 6, 3):
        image[(0, *place)] = np.dot(place, (100, 10, 1))
    patches = patchify(jnp.asarray(image), patch)
    assert patches.shape == (1, grid**2, patch**2 * 3)
    for row, column, p1, p2, c in np.ndindex(grid, grid, patch, patch, 3):
        got = patches[0, row * grid + column, (p1 * patch + p2) * 3 + c]
        assert got == 100 * (row * patch + p1) + 10 * (column * patch + p2) + c
    np.testing.assert_array_equal(unpatchify(patches, patch), image)


def test_golden_moments(golden, golden_posterior):
    moments = golden["moments"][:, :, 0].transpose(0, 2, 1)  # [b n 2*c]
    mean, logvar = np.split(moments, 2, axis=-1)
    assert tiny.relative_error(golden_posterior.mean, mean) < 2e-5
    assert tiny.relative_error(golden_posterior.logvar, logvar) < 2e-5


def test_golden_kl_a_token(golden, golden_posterior):
    kl = gaussian_kl(golden_posterior.mean, golden_posterior.logvar).sum(-1)
    assert tiny.relative_error(kl, golden["kl"]) < 2e-5


def test_golden_decoded(golden, golden_decode):
    tokens = jnp.asarray(golden["tokens"][:, :, 0].transpose(0, 2, 1))
    image = golden_decode(tokens, jnp.asarray(golden["text"]))
    wanted = golden["decoded"].transpose(0, 2, 3, 1)
    assert tiny.relative_error(image, wanted) < 2e-5


def test_golden_reconstruction(golden, golden_posterior, golden_decode):
    image = golden_decode(golden_posterior.mean, jnp.asarray(golden["text"]))
    wanted = golden["reconstruction"].transpose(0, 2, 3, 1)
    assert tiny.relative_error(image, wanted) < 2e-5


def test_call_is_decode_of_the_mean_and_text_guides_it():
    tokenizer = tiny.nets().tokenizer
    params = {"params": tiny.random_params(tiny.nets(), "tokenizer")["tokenizer"]}
    batch = tiny.batch(2)
    image, text = batch["image"], batch["text_feats"]

    @jax.jit
    def both(text):
        mean = tokenizer.apply(params, image, method="encode").mean
        decoded = tokenizer.apply(params, mean, text, method="decode")
        return tokenizer.apply(params, image, text), decoded

    called, decoded = both(text)
    np.testing.assert_allclose(called, decoded, atol=1e-5)
    assert called.shape == image.shape
    other, _ = both(text[::-1])
    assert tiny.relative_error(other, called) > 1e-3


def test_logvar_of_an_image_is_clipped():
    tokenizer = tiny.nets().tokenizer
    params = tiny.random_params(tiny.nets(), "tokenizer")["tokenizer"]
    bias = jnp.array([0.0] * 4 + [99.0, -99.0, 99.0, -99.0])
    params["encoder"]["out"]["bias"] = bias
    image = tiny.batch(1)["image"]
    encode = jax.jit(lambda p, x: tokenizer.apply(p, x, method="encode"))
    posterior = encode({"params": params}, image)
    assert (posterior.logvar[..., ::2] == 20).all()
    assert (posterior.logvar[..., 1::2] == -30).all()


def test_an_image_size_that_patches_do_not_fill_is_refused():
    tokenizer = Tokenizer(SIZES["small"], SIZES["small"], image_size=250)
    with pytest.raises(ValueError, match="image_size is 250; expected a multiple"):
        abstract_params(tokenizer)
