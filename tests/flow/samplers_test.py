"""The solvers, their times and guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtok_jax.flow import samplers
from tests import tiny

RNG = np.random.default_rng(0)
START = jnp.ones((1, 1, 1))


def oscillating(z, t):
    """dz/dt = 3 z cos(3 t), so that z = exp(sin 3t) from z = 1."""
    return 3 * z * jnp.cos(3 * t)[:, None, None]


@pytest.mark.parametrize("times", ["left", "early"])
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_error_falls_with_the_order_of_the_solver(solver, order, times):
    steps = (16, 32, 64, 128)
    wanted = np.exp(np.sin(3 * samplers.END))
    solve = samplers.SOLVERS[solver]
    errors = [
        abs(float(solve(oscillating, START, n, times=times)[0, 0, 0]) - wanted)
        for n in steps
    ]
    slope, _ = np.polyfit(-np.log(steps), np.log(errors), 1)
    np.testing.assert_allclose(slope, order, atol=0.15)


def test_times_of_the_release_end_at_the_end_and_left_ones_a_step_before():
    end = 1 - 1e-5
    release = samplers.evaluation_times(20, "release")
    np.testing.assert_allclose(release, np.arange(20) * end / 19, rtol=1e-6)
    left = samplers.evaluation_times(20, "left")
    np.testing.assert_allclose(left, np.arange(20) * end / 20, rtol=1e-6)
    early = samplers.evaluation_times(20, "early")
    np.testing.assert_allclose(early, (np.arange(20) / 20) ** 2 * end, rtol=1e-6)
    with pytest.raises(ValueError, match="'right'; expected one of"):
        samplers.evaluation_times(20, "right")


def lengths_of(at, times):
    """The lengths of steps: from one time to the next; of the release all alike."""
    if times == "release":
        return np.full(len(at), samplers.END / len(at))
    return np.diff([*at, samplers.END])


@pytest.mark.parametrize("way", [(0.0, samplers.END), (samplers.END, 0.25)])
@pytest.mark.parametrize("times", samplers.TIMES)
def test_steps_lead_from_one_end_of_a_span_to_the_other(times, way):
    lengths = samplers.step_lengths(7, times, way)
    np.testing.assert_allclose(lengths.sum(), way[1] - way[0], rtol=1e-6)
    assert len(set(np.sign(lengths).tolist())) == 1


@pytest.mark.parametrize("times", samplers.TIMES)
def test_euler_sums_velocities_at_its_times(times):
    at = np.asarray(samplers.evaluation_times(7, times), np.float64)
    got = samplers.euler(oscillating, START, 7, times)
    wanted = np.prod(1 + lengths_of(at, times) * 3 * np.cos(3 * at))
    np.testing.assert_allclose(got[0, 0, 0], wanted, rtol=1e-5)


@pytest.mark.parametrize("times", samplers.TIMES)
def test_heun_averages_the_velocities_of_a_steps_two_ends(times):
    z = 1.0
    at = np.asarray(samplers.evaluation_times(7, times), np.float64)
    for t, h in zip(at, lengths_of(at, times), strict=True):
        left = 3 * z * np.cos(3 * t)
        right = 3 * (z + h * left) * np.cos(3 * min(t + h, samplers.END))
        z += h / 2 * (left + right)
    got = samplers.heun(oscillating, START, 7, times)
    np.testing.assert_allclose(got[0, 0, 0], z, rtol=1e-5)


@pytest.mark.parametrize("solver", samplers.SOLVERS)
@pytest.mark.parametrize("times", samplers.TIMES)
def test_what_is_prepared_of_all_the_times_reaches_its_own_step(solver, times):
    seen = []

    def prepare(t):
        seen.append(t.shape)
        return {"angle": 3 * t, "twice": 2 * jnp.cos(3 * t)}

    def velocity(z, at):
        assert at["angle"].shape == ()
        return 1.5 * z * at["twice"]

    solve = samplers.SOLVERS[solver]
    wanted = solve(oscillating, START, 7, times)
    got = solve(velocity, START, 7, times, prepare)
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    assert seen == [(7,)] * (1 if solver == "euler" else 2)


def test_the_state_is_float32():
    half = START.astype(jnp.bfloat16)
    for solve in samplers.SOLVERS.values():
        assert solve(oscillating, half, 2).dtype == jnp.float32


def test_guidance_goes_from_the_null_velocity_past_the_conditional_one():
    z, t = tiny.normal(RNG, 2, 3, 4), jnp.array([0.3])

    def velocity(z, t, null):
        return jnp.where(null[:, None, None], 10.0, 1.0) * z + t[:, None, None]

    for scale in (0.0, 1.0, 2.0, 7.5):
        got = samplers.guided(velocity, scale)(z, t)
        v_null, v_cond = 10 * z + 0.3, z + 0.3
        wanted = v_null + scale * (v_cond - v_null)
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("scale", "rows"), [(1.0, 2), (2.0, 4), (0.0, 4)])
def test_guidance_calls_the_network_once_and_scale_one_on_half_the_rows(scale, rows):
    calls = []

    def velocity(z, t, null):
        calls.append((z.shape[0], np.asarray(null).tolist()))
        return z

    samplers.guided(velocity, scale)(jnp.ones((2, 1, 1)), jnp.zeros(1))
    null = [False] if scale == 1 else [True, True, False, False]
    assert calls == [(rows, null)]


def test_a_sampler_compiles_once():
    nets, traced = tiny.nets(), []
    params = tiny.random_params(nets, "i2t")["dit"]

    @jax.jit
    def sample(params, z_src):
        traced.append(z_src.shape)

        def velocity(z, t, null):
            return nets.dit.apply({"params": params}, z, t, null)

        return samplers.euler(samplers.guided(velocity, 2.0), z_src, 3)

    first, second = (sample(params, tiny.normal(RNG, 2, 6, 4)) for _ in range(2))
    assert traced == [(2, 6, 4)]
    assert tiny.relative_error(first, second) > 0.1
