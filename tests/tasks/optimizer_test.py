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


MUON = {"beta": 0.95, "rms": 0.2, "rest_lr": 0.5}


def orthogonalise(matrix):
    """Five Newton-Schulz steps, as arXiv:2502.16982 has them."""
    x = matrix / np.linalg.norm(matrix)
    if x.shape[0] > x.shape[1]:
        return orthogonalise(matrix.T).T
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x


def muon_slowly(gradients, weight, rate, decay):
    """Moves one matrix by Nesterov's momentum, step by step."""
    momentum = np.zeros_like(weight)
    for count, gradient in enumerate(gradients, 1):
        momentum = 0.95 * momentum + 0.05 * gradient
        ahead = 0.95 * momentum / (1 - 0.95 ** (count + 1))
        ahead += 0.05 * gradient / (1 - 0.95**count)
        moved = 0.2 * max(weight.shape) ** 0.5 * orthogonalise(ahead)
        weight = weight - rate * (moved + decay * weight)
    return weight


def moments_of(state):
    return [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
        if {getattr(key, "name", None) for key in path} & {"mu", "nu"}
    ]


@pytest.mark.parametrize(("layer", "parts"), [("qkv", 3), ("w12", 2), ("proj", 1)])
def test_muon_moves_each_matrix_of_a_kernel_by_itself(layer, parts):
    rng = np.random.default_rng(0)
    shape = (2, 8, 12 * parts)
    start = rng.normal(size=shape).astype(np.float32)
    gradients = rng.normal(size=(3, *shape)).astype(np.float32)
    params = {"blocks": {layer: {"kernel": jnp.asarray(start)}}}
    options = OPTIONS | {"clip_norm": None, "weight_decay": 0.1}
    optimizer = make_optimizer(
        optax.constant_schedule(0.01), **options, name="muon", muon=MUON
    )
    state = optimizer.init(params)
    for gradient in gradients:
        tree = {"blocks": {layer: {"kernel": jnp.asarray(gradient)}}}
        updates, state = optimizer.update(tree, state, params)
        params = optax.apply_updates(params, updates)
    for block in range(2):
        for part in range(parts):
            of = np.s_[block, :, 12 * part : 12 * (part + 1)]
            wanted = muon_slowly([g[of] for g in gradients], start[of], 0.01, 0.1)
            found = params["blocks"][layer]["kernel"][of]
            np.testing.assert_allclose(found, wanted, atol=2e-6)
    # A mesh shards a moment by the shape of its parameter.
    assert [leaf.shape for leaf in moments_of(state)] == [shape]


def test_muon_leaves_what_is_no_block_to_adamw_at_its_own_rate():
    rng = np.random.default_rng(0)
    start = {
        "out": {"kernel": jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)},
        "blocks": {"norm1": {"scale": jnp.ones((2, 8))}},
    }
    gradient = jax.tree.map(lambda x: jnp.sin(7 * x + 1), start)
    rates = {"muon": 0.02, "adamw": 0.01}
    moved = {}
    for name, rate in rates.items():
        optimizer = make_optimizer(
            optax.constant_schedule(rate), **OPTIONS, name=name, muon=MUON
        )
        moved[name], _ = optimizer.update(gradient, optimizer.init(start), start)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *moved.values()
    )


def test_muons_momentum_can_be_kept_in_bfloat16():
    params = {"blocks": {"qkv": {"kernel": jnp.ones((2, 8, 24))}}, "bias": jnp.ones(4)}
    options = OPTIONS | {"name": "muon", "muon": MUON, "moments": "bfloat16"}
    state = make_optimizer(optax.constant_schedule(0.01), **options).init(params)
    kept = [leaf.dtype for leaf in moments_of(state)]
    assert kept
    assert set(kept) == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "lion"}, "optimizer.name is 'lion'; expected one of adamw, muon"),
        ({"name": "muon", "muon": MUON | {"rms": 0.0}}, "rms=0.0.*above 0"),
        ({"name": "muon", "muon": MUON | {"beta": 1.0}}, "beta=1.0.*below 1"),
    ],
)
def test_options_of_muon_that_cannot_be_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        make_optimizer(optax.constant_schedule(0.01), **OPTIONS, **options)
