"""The loss of the image tokenizer."""

import functools

import jax

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
