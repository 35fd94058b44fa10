"""Digests of trees of arrays, wherever their parts lie."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array, UInt32

from flowtok_jax.array_types import Params


@jax.jit
def checksums(tree: Any) -> UInt32[Array, " leaves"]:
    """Sums hashed bits and places of each array, the same wherever its parts lie.

    Integers, so that no order of summing changes it; computed where the arrays are.
    """

    def checksum(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        width = {2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(leaf, width).astype(jnp.uint32)
        place = jnp.uint32(0)
        for axis, size in enumerate(leaf.shape):
            place = place * jnp.uint32(size)
            place = place + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        mixed = bits ^ (place * jnp.uint32(0x9E3779B9))
        for factor in (0x85EBCA6B, 0xC2B2AE35):  # as MurmurHash3 ends
            mixed = (mixed ^ (mixed >> 15)) * jnp.uint32(factor)
        return (mixed ^ (mixed >> 16)).sum(dtype=jnp.uint32)

    return jnp.stack([checksum(leaf) for leaf in jax.tree.leaves(tree)])


def params_sha256(params: Params) -> str:
    """Digests all the names, shapes and bits of a tree of arrays.

    Every process has to call it: arrays that lie on several are gathered, one by one.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
