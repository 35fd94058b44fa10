"""What the losses of several tasks have in common."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from tests.tasks.setting import batch, setting


@pytest.mark.parametrize("task", ["t2i", "i2t"])
def test_stored_moments_take_the_place_of_the_image(task):
    state, frozen, step = setting(task)
    loss, key = jax.jit(step.keywords["loss"]), jax.random.key(0)
    data, nets = batch(), tiny.nets()
    image = data["image"].astype(jnp.float32) / 255
    tokenizer = {"params": frozen["tokenizer"]["tokenizer"]}
    image = nets.tokenizer.apply(tokenizer, image, method="encode")
    moments = jnp.concatenate([image.mean, image.logvar], -1)
    stored = {"caption_ids": data["caption_ids"], "moments": moments}
    wanted, scalars = loss(state.params, frozen, data, key)
    without = {group: frozen[group] for group in frozen if group != "tokenizer"}
    without["tokenizer"] = {"tokenizer": {}}
    got, got_scalars = loss(state.params, without, stored, key)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    assert set(scalars) == set(got_scalars)
    half = stored | {"moments": moments.astype(jnp.float16)}
    near, _ = loss(state.params, without, half, key)
    np.testing.assert_allclose(near, wanted, rtol=1e-2)
    changed = stored | {"moments": moments + 1}
    assert loss(state.params, without, changed, key)[0] != got
