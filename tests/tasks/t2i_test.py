"""The loss of text to image."""

import functools

import jax
import numpy as np
import pytest

from flowtok_jax.tasks import TASKS, init_group
from tests import tiny
from tests.tasks.setting import OPTIONS, batch, setting

WITH_TOWER = {"clip": {"trained_along": True}}


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


def test_a_tower_that_is_trained_along_gets_the_gradient_of_the_flow():
    nets = tiny.nets(**WITH_TOWER)
    _, frozen, _ = setting("t2i")
    loss = functools.partial(TASKS["t2i"].loss, nets=nets, **OPTIONS.t2i.to_dict())
    params = tiny.random_params(nets, "t2i")
    assert set(params) == {*TASKS["t2i"].networks, "clip"}

    def term(params, name):
        return loss(params, frozen, batch(), jax.random.key(0))[1][f"loss/{name}"]

    gradient = jax.jit(jax.grad(term), static_argnums=1)
    for name in ("flow", "align", "kl"):
        tower = gradient(params, name)["clip"]
        for path, leaf in jax.tree.leaves_with_path(tower):
            assert np.abs(leaf).max() > 0, path
    # The frozen tower is the decoder's, and plays no part here.
    other = frozen | {"clip": {"clip": tiny.random_like(frozen["clip"]["clip"], 9)}}
    values = [loss(params, f, batch(), jax.random.key(0))[0] for f in (frozen, other)]
    assert values[0] == values[1]


def test_the_target_of_the_alignment_stays_where_it_is():
    nets = tiny.nets(**WITH_TOWER)
    params = tiny.random_params(nets, "t2i")
    _, frozen, _ = setting("t2i")

    def alignment(params):
        options = OPTIONS.t2i.to_dict() | {"align": "cosine"}
        # A source that the tower cannot reach leaves it the way through the head.
        out = jax.tree.map(jax.numpy.zeros_like, params["projector"]["out"])
        own = params | {"projector": params["projector"] | {"out": out}}
        _, scalars = TASKS["t2i"].loss(
            own, frozen, batch(), jax.random.key(0), nets=nets, **options
        )
        return scalars["loss/align"]

    tower = jax.jit(jax.grad(alignment))(params)["clip"]
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(tower))
