"""Projector, align head and text decoder."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtok_jax.models.text import AlignHead, TextDecoder, UnbiasedLayerNorm
from tests import tiny

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def params():
    return tiny.random_params(tiny.nets(), "t2i") | tiny.random_params(
        tiny.nets(), "text_tokenizer", seed=1
    )


@pytest.fixture(scope="module")
def golden():
    return tiny.golden("flowtok_tiny.forward")


def test_layer_norm_divides_by_the_unbiased_std_plus_eps():
    x = RNG.standard_normal((2, 3, 8)).astype(np.float32)
    x[0, 0] = 5.0  # no spread: eps keeps the result finite
    x[0, 1] *= 1e-5  # a spread as small as eps
    params = {"scale": tiny.normal(RNG, 8), "bias": tiny.normal(RNG, 8)}
    got = UnbiasedLayerNorm().apply({"params": params}, jnp.asarray(x))
    centred = x - x.mean(-1, keepdims=True)
    wanted = centred / (x.std(-1, ddof=1, keepdims=True) + 1e-5)
    wanted = np.asarray(params["scale"]) * wanted + np.asarray(params["bias"])
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    np.testing.assert_allclose(got[0, 0], params["bias"], atol=1e-6)


def test_golden_projector(golden):
    nets, params = tiny.golden_nets()
    apply = jax.jit(nets.projector.apply)
    posterior = apply({"params": params["projector"]}, jnp.asarray(golden["text"]))
    assert tiny.relative_error(posterior.mean, golden["text_mean"]) < 2e-5
    assert tiny.relative_error(posterior.logvar, golden["text_logvar"]) < 2e-5


def test_golden_align_head(golden):
    nets, params = tiny.golden_nets()
    apply = jax.jit(nets.align_head.apply)
    target, tau = apply({"params": params["align_head"]}, jnp.asarray(golden["text"]))
    assert tiny.relative_error(target, golden["text_projection"]) < 2e-5
    np.testing.assert_allclose(tau, np.log(1 / 0.07), rtol=1e-6)


def test_projector_sees_no_positions(params):
    """Attention has no mask and no positions: permuted features, permuted tokens."""
    feats, order = tiny.batch()["text_feats"], np.array([3, 1, 0, 5, 4, 2])
    apply, params = (
        jax.jit(tiny.nets().projector.apply),
        {"params": params["projector"]},
    )
    wanted, got = apply(params, feats), apply(params, feats[:, order])
    np.testing.assert_allclose(got.mean, wanted.mean[:, order], atol=1e-5)


def test_projector_drops_only_in_training(params):
    feats, projector = tiny.batch()["text_feats"], tiny.nets().projector
    apply = jax.jit(projector.apply, static_argnums=2)
    params = {"params": params["projector"]}
    fixed = apply(params, feats).mean
    first, again, other = (
        apply(params, feats, False, rngs={"dropout": jax.random.key(seed)}).mean
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert tiny.relative_error(first, other) > 1e-2
    assert tiny.relative_error(first, fixed) > 1e-2


def test_dropout_acts_on_attention_hidden_layer_and_both_residuals(params, monkeypatch):
    drawn, draw = Counter(), jax.random.bernoulli

    def count(key, p, shape):
        drawn[tuple(shape)] += 1
        return draw(key, p, shape)

    monkeypatch.setattr(jax.random, "bernoulli", count)
    projector, feats = tiny.nets().projector, tiny.batch()["text_feats"]
    for deterministic in (True, False):
        assert not drawn
        jax.eval_shape(
            lambda key, fixed=deterministic: (
                projector.apply(
                    {"params": params["projector"]}, feats, fixed, rngs={"dropout": key}
                ).mean
            ),
            jax.random.key(0),
        )
    traces = drawn[4, 6, 24]  # of a block, by the scan over blocks
    assert traces > 0
    wanted = {(4, 4, 6, 6): 1, (4, 6, 24): 1, (4, 6, 32): 2}
    assert drawn == {shape: n * traces for shape, n in wanted.items()}


def test_align_target_average_pool_is_the_mean_of_neighbouring_features():
    head = AlignHead(target="average_pool", channels=4)
    feats = tiny.normal(RNG, 2, 3, 8)
    variables = jax.jit(head.init)(jax.random.key(0), feats)
    assert list(variables["params"]) == ["tau"]
    target, tau = head.apply(variables, feats)
    assert target.shape == (2, 3, 4)
    for c in range(4):
        mean = (feats[..., 2 * c] + feats[..., 2 * c + 1]) / 2
        np.testing.assert_allclose(target[..., c], mean, atol=1e-6)
    np.testing.assert_allclose(tau, np.log(1 / 0.07), rtol=1e-6)


def test_align_target_unknown_is_refused():
    with pytest.raises(ValueError, match="'pool'; expected one of"):
        AlignHead(target="pool").init(jax.random.key(0), jnp.zeros((1, 2, 16)))


def test_decoder_gives_a_float32_logit_an_entry_of_the_vocabulary(params):
    z_txt = tiny.normal(RNG, 2, 6, 4)
    for dtype in ("float32", "bfloat16"):
        decoder = tiny.nets(compute=dict(dtype=dtype)).text_decoder
        logits = jax.jit(decoder.apply)({"params": params["text_decoder"]}, z_txt)
        assert logits.shape == (2, 6, 50)
        assert logits.dtype == jnp.float32
        assert np.std(logits) > 0.1


def test_decoder_defaults_are_those_of_clip():
    params = jax.eval_shape(
        TextDecoder().init, jax.random.key(0), jnp.zeros((1, 77, 16))
    )["params"]
    assert params["out"]["kernel"].shape == (768, 49408)
    assert params["blocks"]["fc1"]["kernel"].shape == (6, 768, 1024)
