"""ODE solvers from t = 0 to 1 - SIGMA_MIN by `lax.scan`, and guidance.

    Euler     z <- z + h v(z, t)                                    (1)
    Heun      z <- z + h/2 (v(z, t) + v(z + h v(z, t), t + h))      (2)
    h         = (1 - SIGMA_MIN) / N, or an N-th of the span asked for; of times "early"
                the i-th step goes from (i / N)^2 to ((i + 1) / N)^2 of it
    guidance  v = v_null + scale (v_cond - v_null)                  (3)

`times` says where v is evaluated: "left" and "early" at the left end of each step;
"release" at N evenly spaced points from 0 to 1 - SIGMA_MIN, both ends included, as in
the release file `libs/flow_matching.py`, which made the published numbers. The order of
accuracy that the solver's name promises is that of "left" and "early". "early" takes
most of its steps where the span begins: there a flow decides among several ends of one
source, such as captions of one image (docs/captions.md).

A velocity takes the time as [1], or as `prepare` encodes it: `prepare` is called once
with the times of all steps, and each step gets its row of the result. Work that depends
on time alone is thus done once, before the scan.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flowtok_jax.array_types import Rows, Time, Tokens
from flowtok_jax.flow.paths import SIGMA_MIN
from flowtok_jax.runtime.errors import UserError

At = Any  # a time [1], or a row of what `prepare` returned
Velocity = Callable[[Tokens, At], Tokens]
NullableVelocity = Callable[[Tokens, At, Rows], Tokens]
Prepare = Callable[[Time], Any]

TIMES = ("release", "left", "early")
END = 1 - SIGMA_MIN
Span = tuple[float, float]  # of time; its end lies before its start on the way back
WHOLE: Span = (0.0, END)
# The solver of a distilled flow, flow/average_velocity.py; the others integrate a
# velocity.
AVERAGE = "average"


def evaluation_times(num_steps: int, times: str, span: Span = WHOLE) -> jax.Array:
    """Returns the N times at which the velocity is evaluated."""
    start, end = span
    if times not in TIMES:
        raise UserError(f"sampler times are {times!r}; expected one of {TIMES}")
    if times == "release":
        # N points have N - 1 gaps, so they are wider than the N steps of size h.
        return jnp.linspace(start, end, num_steps)
    if times == "early":
        return start + (end - start) * _squares(num_steps)[:-1]
    return start + jnp.arange(num_steps) * ((end - start) / num_steps)


def step_lengths(num_steps: int, times: str, span: Span = WHOLE) -> jax.Array:
    """Returns the lengths of the N steps, negative on the way back."""
    start, end = span
    if times == "early":
        return (end - start) * jnp.diff(_squares(num_steps))
    return jnp.full(num_steps, (end - start) / num_steps)


def _squares(num_steps: int) -> jax.Array:
    return jnp.square(jnp.arange(num_steps + 1) / num_steps)


def as_rows(t: Time) -> jax.Array:
    """Splits times into rows of one: the `prepare` of a velocity of plain times."""
    return t[:, None]  # [N 1]


def check_scale(solver: str, scale: float, own: float, takes_scale: bool) -> None:
    """Refuses another guidance than the one that a distilled flow has inside.

    Args:
        own: the scale that the weights come with.
        takes_scale: whether their distilled flow learned a range of them.

    Raises:
        UserError: naming the scale.
    """
    if solver == AVERAGE and not takes_scale and scale != own:
        raise UserError(
            f"scale is {scale}, and the distilled flow has its guidance inside; "
            "expected no scale, or solver=euler, the flow that it was distilled from"
        )


def guided(velocity: NullableVelocity, scale: float) -> Velocity:
    """Wraps a velocity with guidance; at scale 1 the null half is not computed."""
    if scale == 1:
        return lambda z, at: velocity(z, at, jnp.zeros(1, bool))

    def wrapped(z: Tokens, at: At) -> Tokens:
        # Null and conditional rows go through the network as one batch.
        null = jnp.repeat(jnp.array([True, False]), z.shape[0])  # [2b]
        both = velocity(jnp.concatenate([z, z]), at, null)  # [2b n c]
        v_null, v_cond = jnp.split(both, 2)
        return v_null + scale * (v_cond - v_null)  # (3)

    return wrapped


def euler(
    velocity: Velocity,
    z_src: Tokens,
    num_steps: int,
    times: str = "release",
    prepare: Prepare = as_rows,
    span: Span = WHOLE,
) -> Tokens:
    """Integrates by `num_steps` Euler steps; the state is float32."""

    def step(z, inputs):
        at, h = inputs
        return z + h * velocity(z, at), None  # (1)

    at = prepare(evaluation_times(num_steps, times, span))
    steps = at, step_lengths(num_steps, times, span)
    return jax.lax.scan(step, z_src.astype(jnp.float32), steps)[0]


def heun(
    velocity: Velocity,
    z_src: Tokens,
    num_steps: int,
    times: str = "release",
    prepare: Prepare = as_rows,
    span: Span = WHOLE,
) -> Tokens:
    """Integrates by `num_steps` Heun steps, two velocities each, in float32.

    With `times="release"` the second evaluation is held at the end of the path.
    """

    def step(z, inputs):
        left, right, h = inputs
        v_left = velocity(z, left)
        v_right = velocity(z + h * v_left, right)
        return z + 0.5 * h * (v_left + v_right), None  # (2)

    t = evaluation_times(num_steps, times, span)
    h = step_lengths(num_steps, times, span)
    steps = prepare(t), prepare(jnp.clip(t + h, 0.0, END)), h
    return jax.lax.scan(step, z_src.astype(jnp.float32), steps)[0]


SOLVERS = {"euler": euler, "heun": heun}
