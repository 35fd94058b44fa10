"""A batch, and the tasks' states and steps on tiny networks, for their tests."""

import functools

import jax.numpy as jnp
import numpy as np
import optax

from configs import default
from flowtok_jax.tasks import TASKS
from flowtok_jax.tasks.state import make_state
from flowtok_jax.tasks.step import train_step
from tests import tiny

OPTIONS = default.get_config().loss
ROWS = 8


def batch(seed=0):
    rng, sizes = np.random.default_rng(seed), tiny.config()
    side, tokens = sizes.tokenizer.image_size, sizes.latent.tokens
    image = rng.integers(0, 256, (ROWS, side, side, 3), np.uint8)
    ids = rng.integers(0, sizes.clip.vocab_size, (ROWS, tokens), np.int32)
    return {"image": jnp.asarray(image), "caption_ids": jnp.asarray(ids)}


@functools.cache
def setting(task, optimizer=None):
    """A state away from its initialisation, frozen parameters and a step."""
    nets = tiny.nets()
    optimizer = optimizer or optax.adamw(1e-3)
    params = tiny.random_params(nets, task)
    frozen = {
        role: tiny.random_params(nets, group, seed=i + 1)
        for i, (role, group) in enumerate(TASKS[task].frozen.items())
    }
    step = functools.partial(
        train_step,
        loss=functools.partial(TASKS[task].loss, nets=nets, **OPTIONS[task].to_dict()),
        optimizer=optimizer,
        ema_decay=0.9,
    )
    return make_state(params, optimizer, seed=0), frozen, step
