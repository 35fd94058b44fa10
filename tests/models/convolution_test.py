import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flowtok_jax.models.convolution import convolve


def both(kernel, dtype=jnp.float32):
    """The layer with our convolution and with Flax's own."""
    layer = {"features": 6, "kernel_size": kernel, "dtype": dtype}
    return nn.Conv(**layer, conv_general_dilated=convolve), nn.Conv(**layer)


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 5), (3, 5)])
def test_values_and_gradients_are_those_of_the_plain_convolution(kernel):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 7, 8, 4)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(3, 7, 8, 6)), jnp.float32)
    ours, plain = both(kernel)
    params = plain.init(jax.random.key(0), x)

    def loss(layer):
        return lambda params, x: (weights * jnp.sin(layer.apply(params, x))).sum()

    wanted = jax.value_and_grad(loss(plain), (0, 1))(params, x)
    found = jax.value_and_grad(loss(ours), (0, 1))(params, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        found,
        wanted,
    )


def test_inside_a_loop_every_convolution_has_the_form_of_the_fast_kernels():
    layer, plain = both((3, 3))
    x = jnp.ones((2, 8, 8, 4))
    params = layer.init(jax.random.key(0), x)

    def forms(layer):
        def step(params, _):
            grads, back = jax.grad(
                lambda p, x: jnp.square(layer.apply(p, x)).sum(), (0, 1)
            )(params, x)
            return jax.tree.map(lambda p, g: p - g + back.sum(), params, grads), None

        loop = jax.jit(lambda p: jax.lax.scan(step, p, length=2)[0])
        program = loop.lower(params).compile().as_text()
        return {
            line.split("dim_labels=")[1].split(",")[0]
            for line in program.splitlines()
            if "dim_labels=" in line
        }

    assert forms(layer) == {"b01f_01io->b01f"}
    # What it is for: without it the compiler leaves other forms.
    assert forms(plain) > {"b01f_01io->b01f"}


def test_the_gradients_keep_the_precision_of_the_forward_pass():
    layer, _ = both((3, 3))
    x = jnp.ones((1, 8, 8, 4))
    params = layer.init(jax.random.key(0), x)

    def loss(params):
        with jax.default_matmul_precision("highest"):
            return layer.apply(params, x).sum()

    text = str(jax.make_jaxpr(jax.grad(loss))(params))
    assert "conv_general_dilated" in text
    assert text.count("Precision.HIGHEST") >= 2 * text.count("conv_general_dilated[")
