"""What a run carries from step to step."""

import hashlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flowtok_jax.shapes import Params


class TrainState(flax.struct.PyTreeNode):
    """Everything a step reads and writes; float32 but for `step` and `key`.

    `key` never changes: a step folds its number in. `ema` is the running average of
    `params` that samples are drawn with. Shapes and shardings take this form too, hence
    fields of any type.
    """

    step: Any
    key: Any
    params: Any
    ema: Any
    opt_state: Any


def make_state(
    params: Params, optimizer: optax.GradientTransformation, seed: int
) -> TrainState:
    """A state at step 0."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=jax.random.key(seed),
        params=params,
        ema=jax.tree.map(jnp.copy, params),  # a copy, or both could not be donated
        opt_state=optimizer.init(params),
    )


def params_sha256(params: Params) -> str:
    """A digest of all the names, shapes and bits of a tree of arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.asarray(jax.device_get(leaf))
        digest.update(f"{jax.tree_util.keystr(path)}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
