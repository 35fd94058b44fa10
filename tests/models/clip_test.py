"""CLIP's towers, against a slow version and transformers' CLIPModel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu.parameter_overview import count_parameters

from flowtok_jax.convert.critics import convert_critic, prepare_critic, read_clip_sizes
from flowtok_jax.models.clip import ClipScorer, ClipText, ClipVision, make_clip_scorer
from flowtok_jax.weights.nets import net_shapes
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


@pytest.fixture(scope="module")
def scorer():
    """The network behind clip_tiny.npz, and its parameters."""
    state = prepare_critic("clip", tiny.FOLDER.state("clip_tiny"))
    shapes = {name: drawn.shape for name, drawn in state.items()}
    net = make_clip_scorer(**read_clip_sizes(shapes, {"text": 4, "vision": 4}))
    params = convert_critic("clip", state, net_shapes("clip", net))
    return net, jax.device_put(params)


@pytest.fixture(scope="module")
def images():
    return jnp.asarray(tiny.uniform("clip/images", 4, 3, 32, 32).transpose(0, 2, 3, 1))


def test_both_towers_embed_as_transformers_does(scorer, images):
    net, params = scorer
    golden = tiny.golden("clip_tiny")
    ids = jnp.asarray(golden["caption_ids"])
    got = jax.jit(net.apply)({"params": params}, images, ids)
    for vectors, name in zip(got, ("image_embeds", "text_embeds"), strict=True):
        assert tiny.relative_error(vectors, golden[name]) < 1e-5
        spread = np.std(golden[name], 0).max()
        assert spread > 0.05  # the golden tells images and captions apart
        lengths = np.linalg.norm(vectors, axis=-1)
        np.testing.assert_allclose(lengths, 1, rtol=1e-5)


def test_embeddings_are_those_of_both_methods(scorer, images):
    net, params = scorer
    ids = jnp.asarray(tiny.golden("clip_tiny")["caption_ids"])
    image, text = jax.jit(net.apply)({"params": params}, images, ids)
    embed = {
        name: jax.jit(lambda p, x, name=name: net.apply(p, x, method=name))
        for name in ("embed_image", "embed_text")
    }
    got = embed["embed_image"]({"params": params}, images[1:3])
    np.testing.assert_allclose(got, image[1:3], atol=1e-5)
    # What stands behind the end token counts for nothing.
    longer = ids.at[:2, 8:].set(7)
    got = embed["embed_text"]({"params": params}, longer)
    np.testing.assert_allclose(got, text, atol=1e-5)


def test_a_scorer_is_its_sizes(scorer):
    net, _ = scorer
    assert net.image_size == 32
    assert net.vision == ClipVision(48, 3, 4, image_size=32, patch=8)
    assert net.text == ClipText(32, 2, 4, vocab_size=120, context=16)


@pytest.mark.parametrize(
    ("net", "count"),
    [
        (ClipScorer(ClipText(), ClipVision()), 427_944_193),
        (
            make_clip_scorer(
                dict(width=512, depth=12, heads=8),
                dict(width=768, depth=12, heads=12, image_size=224, patch=32),
                512,
            ),
            151_277_313,
        ),
    ],
    ids=["vit_l_14_336", "vit_b_32"],
)
def test_published_sizes_have_their_number_of_parameters(net, count):
    """As transformers counts them, which includes CLIP's own temperature."""
    shapes = net_shapes("clip", net).values()
    assert sum(int(np.prod(shape)) for shape in shapes) + 1 == count
