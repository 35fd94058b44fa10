"""The loss of text to image."""

import functools

import jax
import numpy as np
import pytest

from flowtok_jax.tasks import TASKS, init_group
from tests import tiny
from tests.tasks.setting import OPTIONS, batch, setting


def test_the_dit_starts_at_zero_so_its_other_weights_do_not_matter_to_the_first_loss():
    nets = tiny.nets()
    state, frozen, step = setting("t2i")
    init = jax.jit(lambda key: init_group(nets, "t2i", key)["dit"])
    loss = jax.jit(step.keywords["loss"])
    dits = *map(init, jax.random.split(jax.random.key(0))), state.params["dit"]
    first, second, moved = (
        loss(state.params | {"dit": dit}, frozen, batch(), jax.random.key(2))[1]
        for dit in dits
    )
    assert first["loss/flow"] == second["loss/flow"] != moved["loss/flow"]
    assert first["loss/align"] == moved["loss/align"]


@pytest.mark.parametrize(
    ("align", "target"), [("contrastive", "average_pool"), ("cosine", "mlp")]
)
def test_the_loss_is_the_sum_of_its_terms_in_every_alignment(align, target):
    nets = tiny.nets(align_head={"width": 20, "target": target})
    _, frozen, _ = setting("t2i")
    options = OPTIONS.t2i.to_dict() | {"align": align}
    loss = functools.partial(TASKS["t2i"].loss, nets=nets, **options)
    params = tiny.random_params(nets, "t2i")
    value, scalars = jax.jit(loss)(params, frozen, batch(), jax.random.key(0))
    assert np.isfinite(value)
    assert float(scalars["loss/align"]) > 0
    terms = sum(scalars[f"loss/{term}"] for term in ("flow", "align", "kl"))
    np.testing.assert_allclose(value, terms, rtol=1e-6)
