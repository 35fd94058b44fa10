"""Ways back along flows that are known in closed form, and points between draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtok_jax.flow import editing
from flowtok_jax.flow.samplers import END, WHOLE, as_rows

RNG = np.random.default_rng(0)
Z = jnp.asarray(RNG.normal(size=(3, 4, 2)), jnp.float32)


def curved(z, t):
    """dz/dt = 2 z cos(3 t) + sin(z), which no solver integrates exactly."""
    return 2 * z * jnp.cos(3 * t)[:, None, None] + jnp.sin(z)


def loop(name, steps, span=WHOLE, velocity=curved):
    route = editing.ROUTES[name]
    way = velocity, (Z,) * route.states, steps, as_rows, span
    state = route.back(*way)
    again = route.forth(velocity, state, steps, as_rows, span)
    return state, np.asarray(editing.relative_l2(again[0], Z))


# Forth and back with step -h the leading errors of an even order cancel: Heun's are 3.
@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 3)])
def test_a_solver_backwards_closes_with_its_order(name, order):
    steps = (8, 16, 32)
    errors = [loop(name, n)[1].max() for n in steps]
    slope, _ = np.polyfit(-np.log(steps), np.log(errors), 1)
    assert slope == pytest.approx(order, abs=0.5)
    assert errors[0] > 1e-3


@pytest.mark.parametrize("name", ["reversible", "midpoint"])
@pytest.mark.parametrize("span", [WHOLE, (0.4, END)])
def test_an_inverse_closes_up_to_rounding(name, span):
    _, error = loop(name, 24, span)
    assert error.shape == (3,)
    assert error.max() < 1e-5


@pytest.mark.parametrize("name", editing.ROUTES)
def test_every_way_back_leads_to_the_same_source(name):
    """A slow, obvious version: many small Euler steps against the velocity."""
    z, steps = np.asarray(Z, np.float64), 4000
    for k in range(steps):
        t = END * (1 - k / steps)
        z = z - END / steps * (2 * z * np.cos(3 * t) + np.sin(z))
    state, _ = loop(name, 400)
    for found in state:
        np.testing.assert_allclose(found, z, rtol=0.05, atol=0.02)


def test_an_inverse_of_a_steep_flow_does_not_settle_but_the_pair_closes():
    def steep(z, t):
        return 30.0 * jnp.sin(z) * jnp.cos(9 * t)[:, None, None]

    errors = {name: loop(name, 10, velocity=steep)[1].max() for name in editing.ROUTES}
    assert errors["midpoint"] > 1e-2
    assert errors["euler"] > 1e-2
    assert errors["reversible"] < 1e-3


def test_both_ways_prepare_all_times_at_once_and_stay_on_the_path():
    seen = []

    def prepare(t):
        seen.append(np.asarray(t))
        return as_rows(t)

    for route in editing.ROUTES.values():
        state = (Z,) * route.states
        route.back(curved, state, 5, prepare, (0.5, END))
        route.forth(curved, state, 5, prepare, (0.5, END))
    assert {t.shape for t in seen} == {(5,)}
    assert min(t.min() for t in seen) >= 0.5 - 1e-6
    assert max(t.max() for t in seen) <= END + 1e-6


def test_an_arc_between_draws_keeps_their_length_and_a_line_does_not():
    first, last = RNG.normal(size=(2, 16, 8)).astype(np.float32)
    shares = np.linspace(0, 1, 5)
    arc = editing.spherical(first, last, shares)
    np.testing.assert_allclose(arc[0], first, atol=1e-5)
    np.testing.assert_allclose(arc[-1], last, atol=1e-5)
    lengths = np.sqrt(np.square(arc).mean((1, 2)))
    assert lengths.min() > 0.95 * min(lengths[0], lengths[-1])
    line = editing.linear(first, last, shares)
    assert np.sqrt(np.square(line[2]).mean()) < 0.8
    np.testing.assert_allclose(line[1], 0.75 * first + 0.25 * last, atol=1e-6)


def test_an_arc_between_equal_draws_is_that_draw():
    (draw,) = RNG.normal(size=(1, 3, 2)).astype(np.float32)
    for last in (draw, 2 * draw):
        between = editing.spherical(draw, last, np.array([0.0, 0.5, 1.0]))
        np.testing.assert_allclose(between[1], (draw + last) / 2, rtol=1e-5)
    nothing = np.zeros_like(draw)
    assert not editing.spherical(nothing, nothing, np.array([0.5])).any()


def test_relative_errors_are_a_row_each():
    got = editing.relative_l2(Z + jnp.asarray([0.0, 1.0, 2.0])[:, None, None], Z)
    wanted = [k * np.sqrt(8) / np.linalg.norm(Z[k]) for k in range(3)]
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_a_way_compiles_and_its_state_is_float32():
    for route in editing.ROUTES.values():
        half = (Z.astype(jnp.bfloat16).astype(jnp.float32),) * route.states

        @jax.jit
        def way(state, route=route):
            return route.back(curved, state, 3, as_rows, WHOLE)

        assert {x.dtype for x in way(half)} == {jnp.dtype("float32")}
