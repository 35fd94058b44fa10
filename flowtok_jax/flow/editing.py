"""Ways back along a flow and forth again, and points between two draws.

    z' = z + F(z, t, h)                       a step of a solver, flow/samplers.py  (1)
    z  = z' + F(z', t + h, -h)                the solver itself, run backwards      (2)
    z' = z + h v((z + z') / 2, t + h / 2)     the implicit midpoint rule, which     (3)
                                              is its own inverse by (2)
    y' = c y + (1 - c) z + h v(z, t)          a pair of states, whose steps have    (4)
    z' = z + h v(y', t + h)                   an inverse in closed form             (5)

(2) comes back to where it began up to the solver's error, for (3) up to what is left of
an equation solved by iteration, which settles for steps short beside the velocity's
slope; (4, 5) up to rounding, whatever the velocity, though the gap of the pair then has
a part of the picture. The steps lie at times "left": those of the release have no
inverse of their own.

Source of (4, 5): arXiv:2410.11648, of reversible solvers, with Euler's steps.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowtok_jax.array_types import Tokens
from flowtok_jax.flow.samplers import (
    WHOLE,
    Prepare,
    Span,
    Velocity,
    as_rows,
    euler,
    evaluation_times,
    heun,
    step_lengths,
)

State = tuple[Tokens, ...]  # one array, or the pair (y, z)
ITERATIONS = 6  # velocities of a step of (3)
PARALLEL = 1e-4  # sine below which two draws are interpolated along a line


def implicit_midpoint(
    velocity: Velocity,
    z_src: Tokens,
    num_steps: int,
    times: str = "left",
    prepare: Prepare = as_rows,
    span: Span = WHOLE,
) -> Tokens:
    """Integrates by `num_steps` steps of the implicit midpoint rule, in float32."""

    def step(carry, inputs):
        z, slope_before = carry
        at, h = inputs

        def again(_, slope):
            return velocity(z + 0.5 * h * slope, at)  # (3)

        # The step before has nearly the same slope.
        slope = jax.lax.fori_loop(0, ITERATIONS, again, slope_before)
        return (z + h * slope, slope), None

    h = step_lengths(num_steps, times, span)
    steps = prepare(evaluation_times(num_steps, times, span) + 0.5 * h), h
    z_src = z_src.astype(jnp.float32)
    return jax.lax.scan(step, (z_src, jnp.zeros_like(z_src)), steps)[0][0]


class Backwards(NamedTuple):
    """Equation (2): a sampler over a span, and over the span turned round."""

    sampler: Callable[..., Tokens]
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
        return (self.sampler(velocity, z, steps, "left", prepare, span),)


class Reversible(NamedTuple):
    """Equations (4) and (5), with c = exp(-coupling h).

    The gap of the pair shrinks by c a step forth, and grows back by 1 / c: over the
    whole path by the same factor, however many steps it has.
    """

    coupling: float
    states: int = 2

    def _steps(self, steps: int, prepare: Prepare, span: Span):
        """Returns the step's length, c, and what is prepared of both its ends."""
        start, end = span
        h = (end - start) / steps
        left = evaluation_times(steps, "left", span)
        return h, math.exp(-self.coupling * h), (prepare(left), prepare(left + h))

    def back(
        self, velocity: Velocity, state: State, steps: int, prepare: Prepare, span: Span
    ) -> State:
        """Goes from the end of the span to its start."""
        h, c, prepared = self._steps(steps, prepare, span)

        def step(pair, at):
            y_next, z_next = pair
            left, right = at
            z = z_next - h * velocity(y_next, right)  # (5)
            y = (y_next - (1 - c) * z - h * velocity(z, left)) / c  # (4)
            return (y, z), None

        # The steps of the way forth, from the last one to the first.
        return jax.lax.scan(step, state, prepared, reverse=True)[0]

    def forth(
        self, velocity: Velocity, state: State, steps: int, prepare: Prepare, span: Span
    ) -> State:
        """Goes from the start of the span to its end."""
        h, c, prepared = self._steps(steps, prepare, span)

        def step(pair, at):
            y, z = pair
            left, right = at
            y = c * y + (1 - c) * z + h * velocity(z, left)  # (4)
            return (y, z + h * velocity(y, right)), None  # (5)

        return jax.lax.scan(step, state, prepared)[0]


Route = Backwards | Reversible
ROUTES: dict[str, Route] = {
    "euler": Backwards(euler),
    "heun": Backwards(heun),
    "midpoint": Backwards(implicit_midpoint),
    "reversible": Reversible(coupling=0.4),
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
