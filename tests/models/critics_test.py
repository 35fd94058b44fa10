"""LPIPS and the discriminator; their goldens are in tests/convert/parity_test.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu.parameter_overview import count_parameters

from flowtok_jax.models import critics
from flowtok_jax.models.critics import LPIPS, Discriminator, blur_pool, pool_to_grid
from tests import tiny

SMALL = Discriminator(width=4, stages=2, grid=2)
TINY = LPIPS(layers=((4, 4), (6,), (8, 8)))


def images(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).random((*shape, 3), np.float32))


@pytest.fixture(scope="module")
def lpips():
    """Parameters whose weights are all positive, as the trained ones are."""
    pair = images(1, 16, 16)
    params = jax.eval_shape(TINY.init, jax.random.key(0), pair, pair)["params"]
    params = tiny.random_like(params)
    return {k: np.abs(x) if k.startswith("weights") else x for k, x in params.items()}


distance = jax.jit(lambda params, a, b: TINY.apply({"params": params}, a, b))


def test_distance_is_zero_between_equals_symmetric_and_grows(lpips):
    a, b = images(3, 16, 16), images(3, 16, 16, seed=1)
    np.testing.assert_array_equal(distance(lpips, a, a), 0)
    far, near = distance(lpips, a, b), distance(lpips, a, 0.9 * a + 0.1 * b)
    np.testing.assert_allclose(far, distance(lpips, b, a), rtol=1e-5)
    assert (near > 0).all()
    assert (far > 2 * near).all()


def test_distance_is_a_pair_s_own(lpips):
    a, b = images(3, 16, 16), images(3, 16, 16, seed=1)
    together = distance(lpips, a, b)
    np.testing.assert_allclose(distance(lpips, a[1:2], b[1:2]), together[1:2], 1e-5)


def test_layer_s_weights_scale_its_share(lpips):
    a, b = images(1, 16, 16), images(1, 16, 16, seed=1)
    shares = []
    for layer in range(3):
        name = f"weights{layer}"
        doubled = lpips | {name: 2 * lpips[name]}
        shares.append(distance(doubled, a, b)[0] - distance(lpips, a, b)[0])
    assert min(shares) > 0
    np.testing.assert_allclose(sum(shares), distance(lpips, a, b)[0], rtol=1e-4)


@pytest.mark.parametrize("size", [0, 1e-25], ids=["zero", "underflow"])
def test_gradient_is_finite_where_features_have_no_length(lpips, size):
    """Their squares are 0; the root's slope there is not finite."""
    weights = {name: x for name, x in lpips.items() if name.startswith("weights")}
    faint = jax.tree.map(lambda x: size * jnp.abs(x), lpips) | weights
    a, b = images(1, 16, 16), images(1, 16, 16, seed=1)
    slope = jax.jit(jax.grad(lambda p, a: distance(p, a, b).sum(), argnums=1))
    assert np.isfinite(slope(faint, a)).all()
    assert np.abs(slope(lpips, a)).max() > 0


def test_lpips_is_vgg16_and_a_weight_a_channel():
    pair = images(1, 16, 16)
    params = jax.eval_shape(LPIPS().init, jax.random.key(0), pair, pair)["params"]
    # torchvision's `features` have 14,714,688 parameters.
    assert count_parameters(params) == 14_714_688 + 64 + 128 + 256 + 512 + 512


def test_blur_pool_is_a_padded_strided_sum():
    x = np.random.default_rng(0).standard_normal((2, 6, 8, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    line = np.array([1, 3, 3, 1]) / 8
    wanted = np.zeros((2, 3, 4, 3))
    for i in range(3):
        for j in range(4):
            window = padded[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4]
            wanted[:, i, j] = np.einsum("bhwc,h,w->bc", window, line, line)
    np.testing.assert_allclose(blur_pool(jnp.asarray(x)), wanted, atol=1e-6)
    assert sum(critics.BLUR) == 1


def test_discriminator_pools_larger_images_to_its_grid():
    params = jax.jit(SMALL.init)(jax.random.key(0), images(1, 8, 8))["params"]
    judge = jax.jit(lambda x: SMALL.apply({"params": params}, x))
    assert judge(images(2, 8, 8)).shape == (2, 2, 2)
    for side in (2, 12, 24):
        assert judge(images(2, side, side)).shape == (2, 2, 2)


@pytest.mark.parametrize(
    ("side", "windows"),
    [
        (3, [(0, 1), (0, 2), (1, 3), (2, 3)]),
        (6, [(0, 2), (1, 3), (3, 5), (4, 6)]),
        (8, [(0, 2), (2, 4), (4, 6), (6, 8)]),
        (9, [(0, 3), (2, 5), (4, 7), (6, 9)]),
    ],
)
def test_windows_of_a_grid_are_those_of_pytorch(side, windows):
    """PyTorch's AdaptiveMaxPool2d takes from floor(i n / g) to ceil((i + 1) n / g)."""
    x = np.random.default_rng(0).standard_normal((2, side, side, 3), np.float32)
    pooled = pool_to_grid(jnp.asarray(x), 4)
    for i, (top, bottom) in enumerate(windows):
        for j, (left, right) in enumerate(windows):
            wanted = x[:, top:bottom, left:right].max((1, 2))
            np.testing.assert_array_equal(pooled[:, i, j], wanted)


def test_logit_depends_on_its_own_image_and_on_all_of_a_small_one():
    params = jax.jit(SMALL.init)(jax.random.key(0), images(1, 8, 8))["params"]
    pair = images(2, 8, 8)

    def logit(x):
        return SMALL.apply({"params": params}, x)[0, 0, 0]

    slope = np.abs(jax.jit(jax.grad(logit))(pair))
    assert slope[0].max(-1).min() > 0
    np.testing.assert_array_equal(slope[1], 0)


def test_bfloat16_is_near_float32(lpips):
    pair = images(2, 16, 16), images(2, 16, 16, seed=1)
    judged = images(2, 8, 8)
    small = jax.jit(SMALL.init)(jax.random.key(0), judged)["params"]
    for net, params, inputs in ((TINY, lpips, pair), (SMALL, small, (judged,))):
        wanted, got = (
            jax.jit(net.clone(dtype=dtype).apply)({"params": params}, *inputs)
            for dtype in (jnp.float32, jnp.bfloat16)
        )
        assert got.dtype == jnp.float32
        assert 0 < tiny.relative_error(got, wanted) < 3e-2


def test_remat_keeps_less_and_changes_neither_distance_nor_gradient(lpips):
    known, made = images(2, 32, 32), images(2, 32, 32, seed=1)
    wanted, got = (
        jax.jit(jax.value_and_grad(total(remat, lpips, known)))(made)
        for remat in (False, True)
    )
    np.testing.assert_allclose(got[0], wanted[0], rtol=1e-5)
    np.testing.assert_allclose(got[1], wanted[1], rtol=1e-4, atol=1e-7)
    assert np.abs(wanted[1]).max() > 1e-3
    kept = [held(total(remat, lpips, known), made) for remat in (False, True)]
    assert kept[1] < 0.5 * kept[0]


def total(remat: bool, params, known):
    net = TINY.clone(remat=remat)
    return lambda made: net.apply({"params": params}, known, made).sum()


def held(function, x) -> int:
    """Bytes that a function's forward pass leaves for its backward pass."""
    leaves = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(function, x)[1], x))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
