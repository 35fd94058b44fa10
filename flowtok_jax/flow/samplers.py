"""ODE solvers from t = 0 to 1 - SIGMA_MIN by `lax.scan`, and guidance.

    Euler  z <- z + h v(z, t)                                       (1)
    Heun   z <- z + h/2 (v(z, t) + v(z + h v(z, t), t + h))         (2)
    h      = (1 - SIGMA_MIN) / N

`times` says where v is evaluated: "left" at the steps' left ends; "release" at N evenly
spaced points from 0 to 1 - SIGMA_MIN, the last one at the end, as in the release file
`libs/flow_matching.py`, whose published numbers were made so. Only "left" has the order
that the solver's name promises.

Guidance wraps a velocity: v_null + scale (v_cond - v_null)         (3)

A velocity takes the time as [1], or whatever `prepare` makes of the times: it is called
once with all of them before the steps, and each step gets its row. So what depends on
time alone, and not on the state, is not computed again at every step.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flowtok_jax.array_types import Rows, Time, Tokens
from flowtok_jax.flow.paths import SIGMA_MIN
from flowtok_jax.runtime.errors import UserError

# A time, or what `prepare` made of a time.
At = Any
Velocity = Callable[[Tokens, At], Tokens]
NullableVelocity = Callable[[Tokens, At, Rows], Tokens]
Prepare = Callable[[Time], Any]

TIMES = ("release", "left")
END = 1 - SIGMA_MIN


def evaluation_times(num_steps: int, times: str) -> jax.Array:
    """Returns the N times at which the velocity is evaluated."""
    if times not in TIMES:
        raise UserError(f"sampler times are {times!r}; expected one of {TIMES}")
    if times == "release":
        return jnp.linspace(0.0, END, num_steps)
    return jnp.arange(num_steps) * (END / num_steps)


def as_rows(t: Time) -> jax.Array:
    """Shapes times [N] as rows [N 1]: a velocity without `prepare` takes a [1]."""
    return t[:, None]


def guided(velocity: NullableVelocity, scale: float) -> Velocity:
    """Wraps a velocity in guidance (3)."""
    if scale == 1:  # v_null cancels: the conditional velocity alone, at half the cost
        return lambda z, at: velocity(z, at, jnp.zeros(1, bool))

    def wrapped(z: Tokens, at: At) -> Tokens:
        # One call on twice the rows, null ones first: [2b n c].
        null = jnp.repeat(jnp.array([True, False]), z.shape[0])
        both = velocity(jnp.concatenate([z, z]), at, null)
        v_null, v_cond = jnp.split(both, 2)
        return v_null + scale * (v_cond - v_null)

    return wrapped


def euler(
    velocity: Velocity,
    z_src: Tokens,
    num_steps: int,
    times: str = "release",
    prepare: Prepare = as_rows,
) -> Tokens:
    """Takes `num_steps` Euler steps (1); the state is float32."""
    h = END / num_steps

    def step(z, at):
        return z + h * velocity(z, at), None

    steps = prepare(evaluation_times(num_steps, times))
    return jax.lax.scan(step, z_src.astype(jnp.float32), steps)[0]


def heun(
    velocity: Velocity,
    z_src: Tokens,
    num_steps: int,
    times: str = "release",
    prepare: Prepare = as_rows,
) -> Tokens:
    """Takes `num_steps` Heun steps (2), two velocities each; the state is float32.

    With `times="release"` the second evaluation is held at the end of the path.
    """
    h = END / num_steps

    def step(z, at):
        left, right = at
        v_left = velocity(z, left)
        v_right = velocity(z + h * v_left, right)
        return z + 0.5 * h * (v_left + v_right), None

    t = evaluation_times(num_steps, times)
    # Under "release" the last left end is END, where t + h would lie beyond the path.
    steps = prepare(t), prepare(jnp.minimum(t + h, END))
    return jax.lax.scan(step, z_src.astype(jnp.float32), steps)[0]


SOLVERS = {"euler": euler, "heun": heun}
