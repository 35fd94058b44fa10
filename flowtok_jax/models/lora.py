"""LoRA: kernels of trained networks, each plus a product of two thin matrices.

    W' = W + alpha / rank * A B,   A [m r], B [r n]                                 (1)

(arXiv:2106.09685.) A and B learn, and W stays: B starts at 0, so that the first W' is W
bit for bit. Kernels of scanned blocks are stacks [k m n], with a pair for each block.

Adapters are the tree of the networks' parameters with the pair `lora_a`, `lora_b` in
place of an adapted kernel, and without all else. A network applies W' like any kernel:
no module knows of adapters, and whatever trains or samples a network does so with them.
"""

import difflib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import ArrayLike
from jaxtyping import Array

from flowtok_jax.array_types import Key, Params
from flowtok_jax.models.layers import torch_uniform
from flowtok_jax.runtime.errors import UserError

# Name of adapters of a group in a run's checkpoints: GROUP_lora.
ADAPTED = "_lora"
A = "lora_a"
B = "lora_b"
KERNEL = "/kernel"
SHOWN = 3  # paths in a message


class LoraOptions(NamedTuple):
    """The section `lora` of a config; see configs/default.py."""

    rank: int
    alpha: float
    pattern: str

    @property
    def scale(self) -> float:
        """Factor of the product in (1)."""
        return self.alpha / self.rank

    def check(self) -> "LoraOptions":
        """Validates the options and returns them unchanged.

        Raises:
            UserError: naming the key.
        """
        if self.rank < 1 or self.alpha <= 0:
            raise UserError(
                f"lora.rank is {self.rank} and lora.alpha {self.alpha}; expected a "
                "rank from 1 (0: no adapters) and an alpha above 0"
            )
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UserError(
                f"lora.pattern is {self.pattern!r}, no regular expression ({error}); "
                "expected one such as 'dit/blocks/'"
            ) from error
        return self


def find_kernels(params: Params, pattern: str) -> dict[str, Any]:
    """Finds the kernels of dense layers whose path has a match of the pattern.

    Raises:
        UserError: where there are none, naming those with a path like it.
    """
    # Convolutions [h w c d] have no A and B.
    known = {
        path: leaf
        for path, leaf in flatten_dict(params, sep="/").items()
        if path.endswith(KERNEL) and leaf.ndim in (2, 3)
    }
    found = {path: leaf for path, leaf in known.items() if re.search(pattern, path)}
    if not found:
        near = difflib.get_close_matches(pattern, known, SHOWN, cutoff=0.3)
        raise UserError(
            f"lora.pattern is {pattern!r}, which matches none of {len(known)} kernels; "
            f"expected part of a path such as {', '.join(near or list(known)[:SHOWN])}"
        )
    return found


def init_adapters(params: Params, options: LoraOptions, key: Key) -> Params:
    """Draws the adapters of the kernels that the options name, B being 0.

    Args:
        params: of the networks, or their shapes.

    Raises:
        UserError: for options that cannot be.
    """
    kernels = find_kernels(params, options.check().pattern)
    found = {}
    for path, k in zip(kernels, jax.random.split(key, len(kernels)), strict=True):
        *stack, m, n = kernels[path].shape
        # The release of LoRA draws A as PyTorch does a dense layer.
        found[f"{path}/{A}"] = torch_uniform(m)(k, (*stack, m, options.rank))
        found[f"{path}/{B}"] = jnp.zeros((*stack, options.rank, n))
    return unflatten_dict(found, sep="/")


def abstract_adapters(params: Params, options: LoraOptions) -> Params:
    """Returns shapes and dtypes of adapters, computing no values."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    init = lambda: init_adapters(shapes, options, jax.random.key(0))  # noqa: E731
    return jax.eval_shape(init)


@jax.jit
def _adapt(kernel: ArrayLike, a: ArrayLike, b: ArrayLike, scale: ArrayLike) -> Array:
    # Accelerators round the factors of a product, unless asked not to.
    return kernel + scale * jnp.matmul(a, b, precision="highest")


def merge(params: Params, adapters: Params, scale: float) -> Params:
    """Computes (1) of the adapted kernels; all other parameters are as they were.

    Args:
        scale: alpha / rank, times the weight of these adapters among several.
    """
    return _replace_kernels(params, adapters, lambda *pair: _adapt(*pair, scale))


def merge_on_host(params: Params, adapters: Params, scale: float) -> Params:
    """Computes `merge` by numpy, to the same bits on every machine.

    What is loaded has a digest, by which a picture's recipe knows it again.
    """

    def adapt(kernel: ArrayLike, a: ArrayLike, b: ArrayLike) -> np.ndarray:
        found = np.array(kernel)
        a = np.float32(scale) * np.asarray(a)
        b = np.asarray(b)
        # A product of matrices would add up in an order of the processor's own.
        for k in range(a.shape[-1]):
            found += a[..., k, None] * b[..., k, None, :]
        return found

    return _replace_kernels(params, adapters, adapt)


def _replace_kernels(params: Params, adapters: Params, adapt: Callable) -> Params:
    merged = flatten_dict(params, sep="/")
    pairs = flatten_dict(adapters, sep="/")
    for path in (name.removesuffix(f"/{A}") for name in pairs if name.endswith(A)):
        # Kernel by kernel: parameters on the host do not all go to the device.
        merged[path] = adapt(merged[path], pairs[f"{path}/{A}"], pairs[f"{path}/{B}"])
    return unflatten_dict(merged, sep="/")
