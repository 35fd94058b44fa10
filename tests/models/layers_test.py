"""Positions, rotary attention, modulation and the scan over blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtok_jax.models import layers
from tests import tiny

RNG = np.random.default_rng(0)


def slow_rope(x: np.ndarray, grid: int) -> np.ndarray:
    """Turns one pair of channels of one position at a time; x is [b m h k]."""
    out, half = x.astype(np.float64), x.shape[-1] // 2
    for place in range(grid * grid):
        for axis, position in enumerate(divmod(place, grid)):
            for i in range(half // 2):
                angle = position * 10000.0 ** (-2 * i / half)
                even = axis * half + 2 * i
                turn = np.exp(1j * angle)
                turned = turn * (x[:, place, :, even] + 1j * x[:, place, :, even + 1])
                out[:, place, :, even] = turned.real
                out[:, place, :, even + 1] = turned.imag
    return out


def slow_attention(x, params, heads, causal=False, grid=0) -> np.ndarray:
    """Attention in float64, one head, one row of the batch and one query at a time."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    x = np.asarray(x, np.float64)
    batch, length, width = x.shape
    qkv = x @ p["qkv"]["kernel"] + p["qkv"]["bias"]
    q, k, v = (
        part.reshape(batch, length, heads, -1) for part in np.split(qkv, 3, axis=-1)
    )
    q, k = slow_rope(q, grid), slow_rope(k, grid)
    out = np.zeros((batch, length, heads, width // heads))
    for b in range(batch):
        for h in range(heads):
            for i in range(length):
                seen = i + 1 if causal else length
                scores = k[b, :seen, h] @ q[b, i, h] / np.sqrt(width // heads)
                weights = np.exp(scores - scores.max())
                out[b, i, h] = weights @ v[b, :seen, h] / weights.sum()
    return out.reshape(x.shape) @ p["proj"]["kernel"] + p["proj"]["bias"]


def test_sincos_positions_are_sines_then_cosines():
    table = layers.sincos_positions(77, 8)
    for n in (0, 1, 76):
        for i in range(4):
            angle = n / 10000 ** (i / 4)
            np.testing.assert_allclose(table[n, i], np.sin(angle), atol=1e-6)
            np.testing.assert_allclose(table[n, 4 + i], np.cos(angle), atol=1e-6)


def test_rope_is_that_of_the_slow_version_and_leaves_the_rest():
    grid, head_dim = 3, 8
    x = RNG.standard_normal((2, grid * grid + 4, 2, head_dim)).astype(np.float32)
    cos, sin = layers.rope_tables(grid, head_dim)
    cos, sin = jnp.asarray(cos), jnp.asarray(sin)
    got = np.asarray(layers.apply_rope(jnp.asarray(x), cos, sin))
    np.testing.assert_allclose(got, slow_rope(x, grid), atol=1e-5)
    np.testing.assert_array_equal(got[:, grid * grid :], x[:, grid * grid :])
    assert (np.abs(got - x)[:, 1 : grid * grid].max((0, 2, 3)) > 0.01).all()


def test_rope_scores_depend_on_the_offset_of_two_places_only():
    grid, head_dim = 4, 16
    q, k = RNG.standard_normal((2, 1, 1, 1, head_dim)).astype(np.float32)
    tables = map(jnp.asarray, layers.rope_tables(grid, head_dim))
    places = [jnp.tile(x, (1, grid * grid, 1, 1)) for x in (q, k)]
    cos, sin = tables
    q, k = (layers.apply_rope(x, cos, sin)[0, :, 0] for x in places)
    scores = np.asarray(q @ k.T).reshape(grid, grid, grid, grid)
    np.testing.assert_allclose(scores[0, 1, 1, 3], scores[2, 0, 3, 2], rtol=1e-4)
    np.testing.assert_allclose(scores[3, 3, 1, 2], scores[2, 1, 0, 0], rtol=1e-4)
    assert abs(scores[0, 0, 0, 1] - scores[0, 0, 1, 0]) > 1e-2


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_that_of_the_slow_version(causal):
    grid, heads = 2, 4
    module = layers.Attention(heads, causal=causal)
    x = tiny.normal(RNG, 2, 7, 32)
    params = tiny.random_like(
        jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    )
    rope = tuple(map(jnp.asarray, layers.rope_tables(grid, 8)))
    got = module.apply({"params": params}, x, rope)
    wanted = slow_attention(x, params, heads, causal, grid)
    assert tiny.relative_error(got, wanted) < 1e-5


@pytest.mark.parametrize("causal", [False, True])
def test_attention_with_dropout_is_attention_when_nothing_drops(causal):
    x = tiny.normal(RNG, 2, 5, 32)
    module = layers.Attention(4, causal=causal)
    variables = tiny.random_like(jax.eval_shape(module.init, jax.random.key(0), x))
    wanted = module.apply(variables, x)
    dropping = {
        rate: module.clone(dropout=rate, deterministic=False).apply(
            variables, x, rngs={"dropout": jax.random.key(1)}
        )
        for rate in (1e-12, 0.5)
    }
    np.testing.assert_allclose(dropping[1e-12], wanted, atol=1e-6)
    assert tiny.relative_error(dropping[0.5], wanted) > 0.1


def test_time_embedding_has_cosines_then_sines_of_t_itself():
    module = layers.TimeEmbedding(8)
    t = jnp.array([0.0, 0.3, 1.0])
    params = tiny.random_like(
        jax.eval_shape(module.init, jax.random.key(0), t)["params"]
    )
    frequency = 10000.0 ** (-np.arange(128) / 128)
    angles = np.asarray(t, np.float64)[:, None] * frequency
    x = np.concatenate([np.cos(angles), np.sin(angles)], 1)
    hidden = x @ params["fc1"]["kernel"] + np.asarray(params["fc1"]["bias"])[None]
    hidden = hidden / (1 + np.exp(-hidden))
    wanted = hidden @ params["fc2"]["kernel"] + np.asarray(params["fc2"]["bias"])[None]
    assert tiny.relative_error(module.apply({"params": params}, t), wanted) < 1e-5


def test_swiglu_gates_the_second_half_by_the_first():
    module, x = layers.SwiGLU(), tiny.normal(RNG, 2, 3, 12)
    params = tiny.random_like(
        jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    )
    assert params["w3"]["kernel"].shape == (int(2 / 3 * 4 * 12), 12)
    w12, w3 = (jax.tree.map(np.asarray, params[name]) for name in ("w12", "w3"))
    gate, value = np.split(np.asarray(x) @ w12["kernel"] + w12["bias"], 2, axis=-1)
    wanted = gate / (1 + np.exp(-gate)) * value @ w3["kernel"] + w3["bias"]
    assert tiny.relative_error(module.apply({"params": params}, x), wanted) < 1e-5


def test_activations_are_the_approximate_gelus_of_clip_and_dit():
    x = np.linspace(-4, 4, 33, dtype=np.float32)
    quick = x / (1 + np.exp(-1.702 * x))
    tanh = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(layers.quick_gelu(jnp.asarray(x)), quick, atol=1e-6)
    np.testing.assert_allclose(layers.gelu_tanh(jnp.asarray(x)), tanh, atol=1e-6)


def test_torch_dense_starts_uniform_within_one_over_root_fan_in():
    module = layers.torch_dense(400, 100)
    params = module.init(jax.random.key(0), jnp.zeros((1, 100)))["params"]
    for values in params.values():
        assert np.abs(values).max() <= 0.1
        np.testing.assert_allclose(np.std(values), 0.1 / np.sqrt(3), rtol=0.1)


def test_modulate_shifts_and_scales_every_token_alike():
    x = tiny.normal(RNG, 2, 3, 4)
    shift, scale = tiny.normal(RNG, 2, 4), tiny.normal(RNG, 1, 4)
    got = layers.modulate(x, shift, scale)
    for b in range(2):
        for n in range(3):
            wanted = x[b, n] * (1 + scale[0]) + shift[b]
            np.testing.assert_allclose(got[b, n], wanted, rtol=1e-6)


def test_an_unknown_remat_is_refused():
    with pytest.raises(ValueError, match="'half'; expected one of"):
        layers.scan_blocks(layers.Mlp, 2, "half")
