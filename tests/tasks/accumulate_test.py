"""Parts of a batch one after the other give the loss and gradient of the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from flowtok_jax.tasks import TASKS
from flowtok_jax.tasks.accumulate import accumulate
from tests import tiny
from tests.tasks.setting import batch

OPTIONS = default.get_config().loss
STILL = {"depth": 1, "heads": 4, "mlp_width": 24, "dropout": 0.0}


def gradient(task, parts, **overrides):
    """Value, scalars and gradients of a task without dropout, at random weights."""
    nets = tiny.nets(projector=STILL, text_decoder=STILL)
    options = OPTIONS[task].to_dict() | overrides
    loss = functools.partial(TASKS[task].loss, nets=nets, parts=parts, **options)
    frozen = {
        role: tiny.random_params(nets, group, seed=i + 1)
        for i, (role, group) in enumerate(TASKS[task].frozen.items())
    }
    function = jax.jit(jax.value_and_grad(loss, has_aux=True))
    params = tiny.random_params(nets, task)
    return function(params, frozen, batch(), jax.random.key(1))


@pytest.mark.parametrize(
    ("task", "overrides"),
    [
        ("tokenizer", {}),
        ("tokenizer", {"kl": "release_batch_sum", "kl_weight": 0.1}),
        ("text_tokenizer", {"kl": "gaussian_element_mean", "kl_weight": 0.1}),
        ("t2i", {"null_rate": 0.5}),
        ("i2t", {"null_rate": 0.5}),
    ],
)
def test_value_scalars_and_gradients_are_those_of_the_whole_batch(task, overrides):
    wanted, got = (gradient(task, parts, **overrides) for parts in (1, 4))
    jax.tree.map(close, got, wanted)


def close(a, b):
    """Equal but for rounding, of which a bias that cancels has nothing else."""
    error = np.linalg.norm(np.asarray(a - b))
    assert error < 1e-5 * np.linalg.norm(np.asarray(b)) + 1e-6 * np.sqrt(a.size)


def test_gradients_flow_to_inputs_and_are_scaled_by_what_comes_after():
    rng = np.random.default_rng(0)
    params, inputs = rng.random((2, 3)), rng.random((8, 3))
    weights = rng.random(8)

    def function(params, inputs, weights, key):
        values = weights * jnp.sin(inputs @ params.T).sum(1)
        return values.mean(), values

    def squared(params, inputs, parts):
        value, rows = accumulate(function, parts)(params, inputs, weights, key)
        return value**2, rows

    key = jax.random.key(0)
    calls = [
        jax.value_and_grad(functools.partial(squared, parts=p), (0, 1), has_aux=True)(
            params, inputs
        )
        for p in (1, 4)
    ]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), *calls)
    value = accumulate(function, 4)(params, inputs, weights, key)[0]
    np.testing.assert_allclose(value**2, calls[0][0][0], rtol=1e-5)


def test_parts_have_keys_of_their_own():
    def function(params, inputs, rest, key):
        noise = jax.random.normal(key, inputs.shape)
        return (params * inputs * noise).mean(), noise

    run = accumulate(function, 4)
    _, noise = run(jnp.ones(()), jnp.ones((8, 1)), (), jax.random.key(0))
    assert len(np.unique(noise)) == 8


def test_activations_take_the_memory_of_a_part():
    def function(params, inputs, rest, key):
        for kernel in params:
            inputs = jnp.tanh(inputs @ kernel)
        return inputs.mean(), ()

    params, inputs = [jnp.zeros((64, 64))] * 8, jnp.zeros((4096, 64))

    def temporary(parts):
        loss = jax.grad(lambda p: accumulate(function, parts)(p, inputs, (), key)[0])
        return jax.jit(loss).lower(params).compile().memory_analysis()

    key = jax.random.key(0)
    sizes = [temporary(parts).temp_size_in_bytes for parts in (1, 8)]
    assert sizes[1] < 0.5 * sizes[0]
