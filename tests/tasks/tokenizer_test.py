"""The loss of the image tokenizer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from flowtok_jax.tasks.tokenizer import disturb, draw_given
from tests import tiny
from tests.tasks.setting import batch, setting


def test_a_frozen_caption_tower_and_dropout_of_captions_decide_the_reconstruction():
    state, frozen, step = setting("tokenizer")
    loss = step.keywords["loss"]
    key = jax.random.key(0)
    other = batch() | {"caption_ids": batch(1)["caption_ids"]}

    def mse(rate, data):
        value = jax.jit(functools.partial(loss, caption_dropout=rate))
        return value(state.params, frozen, data, key)[1]["loss/reconstruction"]

    assert mse(1.0, batch()) == mse(1.0, other)
    assert mse(0.0, batch()) != mse(0.0, other)


def given(**options):
    nets = tiny.nets()
    frozen = {"clip": tiny.random_params(nets, "clip")}
    drawn = {"caption_dropout": 0.0, "noise": 0.0, "hidden": (0.0, 0.0)} | options
    return draw_given(frozen, batch(), jax.random.key(0), nets=nets, **drawn)


def test_what_is_drawn_for_l_detok_leaves_the_other_draws_as_they_are():
    plain = given()
    more = given(noise=3.0, hidden=(-0.1, 0.7))
    assert set(more) - set(plain) == {"share", "disturbance", "hidden"}
    for name, array in plain.items():
        np.testing.assert_array_equal(array, more[name])


def test_tokens_are_disturbed_by_their_own_spread_as_far_as_their_row_s_share():
    drawn = given(noise=3.0)
    tokens = 5 + jnp.asarray(tiny.draw("tokens", *drawn["disturbance"].shape))
    got = disturb(tokens, drawn, 3.0)
    share = np.asarray(drawn["share"])
    assert (share >= 0).all()
    assert (share <= 1).all()
    assert len(np.unique(share)) == len(share)
    for row, token in enumerate(np.asarray(tokens)):
        noise = 3 * token.std() * np.asarray(drawn["disturbance"][row])
        wanted = (1 - share[row]) * token + share[row] * noise
        np.testing.assert_allclose(got[row], wanted, rtol=1e-4, atol=1e-5)


def test_hidden_patches_are_not_seen():
    nets = tiny.nets()
    params = {"params": tiny.random_params(nets, "tokenizer")["tokenizer"]}
    images = [jnp.asarray(tiny.uniform(name, 2, 16, 16, 3)) for name in "ab"]
    places = (nets.tokenizer.image_size // nets.tokenizer.patch) ** 2

    def encode(image, hidden):
        return nets.tokenizer.apply(params, image, hidden, method="encode").mean

    none = jnp.zeros((2, places), bool)
    np.testing.assert_array_equal(encode(images[0], none), encode(images[0], None))
    one, two = (encode(image, ~none) for image in images)
    np.testing.assert_array_equal(one, two)
    some = none.at[:, 0].set(True)
    changed = images[0].at[:, : nets.tokenizer.patch, : nets.tokenizer.patch].set(0.5)
    np.testing.assert_allclose(
        encode(images[0], some), encode(changed, some), rtol=1e-5, atol=1e-6
    )
    assert (encode(images[0], none) != encode(changed, none)).any()


def test_the_share_of_hidden_patches_is_at_least_none():
    hidden = np.concatenate(
        [given(hidden=bounds)["hidden"] for bounds in ((-1.0, -0.5), (0.5, 0.5))]
    )
    assert not hidden[:8].any()
    assert hidden[8:].any()
