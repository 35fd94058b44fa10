"""Ways back along a flow and forth again, and points between two draws.

    z' = z + F(z, t, h)                       a step of a solver, flow/samplers.py  (1)
    z  = z' + F(z', t + h, -h)                the solver itself, run backwards      (2)
    z  = z' - F(z, t, h)                      the inverse of (1), by iteration      (3)
    y' = c y + (1 - c) z + F(z, t, h)         a pair of states, whose steps have    (4)
    z' = z - F(y', t + h, -h)                 an inverse in closed form             (5)
    z' = z + h v((z + z') / 2, t + h / 2)     the implicit midpoint rule, which     (6)
                                              is its own inverse, by iteration

(2) comes back to where it began up to the solver's error; (3) and (6) where iterations
settle, which takes a step h short beside the velocity's slope, for (6) twice as long a
one; (4, 5) up to rounding, whatever the velocity, though the gap of the pair then has a
part of the picture. The steps lie at times "left": those of the release have no inverse
of their own.

Source of (4, 5): arXiv:2410.11648, of reversible solvers with a base method F.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowtok_jax.array_types import Tokens
from flowtok_jax.flow.samplers import (
    OneStep,
    Prepare,
    Span,
    Velocity,
    euler,
    evaluation_times,
    heun,
)

State = tuple[Tokens, ...]  # one array, or the pair (y, z)
PARALLEL = 1e-4  # sine below which two draws are interpolated along a line


class Backwards(NamedTuple):
    """Equation (2): `solver` both ways."""

    solver: OneStep
    states: int = 1

    def back(
        self, velocity: Velocity, state: State, steps: int, prepare: Prepare, span: Span
    ) -> State:
        """Goes from the end of the span to its start."""
        start, end = span
        return self.forth(velocity, state, steps, prepare, (end, start))

    def forth(
        self, velocity: Velocity, state: State, steps: int, prepare: Prepare, span: Span
    ) -> State:
        """Goes from the start of the span to its end."""
        (z,) = state
        return (self.solver(velocity, z, steps, "left", prepare, span),)


class Implicit(NamedTuple):
    """Equation (3) on the way back: `iterations` calls of F a step."""

    solver: OneStep
    iterations: int
    states: int = 1

    def back(
        self, velocity: Velocity, state: State, steps: int, prepare: Prepare, span: Span
    ) -> State:
        """Goes from the end of the span to its start."""
        start, end = span
        h = (end - start) / steps

        def step(z_next, at):
            def again(_, z):
                return z_next - self.solver.increment(velocity, z, at, h)  # (3)

            return jax.lax.fori_loop(0, self.iterations, again, z_next), None

        # Prepared as on the way forth: (3) asks for the velocity at the same times.
        starts = evaluation_times(steps, "left", span)
        prepared = self.solver.prepare_steps(starts, h, prepare)
        return (jax.lax.scan(step, *state, prepared, reverse=True)[0],)

    def forth(
        self, velocity: Velocity, state: State, steps: int, prepare: Prepare, span: Span
    ) -> State:
        """Goes from the start of the span to its end."""
        return Backwards(self.solver).forth(velocity, state, steps, prepare, span)


class Reversible(NamedTuple):
    """Equations (4) and (5), with c = exp(-coupling |h|).

    The gap of the pair shrinks by c a step forth, and grows back by 1 / c: over the
    whole path by the same factor, however many steps it has.
    """

    solver: OneStep
    coupling: float
    states: int = 2

    def _prepared(self, steps: int, prepare: Prepare, span: Span):
        start, end = span
        h = (end - start) / steps
        starts = evaluation_times(steps, "left", span)
        left = self.solver.prepare_steps(starts, h, prepare)
        right = self.solver.prepare_steps(starts + h, -h, prepare)
        return h, math.exp(-self.coupling * abs(h)), (left, right)

    def back(
        self, velocity: Velocity, state: State, steps: int, prepare: Prepare, span: Span
    ) -> State:
        """Goes from the end of the span to its start."""
        h, c, prepared = self._prepared(steps, prepare, span)
        increment = self.solver.increment

        def step(pair, at):
            y_next, z_next = pair
            left, right = at
            z = z_next + increment(velocity, y_next, right, -h)  # (5)
            y = (y_next - (1 - c) * z - increment(velocity, z, left, h)) / c  # (4)
            return (y, z), None

        # The steps of the way forth, from the last one to the first.
        return jax.lax.scan(step, state, prepared, reverse=True)[0]

    def forth(
        self, velocity: Velocity, state: State, steps: int, prepare: Prepare, span: Span
    ) -> State:
        """Goes from the start of the span to its end."""
        h, c, prepared = self._prepared(steps, prepare, span)
        increment = self.solver.increment

        def step(pair, at):
            y, z = pair
            left, right = at
            y = c * y + (1 - c) * z + increment(velocity, z, left, h)  # (4)
            return (y, z - increment(velocity, y, right, -h)), None  # (5)

        return jax.lax.scan(step, state, prepared)[0]


class Symmetric(NamedTuple):
    """Equation (6) both ways, solved by `iterations` calls of v a step."""

    iterations: int
    states: int = 1

    def back(
        self, velocity: Velocity, state: State, steps: int, prepare: Prepare, span: Span
    ) -> State:
        """Goes from the end of the span to its start."""
        start, end = span
        return self.forth(velocity, state, steps, prepare, (end, start))

    def forth(
        self, velocity: Velocity, state: State, steps: int, prepare: Prepare, span: Span
    ) -> State:
        """Goes from the start of the span to its end."""
        start, end = span
        h = (end - start) / steps

        def step(carry, at):
            z, before = carry

            def again(_, slope):
                return velocity(z + 0.5 * h * slope, at)  # (6)

            # The step before has nearly the same slope.
            slope = jax.lax.fori_loop(0, self.iterations, again, before)
            return (z + h * slope, slope), None

        middles = evaluation_times(steps, "left", span) + 0.5 * h
        (z,) = state
        return (jax.lax.scan(step, (z, jnp.zeros_like(z)), prepare(middles))[0][0],)


Route = Backwards | Implicit | Reversible | Symmetric
ROUTES: dict[str, Route] = {
    "euler": Backwards(euler),
    "heun": Backwards(heun),
    "implicit": Implicit(euler, iterations=8),
    "midpoint": Symmetric(iterations=6),
    "reversible": Reversible(euler, coupling=0.4),
}


def relative_l2(
    got: Float[np.ndarray | Array, "b *rest"],
    expected: Float[np.ndarray | Array, "b *rest"],
) -> Float[Array, " b"]:
    """Returns each row's L2 norm of the difference over that of what is expected."""
    axes = tuple(range(1, expected.ndim))  # all but the rows
    norms = (jnp.sqrt(jnp.square(x).sum(axes)) for x in (got - expected, expected))
    return jnp.divide(*norms)


def linear(
    first: Float[np.ndarray, "n c"],
    last: Float[np.ndarray, "n c"],
    shares: Float[np.ndarray, " k"],
) -> Float[np.ndarray, "k n c"]:
    """Returns points on the line between two arrays; shares go from 0 to 1."""
    along = np.asarray(shares, np.float32)[:, None, None]  # [k 1 1]
    return (1 - along) * first + along * last


def spherical(
    first: Float[np.ndarray, "n c"],
    last: Float[np.ndarray, "n c"],
    shares: Float[np.ndarray, " k"],
) -> Float[np.ndarray, "k n c"]:
    """Returns points on the arc between two draws of noise.

    On the line between them they would have less noise than draws have.
    """
    lengths = np.linalg.norm(first) * np.linalg.norm(last)
    angle = np.arccos(np.clip((first * last).sum() / max(lengths, 1e-12), -1, 1))
    if np.sin(angle) < PARALLEL:  # no arc is shorter than others
        return linear(first, last, shares)
    along = np.asarray(shares, np.float32)[:, None, None]  # [k 1 1]
    ends = np.sin((1 - along) * angle) * first + np.sin(along * angle) * last
    return (ends / np.sin(angle)).astype(np.float32)
