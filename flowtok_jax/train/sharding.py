"""The device mesh, and where each array lies on it.

Axes: `data` copies the parameters and splits the batch; `fsdp` splits both; `tensor`
splits the parameters within a layer. Rules are data: the first pattern found in a
parameter's path names the mesh axes of its last dimensions.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flowtok_jax.errors import UserError
from flowtok_jax.shapes import MESH_AXES, ROWS

RULES = (
    (r"(qkv|fc1|w12|modulation|embed\w*)/kernel$", ("fsdp", "tensor")),
    (r"(proj|fc2|w3|out|pixels)/kernel$", ("tensor", "fsdp")),
    (r"embed/embedding$", ("tensor", "fsdp")),
)


def make_mesh(
    *,
    data: int,
    fsdp: int,
    tensor: int,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """A mesh over these devices, else all; one of the three may be -1, the rest.

    Raises:
        UserError: where the product is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes, count = [data, fsdp, tensor], len(devices)
    named = ", ".join(f"mesh.{a}={s}" for a, s in zip(MESH_AXES, sizes, strict=True))
    known = int(np.prod([s for s in sizes if s != -1]))
    if sizes.count(-1) == 1 and known > 0 and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    if min(sizes) < 1 or np.prod(sizes) != count:
        divisors = [d for d in range(1, count + 1) if count % d == 0]
        raise UserError(
            f"{named} does not cover {count} devices; wanted sizes with product "
            f"{count}, each one of {divisors}, or one of them -1 for the rest"
        )
    types = (AxisType.Auto,) * 3
    return Mesh(_grid(sizes, devices), MESH_AXES, axis_types=types)


def _grid(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices as a grid, neighbours near one another; `data` goes over slices."""
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    split = {"devices": devices, "allow_split_physical_axes": True}
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, **split)
    if sizes[0] % slices:  # a grid like any other, but for its speed
        return np.asarray(devices).reshape(sizes)
    inner = (sizes[0] // slices, *sizes[1:])
    outer = (slices, 1, 1)
    return mesh_utils.create_hybrid_device_mesh(inner, outer, **split)


def _spec(mesh: Mesh, path: str, shape: tuple[int, ...]) -> PartitionSpec:
    for pattern, axes in RULES:
        if re.search(pattern, path) and len(shape) >= len(axes):
            axes = (None,) * (len(shape) - len(axes)) + axes
            fits = zip(axes, shape, strict=True)
            # A dimension that does not divide stays whole.
            return PartitionSpec(
                *(a if a and n % mesh.shape[a] == 0 else None for a, n in fits)
            )
    return PartitionSpec()


def shardings(mesh: Mesh, tree: Any) -> Any:
    """A sharding for each array of a tree (or of its shapes), by its path."""

    def place(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, _spec(mesh, name, leaf.shape))

    return jax.tree_util.tree_map_with_path(place, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of batches stacked by step: [steps, rows, ...], rows split."""
    return NamedSharding(mesh, PartitionSpec(None, *ROWS))
