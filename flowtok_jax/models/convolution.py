"""Convolutions whose gradients are fast on a CPU inside loops and branches too.

XLA's CPU back end hands a convolution to its fast kernels only with the axes [b h w c]
and [h w c d]. It brings others into that form in a program's outermost computation, but
not in the body of a `scan` or of a `cond`, where they are plain loops: the gradients of
a 3 x 3 convolution of 32 channels then take 35 and 75 times as long. Here the gradients
are written in that form.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowtok_jax.models.layers import Maps

Kernel = Float[Array, "h w c d"]
AXES = ("NHWC", "HWIO", "NHWC")


def convolve(
    x: Maps, kernel: Kernel, strides: tuple[int, ...], padding: str, **options
) -> Maps:
    """Convolves as `jax.lax.conv_general_dilated` does, for `flax.linen.Conv`.

    Args:
        kernel: with odd sides.
        strides: ones only.
        padding: SAME only.
    """
    assert set(strides) == {1}, strides
    assert padding == "SAME", padding
    # The backward pass is traced when a surrounding default is gone.
    precision = options["precision"] or jax.config.jax_default_matmul_precision
    return _convolve(x, kernel, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: Maps, kernel: Kernel, precision: str | None) -> Maps:
    return _plain(x, kernel, precision)


def _plain(x: Maps, kernel: Kernel, precision: str | None, padding="SAME") -> Maps:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=AXES, precision=precision
    )


def _forward(x, kernel, precision):
    return _plain(x, kernel, precision), (x, kernel)


def _backward(precision, kept, grad):
    def on_cpu(x, kernel, grad):
        turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)  # [h w c d] -> [h w d c]
        sides = ((side // 2, side // 2) for side in kernel.shape[:2])
        # Channels are the rows, rows the channels, and the gradient is the kernel.
        rows = x.transpose(3, 1, 2, 0)  # [b h w c] -> [c h w b]
        found = _plain(rows, grad.transpose(1, 2, 0, 3), precision, tuple(sides))
        return _plain(grad, turned, precision), found.transpose(1, 2, 0, 3)

    def elsewhere(x, kernel, grad):
        plain = functools.partial(_plain, precision=precision)
        return jax.vjp(plain, x, kernel)[1](grad)

    # Of the branches only that of the program's platform is compiled.
    return jax.lax.platform_dependent(*kept, grad, cpu=on_cpu, default=elsewhere)


_convolve.defvjp(_forward, _backward)
