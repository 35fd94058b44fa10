import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from flowtok_jax.convert import rules
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import abstract_group
from flowtok_jax.tasks.optimizer import make_optimizer, make_schedule, without
from tests import tiny

SCHEDULE = {"lr": 4e-4, "lr_end": 1e-5, "warmup_steps": 4, "num_steps": 20}


def test_warm_up_starts_at_zero_and_stays_constant():
    schedule = make_schedule(**SCHEDULE, schedule="constant")
    rates = [float(schedule(i)) for i in range(8)]
    np.testing.assert_allclose(rates[:5], [0, 1e-4, 2e-4, 3e-4, 4e-4], rtol=1e-6)
    np.testing.assert_allclose(rates[5:], 4e-4, rtol=1e-6)


def test_cosine_ends_at_its_end():
    schedule = make_schedule(**SCHEDULE, schedule="cosine")
    np.testing.assert_allclose(float(schedule(20)), 1e-5, rtol=1e-5)
    np.testing.assert_allclose(float(schedule(12)), (4e-4 + 1e-5) / 2, rtol=1e-5)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(UserError, match="linear.*constant, cosine"):
        make_schedule(**SCHEDULE, schedule="linear")


def test_weight_decay_acts_on_every_leaf_and_clipping_bounds_the_norm():
    options = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.5}
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zero = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    optimizer = make_optimizer(optax.constant_schedule(0.1), **options, clip_norm=None)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    for leaf in updates.values():
        np.testing.assert_allclose(leaf, -0.05, rtol=1e-6)
    clipped = make_optimizer(optax.constant_schedule(0.1), **options, clip_norm=1.0)
    huge = {"kernel": jnp.full((2, 2), 1e6), "bias": jnp.zeros(2)}
    _, state = clipped.update(huge, clipped.init(params), params)
    moment = optax.tree.get(state, "mu")["kernel"]
    np.testing.assert_allclose(np.linalg.norm(moment), 0.1, rtol=1e-5)


OPTIONS = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.03, "clip_norm": 1.0}


def test_bfloat16_moments_take_half_the_memory_and_move_weights_nearly_as_far():
    rng = np.random.default_rng(0)
    start = {"kernel": jnp.asarray(rng.normal(size=(16, 16)), jnp.float32)}
    gradients = [
        {"kernel": jnp.asarray(rng.normal(0.5, 1, (16, 16)), jnp.float32)}
        for _ in range(40)
    ]
    moved = {}
    for moments in ("float32", "bfloat16"):
        optimizer = make_optimizer(
            optax.constant_schedule(1e-2), **OPTIONS, moments=moments
        )
        params, state = start, optimizer.init(start)
        for gradient in gradients:
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        for name in ("mu", "nu"):
            assert optax.tree.get(state, name)["kernel"].dtype == moments
        moved[moments] = params["kernel"] - start["kernel"]
    error = np.linalg.norm(moved["bfloat16"] - moved["float32"])
    assert 0 < error < 0.02 * np.linalg.norm(moved["float32"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"moments": "float16"}, "optimizer.moments is 'float16'; expected one of"),
        ({"betas": (0.9,)}, "expected two numbers"),
        ({"betas": (0.9, 1.0)}, "expected two numbers from 0 to below 1"),
        (
            {"moments": "bfloat16", "betas": (0.9, 0.999)},
            r"betas\[1\] = 0.999.*expected at most 0.99",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(optax.constant_schedule(1e-2), **{**OPTIONS, **options})


def decayed(params):
    """The paths of the leaves that decay where kernels do."""
    options = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.5}
    rate = optax.constant_schedule(0.1)
    optimizer = make_optimizer(rate, **options, clip_norm=None, decayed="kernels")
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    return {k for k, leaf in flatten_dict(updates, sep="/").items() if leaf.any()}


def test_what_decays_is_what_decays_in_the_release():
    shapes = abstract_group(tiny.nets(), "tokenizer")
    found = decayed(jax.tree.map(lambda a: jnp.ones(a.shape), shapes))
    told = json.loads((tiny.GOLDENS / "titok_train.decay.json").read_text())
    for rule in rules.RULES["tokenizer"]:
        for source in rule.sources:
            name = source.format(0)
            assert name in told["decayed"] + told["not_decayed"]
            assert (rule.target in found) == (name in told["decayed"]), name


def test_what_is_frozen_neither_learns_nor_decays():
    options = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.5}
    adam = make_optimizer(optax.constant_schedule(0.1), **options, clip_norm=None)
    optimizer = without(adam, lambda path: "encoder" in path)
    params = {"encoder": {"kernel": jnp.ones(2)}, "decoder": {"kernel": jnp.ones(2)}}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert not updates["encoder"]["kernel"].any()
    assert updates["decoder"]["kernel"].all()


def test_other_choices_of_what_decays_are_refused():
    with pytest.raises(UserError, match="optimizer.decayed is 'some'; expected one of"):
        make_optimizer(
            optax.constant_schedule(0.1),
            betas=(0.9, 0.95),
            eps=1e-8,
            weight_decay=0.5,
            clip_norm=None,
            decayed="some",
        )
