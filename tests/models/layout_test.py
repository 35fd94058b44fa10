"""The layout for CPUs: the same numbers and gradients, for every network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtok_jax.models import layers
from flowtok_jax.runtime.errors import UserError
from tests import tiny
from tests.models.remat_test import GROUP, ROWS, loss_of, params_of

NETWORKS = [*GROUP, "clip", "align_head"]


def value_of(name: str, layout: str, dtype: str = "float32"):
    """A scalar of a network as a function of its parameters, and these."""
    if name in GROUP:
        return loss_of(name, "none", dtype, layout), params_of(name)
    net = getattr(tiny.nets(compute=dict(dtype=dtype, layout=layout)), name)
    batch = tiny.batch(ROWS)
    inputs = batch["caption_ids" if name == "clip" else "text_feats"]
    params = jax.eval_shape(net.init, jax.random.key(0), inputs)["params"]

    def value(params):
        out = net.apply({"params": params}, inputs)
        return sum(jnp.mean(jnp.square(x)) for x in jax.tree.leaves(out))

    return value, tiny.random_like(params)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_layout_changes_neither_value_nor_gradient(name):
    (wanted, gradients), (got, got_gradients) = (
        jax.jit(jax.value_and_grad(value))(params)
        for value, params in (value_of(name, layout) for layout in layers.LAYOUTS)
    )
    assert float(got) == pytest.approx(float(wanted), rel=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        got_gradients,
        gradients,
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_stays_close(name):
    wanted, params = value_of(name, "batch")
    got, _ = value_of(name, "rows", "bfloat16")
    assert float(got(params)) == pytest.approx(float(wanted(params)), rel=0.05)


@pytest.mark.parametrize("layout", layers.LAYOUTS)
def test_rows_are_flat_and_blocks_unrolled(layout):
    value, params = value_of("dit", layout)
    program = jax.jit(value).lower(params).as_text()
    products = [x for x in program.splitlines() if "stablehlo.dot_general" in x]
    # tensor<4x6x32xf32> has three axes; of rows only attention's matrices have.
    axes = {x.rsplit("tensor<", 1)[1].count("x") for x in products}
    assert axes == ({2, 3} if layout == "rows" else {2, 3, 5})
    assert ("stablehlo.while" in program) == (layout == "batch")


def test_an_unknown_layout_is_refused():
    with pytest.raises(
        UserError, match=r"compute.layout is 'flat'; expected one of ba"
    ):
        layers.dot_general("flat")
