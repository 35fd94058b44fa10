"""What a run carries from step to step."""

import hashlib

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from flowtok_jax.shapes import Key, Params


class TrainState(flax.struct.PyTreeNode):
    """Everything a step reads and writes; float32 but for `step` and `key`.

    `key` never changes: a step folds its number in. `ema` is the running average of
    `params` that samples are drawn with.
    """

    step: Int[Array, ""]
    key: Key
    params: Params
    ema: Params
    opt_state: optax.OptState


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
