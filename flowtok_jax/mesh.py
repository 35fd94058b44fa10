"""Arrays on a device mesh, of one process or of several.

A process holds the rows of a batch that its devices hold; what every process has in
full, such as weights read from a file, goes where a sharding says.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flowtok_jax.shapes import ROWS


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, ascending."""
    place = NamedSharding(mesh, ROWS)
    slices = place.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[s] for s in slices]))


def from_local_rows(mesh: Mesh, batch_size: int, local: np.ndarray) -> jax.Array:
    """A global array [steps, batch_size, ...] of what each process has of it.

    Args:
        local: [steps, rows, ...], the rows of `local_rows`.
    """
    rows = local_rows(mesh, batch_size)

    def part(index):
        steps, wanted, *_ = index
        return local[steps, np.isin(rows, np.arange(batch_size)[wanted])]

    shape = (local.shape[0], batch_size, *local.shape[2:])
    place = NamedSharding(mesh, PartitionSpec(None, *ROWS))
    return jax.make_array_from_callback(shape, place, part)


def put(tree: Any, places: Any) -> Any:
    """Arrays that every process has in full, each at its place (or all at one)."""
    if isinstance(places, NamedSharding):
        places = jax.tree.map(lambda _: places, tree)

    def one(array, place):
        if place.is_fully_addressable:
            return jax.device_put(array, place)
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, place, lambda i: array[i])

    return jax.tree.map(one, tree, places)


def in_mesh(mesh: Mesh, function: Callable) -> Callable:
    """The function with the mesh around it, so that networks pin their rows."""

    @functools.wraps(getattr(function, "func", function))  # for its name in profiles
    def wrapped(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return wrapped
