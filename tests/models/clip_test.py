"""CLIP's text tower."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtok_jax.models.build import count_parameters
from flowtok_jax.models.clip import ClipText
from tests import tiny
from tests.models.layers_test import slow_attention


@pytest.fixture(scope="module")
def params():
    return tiny.random_params(tiny.nets(), "clip")["clip"]


def slow_norm(x, params):
    centred = x - x.mean(-1, keepdims=True)
    std = np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5)
    return centred / std * params["scale"] + params["bias"]


def slow_clip(params, ids: np.ndarray, heads: int) -> np.ndarray:
    """The tower in float64 by numpy."""
    params = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = params["embed"]["embedding"][ids] + params["positions"]
    blocks = params["blocks"]
    for i in range(blocks["norm1"]["scale"].shape[0]):
        block = jax.tree.map(lambda a, i=i: a[i], blocks)
        attended = slow_norm(x, block["norm1"])
        x = x + slow_attention(attended, block["attention"], heads, causal=True)
        hidden = slow_norm(x, block["norm2"])
        hidden = hidden @ block["mlp"]["fc1"]["kernel"] + block["mlp"]["fc1"]["bias"]
        hidden = hidden / (1 + np.exp(-1.702 * hidden))
        x = x + hidden @ block["mlp"]["fc2"]["kernel"] + block["mlp"]["fc2"]["bias"]
    return slow_norm(x, params["norm"])


def test_features_are_those_of_the_slow_version(params):
    clip, ids = tiny.nets().clip, tiny.batch()["caption_ids"]
    got = jax.jit(clip.apply)({"params": params}, ids)
    assert tiny.relative_error(got, slow_clip(params, np.asarray(ids), 4)) < 1e-5


def test_a_feature_depends_on_its_own_and_earlier_tokens_only(params):
    """By gradient: row j of the positions enters with token j alone."""
    clip, ids = tiny.nets().clip, tiny.batch(1)["caption_ids"]

    def feats(positions):
        return clip.apply({"params": params | {"positions": positions}}, ids)[0]

    jacobian = np.abs(jax.jit(jax.jacrev(feats))(params["positions"])).max((1, 3))
    later = np.triu(np.ones_like(jacobian, bool), 1)
    np.testing.assert_array_equal(jacobian[later], 0)
    assert (jacobian[~later] > 1e-4).all()


def test_defaults_are_vit_l_14():
    clip = ClipText()
    ids = jnp.zeros((1, 77), jnp.int32)
    params = jax.eval_shape(clip.init, jax.random.key(0), ids)["params"]
    # 123,650,304 parameters of the full text tower less its 768 x 768 projection.
    assert count_parameters(params) == 123_650_304 - 768**2


def test_embedding_std_is_that_of_the_config():
    clip = ClipText(width=64, depth=1, heads=4, vocab_size=500, embedding_std=0.7)
    ids = jnp.zeros((1, 77), jnp.int32)
    params = jax.jit(clip.init)(jax.random.key(0), ids)["params"]
    np.testing.assert_allclose(np.std(params["embed"]["embedding"]), 0.7, rtol=0.05)
    np.testing.assert_allclose(np.std(params["positions"]), 0.35, rtol=0.05)
