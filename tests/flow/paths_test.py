"""The straight path, its times and its null rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowtok_jax.flow import paths
from tests import tiny

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def ends():
    return tiny.normal(RNG, 3, 5, 2), tiny.normal(RNG, 3, 5, 2)


def test_path_runs_from_source_to_target(ends):
    z_src, z_tgt = ends
    start, _ = paths.straight_path(z_src, z_tgt, jnp.zeros(3))
    end, _ = paths.straight_path(z_src, z_tgt, jnp.ones(3))
    np.testing.assert_array_equal(start, z_src)
    np.testing.assert_allclose(end, z_tgt, atol=1e-4)


def test_path_keeps_sigma_min_of_the_source_at_the_end():
    assert paths.SIGMA_MIN == 1e-5
    z_src, z_tgt = jnp.full((1, 2, 2), 1000.0), jnp.zeros((1, 2, 2))
    end, velocity = paths.straight_path(z_src, z_tgt, jnp.ones(1))
    np.testing.assert_allclose(end, 1000.0 * paths.SIGMA_MIN, rtol=0.01)
    np.testing.assert_allclose(velocity, -1000.0 * (1 - 1e-5), rtol=1e-6)


def test_velocity_is_the_time_derivative_of_the_path(ends):
    t = jnp.array([0.0, 0.4, 1.0])
    _, velocity = paths.straight_path(*ends, t)
    _, derivative = jax.jvp(
        lambda t: paths.straight_path(*ends, t)[0], (t,), (jnp.ones(3),)
    )
    np.testing.assert_allclose(velocity, derivative, atol=1e-6)


def test_gradient_reaches_the_source(ends):
    t = jnp.array([0.0, 0.4, 1.0])
    gradient = jax.grad(lambda z: paths.straight_path(z, ends[1], t)[0].sum())(ends[0])
    np.testing.assert_allclose(gradient[:, 0, 0], 1 - (1 - 1e-5) * t, atol=1e-6)


@pytest.mark.parametrize("location", [0.0, -1.0])
def test_times_are_logit_normal(location):
    t = paths.sample_time(jax.random.key(0), 20000, location)
    t = np.asarray(t, np.float64)
    assert t.min() > 0
    assert t.max() < 1
    assert stats.kstest(np.log(t / (1 - t)) - location, "norm").pvalue > 0.01


@pytest.mark.parametrize(
    ("chosen", "rows", "null"),
    [
        ([0, 1, 0, 1, 1], [0, 3, 2, 4, 1], [0, 1, 0, 1, 1]),
        ([1, 0, 0, 0, 1], [4, 1, 2, 3, 0], [1, 0, 0, 0, 1]),
        ([1, 1, 1, 1, 1], [1, 2, 3, 4, 0], [1, 1, 1, 1, 1]),
        ([0, 0, 1, 0, 0], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0]),
        ([0, 0, 0, 0, 0], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0]),
    ],
    ids=["three", "two", "all", "one", "none"],
)
def test_a_null_row_gets_the_next_null_rows_target(chosen, rows, null):
    z_tgt = tiny.normal(RNG, 5, 2, 3)
    chosen = jnp.array(chosen, bool)
    targets, is_null = jax.jit(paths.null_row_targets)(z_tgt, chosen)
    np.testing.assert_array_equal(targets, z_tgt[jnp.array(rows)])
    np.testing.assert_array_equal(is_null, np.array(null, bool))
