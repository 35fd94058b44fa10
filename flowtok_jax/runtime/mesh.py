"""Arrays on a device mesh, of one process or of several.

A process holds the rows of a batch that its devices hold; what every process has in
full, such as weights read from a file, goes where a sharding says.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flowtok_jax.array_types import MESH_AXES, ROWS
from flowtok_jax.runtime.errors import UserError


def make_mesh(
    *,
    data: int,
    fsdp: int,
    tensor: int,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """Makes a mesh over these devices, else all; one of the three sizes may be -1, the
    rest.

    Raises:
        UserError: if the product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    count = len(devices)
    named = ", ".join(f"mesh.{a}={s}" for a, s in zip(MESH_AXES, sizes, strict=True))
    # -1 stands for what is left of the devices, as in a reshape.
    known = int(np.prod([s for s in sizes if s != -1]))
    if sizes.count(-1) == 1 and known > 0 and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    if min(sizes) < 1 or np.prod(sizes) != count:
        divisors = [d for d in range(1, count + 1) if count % d == 0]
        raise UserError(
            f"{named} does not cover {count} devices; expected sizes with product "
            f"{count}, each one of {divisors}, or one of them -1 for the rest: on this "
            "machine --config.mesh.fsdp=1 --config.mesh.tensor=1, on others as in "
            "docs/training.md"
        )
    types = (AxisType.Auto,) * 3
    return Mesh(_grid(sizes, devices), MESH_AXES, axis_types=types)


def _grid(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """Arranges the devices, neighbours near one another; `data` goes over slices."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    # Axes of TPU tori may be split where sizes do not match theirs.
    split = {"devices": devices, "allow_split_physical_axes": True}
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, **split)
    if sizes[0] % slices:  # a grid like any other, but for its speed
        return np.asarray(devices).reshape(sizes)
    # Slices of TPUs are joined by a slow network: only `data` may cross it.
    inner = (sizes[0] // slices, *sizes[1:])
    outer = (slices, 1, 1)
    return mesh_utils.create_hybrid_device_mesh(inner, outer, **split)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that are whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the rows of a global batch on this process's devices, ascending."""
    # Several devices hold the same rows where `tensor` is more than 1.
    place = NamedSharding(mesh, ROWS)
    slices = place.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[s] for s in slices]))


def from_local_rows(mesh: Mesh, batch_size: int, local: np.ndarray) -> jax.Array:
    """Makes a global array [steps, batch_size, ...] of what each process has of it.

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
    """Puts arrays that every process has in full, each at its place (or all at one)."""
    if isinstance(places, NamedSharding):
        places = jax.tree.map(lambda _: places, tree)

    def one(array, place):
        if place.is_fully_addressable:
            return jax.device_put(array, place)
        # device_put wants all devices of a sharding to be this process's own.
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, place, lambda i: array[i])

    return jax.tree.map(one, tree, places)


def in_mesh(mesh: Mesh, function: Callable) -> Callable:
    """Wraps a function in the mesh, so that networks pin their rows."""

    @functools.wraps(getattr(function, "func", function))  # for its name in profiles
    def wrapped(*args):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return wrapped
