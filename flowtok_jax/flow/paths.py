"""The straight path between source and target tokens, and its null rows.

    z_t      = (1 - (1 - SIGMA_MIN) t) z_src + t z_tgt         (1)
    velocity = d z_t / dt = z_tgt - (1 - SIGMA_MIN) z_src      (2)
    t        ~ sigmoid(N(location, 1))                         (3)

(FlowTok section 3.3; release file `libs/flow_matching.py`; null rows: CrossFlow's
guidance without a condition input.)
"""

import jax
import jax.numpy as jnp

from flowtok_jax.array_types import Key, Rows, Time, Tokens

SIGMA_MIN = 1e-5


def sample_time(key: Key, batch: int, location: float = 0.0) -> Time:
    """Draws one logit-normal time in (0, 1) for each row.

    The paper's location is 0; one below 0 moves the times towards the source.
    """
    return jax.nn.sigmoid(location + jax.random.normal(key, (batch,)))  # (3)


def straight_path(z_src: Tokens, z_tgt: Tokens, t: Time) -> tuple[Tokens, Tokens]:
    """Returns the point z_t at time t, and the velocity there."""
    t = t[:, None, None]  # [b 1 1]
    z_t = (1 - (1 - SIGMA_MIN) * t) * z_src + t * z_tgt  # (1)
    return z_t, z_tgt - (1 - SIGMA_MIN) * z_src  # (2)


def null_row_targets(z_tgt: Tokens, chosen: Rows) -> tuple[Tokens, Rows]:
    """Gives each chosen row the next chosen row's target, the last one the first's.

    Returns:
        The targets, and a mask of the null rows: all False where fewer than two rows
        were chosen, because a null row must not keep its own target.
    """
    # Shapes stay fixed under jit, so the permutation is written without boolean masks
    # as indices.
    count = chosen.sum()
    order = jnp.argsort(~chosen, stable=True)  # chosen rows first, in order
    rank = jnp.cumsum(chosen) - 1
    following = order[(rank + 1) % jnp.maximum(count, 1)]
    null = chosen & (count > 1)
    source_row = jnp.where(null, following, jnp.arange(chosen.shape[0]))
    return z_tgt[source_row], null
