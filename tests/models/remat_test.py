"""Remat policies: the same gradients, and exactly what they say is kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtok_jax.models.layers import REMAT, pin_rows
from flowtok_jax.runtime.mesh import in_mesh, make_mesh
from tests import tiny

POLICIES = [name for name in REMAT if name != "none"]
GROUP = {
    "dit": "t2i",
    "projector": "t2i",
    "text_decoder": "text_tokenizer",
    "tokenizer": "tokenizer",
}
ROWS, TOKENS, WIDTH, DEPTH = 4, 6, 32, 2
DROPOUT = dict(deterministic=False, rngs={"dropout": jax.random.key(3)})


def loss_of(name: str, remat: str, dtype: str = "float32", layout: str = "batch"):
    """A scalar of a tiny network, as a function of its parameters."""
    nets = tiny.nets(compute=dict(dtype=dtype, remat=remat, layout=layout))
    data, rng = tiny.batch(ROWS), np.random.default_rng(1)
    tokens = tiny.normal(rng, ROWS, TOKENS, 4)
    inputs = {
        "dit": (tokens, jnp.linspace(0, 1, ROWS), jnp.arange(ROWS) % 2 == 0),
        "projector": (data["text_feats"],),
        "text_decoder": (tokens,),
        "tokenizer": (data["image"], data["text_feats"]),
    }[name]
    options = DROPOUT if name in ("projector", "text_decoder") else {}

    def loss(params):
        out = getattr(nets, name).apply({"params": params}, *inputs, **options)
        return sum(jnp.mean(jnp.square(x)) for x in jax.tree.leaves(out))

    return loss


def params_of(name: str):
    return tiny.random_params(tiny.nets(), GROUP[name])[name]


@functools.cache
def gradient(name: str, remat: str):
    return jax.jit(jax.value_and_grad(loss_of(name, remat)))(params_of(name))


@pytest.mark.parametrize("remat", POLICIES)
@pytest.mark.parametrize("name", GROUP)
def test_a_policy_changes_neither_loss_nor_gradient(name, remat):
    (wanted, gradients), (got, got_gradients) = (
        gradient(name, policy) for policy in ("none", remat)
    )
    assert float(got) == pytest.approx(float(wanted), rel=1e-6)
    for path, leaf in jax.tree.leaves_with_path(gradients):
        assert np.abs(leaf).max() > 0, path
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        got_gradients,
        gradients,
    )


def kept(name: str, remat: str) -> list[tuple[str, tuple[int, ...]]]:
    """Dtype and shape of what the blocks leave for the backward pass, parameters
    apart: a function's vjp holds it.
    """
    params = params_of(name)
    loss = loss_of(name, remat, "bfloat16")
    backward = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
    leaves = [(str(x.dtype), x.shape) for x in jax.tree.leaves(backward)]
    return sorted(x for x in leaves if x[1][0] == DEPTH and ROWS in x[1][1:3])


def expected(*widths: int, modulation: bool = False) -> list:
    found = [("bfloat16", (DEPTH, ROWS, TOKENS, width)) for width in widths]
    if modulation:
        found.append(("bfloat16", (DEPTH, ROWS, 6 * WIDTH)))
    return sorted(found)


D = WIDTH
KEPT = {  # widths: block input, proj, fc2, attention, qkv, fc1
    ("dit", "full"): expected(D),
    ("dit", "dense"): expected(D, D, D, D, 3 * D, 4 * D, modulation=True),
    ("dit", "dense_but_qkv"): expected(D, D, D, D, 4 * D, modulation=True),
    ("dit", "residual"): expected(D, D, D, modulation=True),
    ("projector", "full"): expected(D),
    ("projector", "dense"): expected(D, D, D, D, 3 * D, 24),
    ("projector", "dense_but_qkv"): expected(D, D, D, D, 24),
    ("projector", "residual"): expected(D, D, D),
}


@pytest.mark.parametrize(("name", "remat"), KEPT, ids=str)
def test_a_policy_keeps_what_it_says_in_the_compute_dtype(name, remat):
    assert kept(name, remat) == KEPT[name, remat]


@pytest.mark.parametrize("remat", POLICIES)
def test_no_policy_keeps_attention_weights_and_no_policy_at_all_does(remat):
    weights = {
        policy: [s for _, s in kept("tokenizer", policy) if s[-1] == s[-2]]
        for policy in (remat, "none")
    }
    assert not weights[remat]
    assert weights["none"]


def test_rows_are_pinned_where_there_is_a_mesh_that_can_split_them():
    mesh = make_mesh(data=2, fsdp=2, tensor=2)

    def spec(rows):
        pinned = jax.jit(in_mesh(mesh, pin_rows))
        x = jnp.zeros((rows, 4))
        return str(pinned.lower(x).as_text()).count("sharding_constraint")

    assert spec(8) == 1
    assert spec(1) == spec(6) == 0
    alone = jnp.ones((8, 4))
    np.testing.assert_array_equal(pin_rows(alone), alone)
