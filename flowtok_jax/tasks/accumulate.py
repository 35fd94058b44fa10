"""Gradient accumulation inside a loss: some rows after the others through a network.

    accumulate(f, parts)(params, inputs, rest, key)                                 (1)
        = mean over the parts of f(params, part of inputs, part of rest, key of part)

Value and gradients are those of the whole batch; activations take the memory of a
part. What couples the rows of a batch (alignment, null rows) stays outside, on all of
them. The gradients are computed with the value, so that nothing is computed twice.
Dropout, where a network has it, draws other masks for each part than for the whole.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from flowtok_jax.array_types import Key, Params

# Differentiated in params and inputs; outputs are rows that carry no gradient.
RowsLoss = Callable[[Params, Any, Any, Key], tuple[Float[Array, ""], Any]]


def _split(parts: int, x: ArrayLike) -> Array:
    # [rows ...] -> [parts rows/parts ...]
    x = jnp.asarray(x)
    return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)


def _join(x: Array) -> Array:
    """Inverts `_split`."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def by_parts(function: Callable, parts: int) -> Callable:
    """Makes a function of (params, *rows) see equal parts of the rows one by one.

    The backward pass computes each part again, so that activations take the memory of a
    part. Whatever couples rows may follow: gradients are those of the whole.
    """
    if parts == 1:
        return function

    def apply(params, *rows):
        run = jax.checkpoint(lambda part: function(params, *part))
        split = jax.tree.map(functools.partial(_split, parts), rows)
        return jax.tree.map(_join, jax.lax.map(run, split))

    return apply


def accumulate(function: RowsLoss, parts: int) -> RowsLoss:
    """Makes (1) of a function: equal parts of the rows, one after the other.

    Args:
        function: its value has to be a mean over rows; its inputs, rest and outputs are
            trees of arrays with rows first.
        parts: number of parts; part j has the rows j, j + parts, ..., so that each part
            has rows of every device.
    """
    if parts == 1:
        return function

    split = functools.partial(_split, parts)

    def forward(params, inputs, rest, key):
        gradient = jax.value_and_grad(function, argnums=(0, 1), has_aux=True)

        def step(total, part):
            index, inputs, rest = part
            part_key = jax.random.fold_in(key, index)
            (value, outputs), grads = gradient(params, inputs, rest, part_key)
            # Parameters sum over the parts; each row's gradient stays its own.
            total = jax.tree.map(lambda a, b: a + b / parts, total, grads[0])
            rows = jax.tree.map(lambda x: x / parts, grads[1])
            return total, (value, outputs, rows)

        zeros = jax.tree.map(jnp.zeros_like, params)
        xs = jnp.arange(parts), *jax.tree.map(split, (inputs, rest))
        grads, (values, *stacked) = jax.lax.scan(step, zeros, xs)
        outputs, rows = jax.tree.map(_join, tuple(stacked))
        return (values.mean(), outputs), (grads, rows)

    # The forward pass has computed the gradients already: backward only scales them.
    def backward(grads, cotangent):
        scale = cotangent[0]
        return *jax.tree.map(lambda x: scale * x, grads), None, None

    @jax.custom_vjp
    def accumulated(*arguments):
        return forward(*arguments)[0]

    accumulated.defvjp(forward, backward)
    return accumulated
