"""Shardings: the place of each array on the device mesh.

Axes: `data` copies the parameters and splits the batch; `fsdp` splits both; `tensor`
splits the parameters within a layer. Rules are data: the first pattern found in a
parameter's path names the mesh axes of its last dimensions.
"""

import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flowtok_jax.array_types import ROWS
from flowtok_jax.models.lora import A, B

KERNELS = (
    (r"(qkv|fc1|w12|modulation|embed\w*)/kernel$", ("fsdp", "tensor")),
    (r"(proj|fc2|w3|out|pixels)/kernel$", ("tensor", "fsdp")),
)
RULES = (
    *KERNELS,
    # Adapters of a kernel lie as its rows and as its columns do, so that their product
    # is where the kernel is.
    *((p.replace("$", f"/{A}$"), (rows, None)) for p, (rows, _) in KERNELS),
    *((p.replace("$", f"/{B}$"), (None, columns)) for p, (_, columns) in KERNELS),
    (r"embed/embedding$", ("tensor", "fsdp")),
)


def _spec(mesh: Mesh, path: str, shape: tuple[int, ...]) -> PartitionSpec:
    for pattern, axes in RULES:
        if re.search(pattern, path) and len(shape) >= len(axes):
            # Scanned blocks have their layers' number in front, which is not split.
            axes = (None,) * (len(shape) - len(axes)) + axes
            fits = zip(axes, shape, strict=True)
            # A dimension that does not divide stays whole.
            return PartitionSpec(
                *(a if a and n % mesh.shape[a] == 0 else None for a, n in fits)
            )
    return PartitionSpec()


def shardings(mesh: Mesh, tree: Any) -> Any:
    """Chooses a sharding for each array of a tree, or of its shapes, by its path."""

    def place(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, _spec(mesh, name, leaf.shape))

    return jax.tree_util.tree_map_with_path(place, tree)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the rows of batches stacked by step: [steps, rows, ...]."""
    return NamedSharding(mesh, PartitionSpec(None, *ROWS))
