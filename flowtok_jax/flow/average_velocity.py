"""Average velocities: a flow in few steps, each of one call with guidance inside.

    v_s = v_null + s (v_cond - v_null), the guided velocity                         (1)
    u   = 1 / (r - t) * integral of v_s from t to r, its average                    (2)
    u   = v_s + (r - t) du/dt, as (2) has it differentiated, where                  (3)
          du/dt = (d_z u) v_s + d_t u
    z_r = z_t + (r - t) u(z_t, t, r), a step however long                           (4)

A network learns u from (2) where paths are at hand: the difference of their ends. Or
from (3) at single points, with the right side, in which u is its own, held still. Time
runs from the source, 0, to the target, 1, so that the sign of (3) is the opposite of
the papers'.

Source: arXiv:2505.13447 (MeanFlow); arXiv:2510.24474, which starts it from a teacher.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flowtok_jax.array_types import Key, Time, Tokens
from flowtok_jax.flow.samplers import Prepare, Velocity

# u(z, t, r): tokens and times, one a row.
AverageVelocity = Callable[[Tokens, Time, Time], Tokens]

JVP = "jvp"
DIFFERENCE = "difference"
METHODS = (JVP, DIFFERENCE)
# Means of the logits of the earlier and of the later time of a row.
LOCATIONS = (-0.4, 1.2)


def sample_times(
    key: Key, batch: int, locations: tuple[float, float] = LOCATIONS
) -> tuple[Time, Time]:
    """Draws two logit-normal times a row, and returns the earlier and the later."""
    logits = jax.random.normal(key, (2, batch)) + jnp.asarray(locations)[:, None]
    times = jax.nn.sigmoid(logits)
    return times.min(0), times.max(0)


def sample_spans(
    key: Key, shape: tuple[int, int], num_steps: int
) -> tuple[Int[Array, "b p"], Int[Array, "b p"]]:
    """Draws steps on paths of `num_steps` short ones, of any length alike, anywhere.

    Returns:
        The numbers of the points where the drawn steps begin, and where they end.
    """
    of_length, of_place = jax.random.split(key)
    length = jax.random.randint(of_length, shape, 1, num_steps + 1)
    first = jax.random.randint(of_place, shape, 0, num_steps - length + 1)
    return first, first + length


def average_target(
    u: AverageVelocity,
    z_t: Tokens,
    t: Time,
    r: Time,
    v: Tokens,
    method: str = JVP,
    width: float = 0.005,
) -> tuple[Tokens, Tokens]:
    """Computes u(z_t, t, r) and the right side of (3), which carries no gradient.

    Args:
        v: the guided velocity at (z_t, t).
        method: du/dt along the flow, exactly by `jvp`, or by a `difference` to the
            right, for networks without a derivative in forward mode.
        width: time of that difference, where r - t is no shorter.
    """
    if method == JVP:
        along = v, jnp.ones_like(t)
        predicted, change = jax.jvp(lambda z, t: u(z, t, r), (z_t, t), along)
    else:
        predicted = u(z_t, t, r)
        h = jnp.clip(r - t, 1e-4, width)
        later = u(z_t + h[:, None, None] * v, t + h, jnp.maximum(r, t + h))
        change = (later - predicted) / h[:, None, None]
    target = v + (r - t)[:, None, None] * change
    return predicted, jax.lax.stop_gradient(target)


def adaptive_loss(
    predicted: Tokens, target: Tokens, floor: float
) -> tuple[Float[Array, " b"], Float[Array, " b"]]:
    """Computes the squared error of each row, and the same over its own size.

    The second one weighs rows alike, whatever their error; a row whose error, summed
    over tokens and channels, is far below `floor` counts less.

    Returns:
        Both of each row; gradients are meant for the second one.
    """
    error = jnp.square(predicted - target).sum((1, 2))
    return error, error / jax.lax.stop_gradient(error + floor)


def teacher_options(losses: Mapping[str, Any], student: str) -> dict[str, Any]:
    """Returns options of sampling by which the teacher goes the path of method `path`.

    Args:
        losses: config.loss, which older weights may have without the student's section.
        student: its group, t2i_distilled or i2t_distilled.
    """
    loss = losses.get(student, {})
    steps = loss.get("trajectory_steps") or 20  # 0: it learned from the data's path
    found = {"solver": "euler", "times": "left", "num_steps": steps}
    if "scale" in loss:
        found["scale"] = loss["scale"]
    return found


def average_steps(
    velocity: Velocity, z_src: Tokens, num_steps: int, prepare: Prepare
) -> Tokens:
    """Goes from 0 to 1 by `num_steps` steps (4) of one call each; state in float32.

    Args:
        velocity: u at an entry of what `prepare` returned.
        prepare: called with the N + 1 ends of the steps, returns N entries.
    """
    grid = jnp.linspace(0.0, 1.0, num_steps + 1)

    def step(z, at):
        return z + velocity(z, at) / num_steps, None  # (4)

    return jax.lax.scan(step, z_src.astype(jnp.float32), prepare(grid))[0]
