"""The straight path between source and target tokens, and its null rows.

    z_t      = (1 - (1 - SIGMA_MIN) t) z_src + t z_tgt              (1)
    velocity = d z_t / dt = z_tgt - (1 - SIGMA_MIN) z_src           (2)
    t        ~ sigmoid(N(location, 1))                              (3)

(FlowTok section 3.3; release file `libs/flow_matching.py`; null rows: CrossFlow's
guidance without a condition input.)
"""

import jax
import jax.numpy as jnp

from flowtok_jax.array_types import Key, Rows, Time, Tokens

SIGMA_MIN = 1e-5


def sample_time(key: Key, batch: int, location: float = 0.0) -> Time:
    """Draws one time a row, in (0, 1), from the logit-normal distribution (3).

    A location below 0 moves the times towards the source; the paper's is 0.
    """
    return jax.nn.sigmoid(location + jax.random.normal(key, (batch,)))


def straight_path(z_src: Tokens, z_tgt: Tokens, t: Time) -> tuple[Tokens, Tokens]:
    """Computes the point z_t at time t (1), and the velocity there (2)."""
    t = t[:, None, None]  # [b 1 1], against tokens [b n c]
    z_t = (1 - (1 - SIGMA_MIN) * t) * z_src + t * z_tgt
    return z_t, z_tgt - (1 - SIGMA_MIN) * z_src


def null_row_targets(z_tgt: Tokens, chosen: Rows) -> tuple[Tokens, Rows]:
    """Gives each chosen row the next chosen row's target, the last one the first's.

    Returns:
        The targets, and which rows are null: none where fewer than two were chosen,
        because a row must not keep its own target under the null indicator.
    """
    count = chosen.sum()
    # Shapes may not depend on values under jit: chosen rows are not picked out but
    # sorted to the front, and each finds its successor by its rank among them.
    order = jnp.argsort(~chosen, stable=True)
    rank = jnp.cumsum(chosen) - 1
    following = order[(rank + 1) % jnp.maximum(count, 1)]
    null = chosen & (count > 1)
    source_row = jnp.where(null, following, jnp.arange(chosen.shape[0]))
    return z_tgt[source_row], null
