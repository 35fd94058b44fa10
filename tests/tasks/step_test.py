"""The step that the tasks share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from configs import default
from flowtok_jax import array_types as shapes
from flowtok_jax.runtime.digests import params_sha256
from flowtok_jax.runtime.mesh import make_mesh
from flowtok_jax.tasks import TASKS
from flowtok_jax.tasks.optimizer import make_optimizer
from flowtok_jax.tasks.state import make_state
from flowtok_jax.tasks.step import average, train_step, train_steps
from flowtok_jax.train import sharding
from tests import tiny
from tests.tasks.setting import batch, setting


@pytest.mark.parametrize("task", TASKS)
def test_a_step_moves_every_trained_leaf_and_no_frozen_one(task):
    state, frozen, step = setting(task)
    before = params_sha256(frozen)
    new, scalars = jax.jit(step)(state, frozen, batch())
    assert params_sha256(frozen) == before
    assert int(new.step) == 1
    assert all(np.isfinite(v) for v in jax.tree.leaves(scalars))
    # Adam's first moment after one step is 0.1 of the gradient.
    gradients = optax.tree.get(new.opt_state, "mu")
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.abs(gradient).max() > 0, jax.tree_util.keystr(path)
    old, new = jax.device_get((state, new))
    moved = jax.tree.map(lambda a, b: (a != b).any(), old.params, new.params)
    assert all(jax.tree.leaves(moved))
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(
            a, 0.9 * b + 0.1 * c, rtol=1e-5, atol=1e-6
        ),
        new.ema,
        old.ema,
        new.params,
    )


def test_steps_of_one_call_are_those_of_single_calls():
    state, frozen, step = setting("text_tokenizer")
    batches = [batch(i) for i in range(3)]
    single = state
    for one in batches:
        single, scalars = jax.jit(step)(single, frozen, one)
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *batches)
    scan = jax.jit(functools.partial(train_steps, step))
    together, last = scan(state, frozen, stacked)
    assert int(together.step) == 3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        (together.params, last),
        (single.params, scalars),
    )


def test_a_step_is_compiled_once():
    state, frozen, step = setting("t2i")
    compiled = jax.jit(step)
    for i in range(3):
        state, _ = compiled(state, frozen, batch(i))
    assert compiled._cache_size() == 1


def test_steps_without_a_finite_loss_and_gradient_change_nothing_and_are_counted():
    def loss(params, frozen, batch, key):
        # A gradient may be infinite where the loss is finite.
        return (batch["x"] * params["w"] + jnp.sqrt(params["w"] * batch["y"])).sum(), {}

    optimizer = optax.adamw(0.1)
    step = jax.jit(
        functools.partial(train_step, loss=loss, optimizer=optimizer, ema_decay=0.5)
    )
    state = make_state({"w": jnp.ones(2)}, optimizer, seed=0)
    counts, moved = [], []
    for x, y in ((1, 1), (jnp.nan, 1), (1, 0), (jnp.inf, 1), (2, 1)):
        batch = {"x": jnp.full(2, x, jnp.float32), "y": jnp.full(2, y, jnp.float32)}
        old = state
        state, scalars = step(old, {}, batch)
        trained = [{"all": (s.params, s.ema, s.opt_state)} for s in (old, state)]
        moved.append(params_sha256(trained[0]) != params_sha256(trained[1]))
        counts.append((int(scalars["skipped"]), int(scalars["skipped_in_a_row"])))
    assert counts == [(0, 0), (1, 1), (2, 2), (3, 3), (3, 0)]
    assert moved == [True, False, False, False, True]
    assert int(state.step) == 5
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))


@pytest.mark.parametrize(("made", "wanted"), [(0, 0.1), (90, 0.91), (10_000, 0.95)])
def test_averages_that_warm_up_soon_forget_the_start(made, wanted):
    state = make_state({"w": jnp.zeros(2)}, optax.sgd(1.0), seed=0)
    state = state.replace(step=jnp.int32(made + 3), skipped=jnp.int32(3))
    new = average(state, {"w": jnp.ones(2)}, 0.95, True)
    np.testing.assert_allclose(new["w"], 1 - wanted, rtol=1e-5)
    cold = average(state, {"w": jnp.ones(2)}, 0.95, False)
    np.testing.assert_allclose(cold["w"], 0.05, rtol=1e-5)


@pytest.mark.parametrize("task", ["text_tokenizer", "t2i", "i2t"])
def test_bfloat16_compute_keeps_float32_weights_and_nearly_the_gradient(task):
    state, frozen, step = setting(task)
    compute = dict(dtype="bfloat16", remat="none", attention="xla")
    loss = functools.partial(step.keywords["loss"], nets=tiny.nets(compute=compute))
    both = [
        jax.jit(functools.partial(step, loss=f))(state, frozen, batch())
        for f in (step.keywords["loss"], loss)
    ]
    (wanted, wanted_scalars), (got, scalars) = both
    assert {x.dtype for x in jax.tree.leaves(got.params)} == {np.dtype("float32")}
    np.testing.assert_allclose(
        scalars["loss/total"], wanted_scalars["loss/total"], rtol=0.03
    )
    # Adam's first moment after one step is 0.1 of the gradient.
    a, b = (ravel_pytree(optax.tree.get(s.opt_state, "mu"))[0] for s in (got, wanted))
    assert a @ b > 0.99 * np.linalg.norm(a) * np.linalg.norm(b)
    assert (a != b).any()


def test_noise_differs_from_step_to_step():
    state, frozen, step = setting("t2i")
    _, first = jax.jit(step)(state, frozen, batch())
    _, second = jax.jit(step)(state.replace(step=state.step + 1), frozen, batch())
    assert first["loss/flow"] != second["loss/flow"]


def spread(state, frozen, step, sizes):
    """Makes a step on a mesh of eight devices."""
    mesh = make_mesh(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))
    places = sharding.shardings(mesh, state), sharding.shardings(mesh, frozen)
    rows = jax.NamedSharding(mesh, shapes.ROWS)
    compiled = jax.jit(step, in_shardings=(*places, rows))
    return compiled(*jax.device_put((state, frozen, batch()), (*places, rows)))


@pytest.mark.parametrize(
    ("task", "sizes"),
    [
        ("t2i", (8, 1, 1)),
        ("t2i", (2, 2, 2)),
        ("tokenizer", (1, 4, 2)),
        ("both", (8, 1, 1)),
        ("both", (2, 2, 2)),
        ("t2i_distilled", (2, 2, 2)),
        ("i2t_distilled", (1, 4, 2)),
    ],
)
def test_eight_devices_compute_what_one_does(task, sizes):
    state, frozen, step = setting(task)
    wanted = jax.jit(step)(state, frozen, batch())
    got = spread(state, frozen, step, sizes)
    # Adam's first step has the size of the rate whatever the gradient's, so that
    # a gradient of rounding noise may move either way: compare moments, not params.
    for a, b in ((got[1], wanted[1]), (got[0].opt_state, wanted[0].opt_state)):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), a, b
        )


def test_muon_on_eight_devices_moves_matrices_as_on_one():
    options = default.get_config().optimizer.to_dict() | {"name": "muon"}
    optimizer = make_optimizer(optax.constant_schedule(1e-2), **options)
    state, frozen, step = setting("t2i", optimizer)
    alone, _ = jax.jit(step)(state, frozen, batch())
    parted, _ = spread(state, frozen, step, (1, 4, 2))
    for net in ("dit", "projector"):
        before, one, eight = (
            s.params[net]["blocks"]["attention"]["qkv"]["kernel"]
            for s in (state, alone, parted)
        )
        moved = np.linalg.norm(one - before)
        assert np.linalg.norm(eight - one) < 1e-3 * moved
