"""The velocity field."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu.parameter_overview import count_parameters

from flowtok_jax.models.dit import SIZES, DiT, DiTBlock, modulations
from tests import tiny

# Millions, as of the release, which counts its fixed positions too.
PARAMETERS = {"s": 32.5, "b": 129.6, "l": 456.9, "xl": 673.8, "h": 1067.8}
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def inputs():
    z_t = tiny.normal(RNG, 3, 6, 4)
    return z_t, jnp.array([0.1, 0.5, 0.9]), jnp.array([False, True, False])


@pytest.fixture(scope="module")
def params():
    return tiny.random_params(tiny.nets(), "i2t")["dit"]


@pytest.mark.parametrize("size", SIZES)
def test_parameter_count(size):
    inputs = jnp.zeros((1, 77, 16)), jnp.zeros(1), jnp.zeros(1, bool)
    dit = DiT(**SIZES[size])
    params = jax.eval_shape(dit.init, jax.random.key(0), *inputs)
    count = count_parameters(params) + dit.tokens * dit.width
    assert round(count / 1e6, 1) == PARAMETERS[size]


def test_velocity_is_exactly_zero_at_init(params, inputs):
    dit = tiny.nets().dit
    velocity, _ = jax.jit(dit.init_with_output)(jax.random.key(0), *inputs)
    np.testing.assert_array_equal(velocity, np.zeros((3, 6, 4)))
    later = jax.jit(dit.apply)({"params": params}, *inputs)
    assert np.abs(later).min() > 0


def test_a_block_is_the_identity_at_init():
    block, x, k = DiTBlock(heads=4), tiny.normal(RNG, 2, 5, 32), tiny.normal(RNG, 2, 32)
    (out, _), params = jax.jit(block.init_with_output)(jax.random.key(0), x, k)
    np.testing.assert_array_equal(out, x)
    changed, _ = jax.jit(block.apply)(tiny.random_like(params), x, k)
    assert tiny.relative_error(changed, x) > 1e-2


def test_init_of_indicator_time_and_dense_layers():
    dit = DiT(width=256, depth=1, heads=4)
    inputs = jnp.zeros((1, 77, 16)), jnp.zeros(1), jnp.zeros(1, bool)
    params = jax.jit(dit.init)(jax.random.key(0), *inputs)["params"]
    for kernel in (
        params["indicator"]["embedding"],
        params["time"]["fc1"]["kernel"],
        params["time"]["fc2"]["kernel"],
    ):
        np.testing.assert_allclose(np.std(kernel), 0.02, rtol=0.1)
    kernel = params["blocks"]["mlp"]["fc1"]["kernel"][0]
    bound = np.sqrt(6 / sum(kernel.shape))
    np.testing.assert_allclose(np.abs(kernel).max(), bound, rtol=1e-2)
    assert not np.any(params["blocks"]["mlp"]["fc1"]["bias"])


def test_golden_velocity():
    nets, params = tiny.golden_nets()
    golden = tiny.golden("flowtok_tiny.forward")
    x, t, null = (jnp.asarray(golden[key]) for key in ("x", "t", "null"))
    velocity = jax.jit(nets.dit.apply)({"params": params["dit"]}, x, t, null)
    assert tiny.relative_error(velocity, golden["velocity"]) < 2e-5


def test_time_and_indicator_of_one_row_serve_the_whole_batch(params, inputs):
    z_t, _, _ = inputs
    apply, params = jax.jit(tiny.nets().dit.apply), {"params": params}
    one = apply(params, z_t, jnp.array([0.3]), jnp.array([True]))
    each = apply(params, z_t, jnp.full(3, 0.3), jnp.full(3, True))
    np.testing.assert_allclose(one, each, atol=1e-5)
    for other in (
        apply(params, z_t, jnp.array([0.4]), jnp.array([True])),
        apply(params, z_t, jnp.array([0.3]), jnp.array([False])),
    ):
        assert tiny.relative_error(other, one) > 1e-3


def test_bfloat16_computes_near_float32_and_returns_float32(params, inputs):
    wanted, got = (
        jax.jit(tiny.nets(compute=dict(dtype=dtype)).dit.apply)(
            {"params": params}, *inputs
        )
        for dtype in ("float32", "bfloat16")
    )
    assert got.dtype == jnp.float32
    assert 1e-5 < tiny.relative_error(got, wanted) < 0.05


def test_text_enters_as_tokens_only(params, inputs):
    """Tokens are told apart by their positions, and rows do not see one another."""
    z_t, t, null = inputs
    apply, params = jax.jit(tiny.nets().dit.apply), {"params": params}
    velocity = apply(params, z_t, t, null)
    changed = apply(params, z_t.at[0].add(1.0), t, null)
    np.testing.assert_array_equal(changed[1:], velocity[1:])
    assert np.abs(changed[0] - velocity[0]).min() > 0
    rolled = apply(params, jnp.roll(z_t, 1, axis=1), t, null)
    assert tiny.relative_error(jnp.roll(rolled, -1, axis=1), velocity) > 1e-3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_modulations_stand_for_the_times_that_they_were_computed_of(
    params, inputs, dtype
):
    z_t, times, null = inputs
    dit = tiny.nets(compute=dict(dtype=dtype)).dit
    known = jax.jit(lambda t: modulations(dit, params, t))(times)
    assert known.blocks.shape == (3, 2, 2, 6 * 32)
    assert known.final.shape == (3, 2, 2 * 32)
    apply = jax.jit(dit.apply)
    for i, t in enumerate(times):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], known)
        for flags in (null, jnp.array([True])):
            wanted = apply({"params": params}, z_t, t[None], flags)
            got = apply({"params": params}, z_t, one, flags)
            tolerance = 1e-5 if dtype == "float32" else 1e-2
            assert tiny.relative_error(got, wanted) < tolerance
