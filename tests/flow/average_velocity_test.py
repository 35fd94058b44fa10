"""Average velocities against a flow whose averages are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtok_jax.flow import average_velocity
from flowtok_jax.flow.average_velocity import (
    adaptive_loss,
    average_steps,
    average_target,
    sample_spans,
    sample_times,
)

Z = jnp.asarray([[[1.0, -2.0]], [[0.5, 3.0]], [[-1.0, 0.25]]])
T = jnp.asarray([0.1, 0.3, 0.6])
R = jnp.asarray([0.9, 0.4, 1.0])


def velocity(z, t):
    """dz/dt = 3 z cos(3 t), so that z = z_0 exp(sin 3t)."""
    return 3 * z * jnp.cos(3 * t)[:, None, None]


def average(z, t, r):
    """The exact average of `velocity` from t to r."""
    growth = jnp.expm1(jnp.sin(3 * r) - jnp.sin(3 * t)) / (r - t)
    return z * growth[:, None, None]


@pytest.mark.parametrize(("method", "rtol"), [("jvp", 1e-4), ("difference", 0.05)])
def test_the_exact_average_is_its_own_target(method, rtol):
    v = velocity(Z, T)
    predicted, target = average_target(average, Z, T, R, v, method, width=0.001)
    np.testing.assert_array_equal(predicted, average(Z, T, R))
    np.testing.assert_allclose(target, predicted, rtol=rtol)


@pytest.mark.parametrize("method", average_velocity.METHODS)
def test_the_target_of_another_sign_would_not_be_the_average(method):
    v = velocity(Z, T)
    predicted, target = average_target(average, Z, T, R, v, method)
    other = 2 * v - target
    assert np.abs(other - predicted).max() > 0.5


def test_where_both_times_are_one_the_target_is_the_velocity():
    v = velocity(Z, T)

    def constant(z, t, r):
        return 2.0 * z

    _, target = average_target(constant, Z, T, T, v)
    np.testing.assert_array_equal(target, v)


@pytest.mark.parametrize("method", average_velocity.METHODS)
def test_gradients_reach_the_prediction_and_not_the_target(method):
    def value(scale, which):
        pair = average_target(
            lambda z, t, r: scale * average(z, t, r), Z, T, R, velocity(Z, T), method
        )
        return pair[which].sum()

    assert jax.grad(value)(1.0, 0) == pytest.approx(float(average(Z, T, R).sum()))
    assert jax.grad(value)(1.0, 1) == 0.0


@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_the_exact_average_ends_right_in_any_number_of_steps(num_steps):
    def prepare(grid):
        return jnp.stack([grid[:-1], grid[1:]], 1)  # [N 2]

    def call(z, at):
        return average(z, *(jnp.full(len(z), x) for x in at))

    got = average_steps(call, Z, num_steps, prepare)
    np.testing.assert_allclose(got, Z * np.exp(np.sin(3.0)), rtol=1e-5)


def test_times_are_in_order_and_at_their_locations():
    t, r = sample_times(jax.random.key(0), 20_000)
    assert (t <= r).all()
    assert t.min() > 0
    assert r.max() < 1
    logit = np.log(np.stack([t, r]) / (1 - np.stack([t, r])))
    # The least and the largest of two normals at -0.4 and 1.2 have their mean 0.4.
    assert logit.mean() == pytest.approx(0.4, abs=0.02)
    assert (logit[1] - logit[0]).mean() > 1.6  # further apart than the locations


def test_rows_weigh_alike_whatever_their_error():
    predicted = jnp.zeros((3, 2, 4))
    target = jnp.asarray([10.0, 1.0, 1e-4])[:, None, None] * jnp.ones((3, 2, 4))

    def loss(predicted):
        return adaptive_loss(predicted, target, 0.01)[1].sum()

    error, weighed = adaptive_loss(predicted, target, 0.01)
    np.testing.assert_allclose(error, [800.0, 8.0, 8e-8], rtol=1e-5)
    np.testing.assert_allclose(weighed[:2], [1.0, 1.0], atol=2e-3)
    assert weighed[2] < 1e-4
    slope = jax.grad(loss)(predicted)
    np.testing.assert_allclose(slope[1], -2 / 8.01, rtol=1e-4)  # 2 (0 - 1) / 8.01


def test_spans_are_of_any_length_alike_and_anywhere():
    first, last = map(np.asarray, sample_spans(jax.random.key(0), (4000, 3), 4))
    lengths = np.bincount((last - first).ravel(), minlength=5)
    np.testing.assert_allclose(lengths[1:] / 12_000, 0.25, atol=0.02)
    assert lengths[0] == 0
    assert first.min() == 0
    assert last.max() == 4
    places = np.bincount(first[last - first == 2], minlength=3)
    np.testing.assert_allclose(places / places.sum(), 1 / 3, atol=0.03)
