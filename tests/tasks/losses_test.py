"""The losses, against closed forms, slow versions and the release."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtok_jax.tasks import losses
from tests import tiny

RNG = np.random.default_rng(0)


def test_velocity_loss_is_a_mean_within_each_row():
    predicted = jnp.zeros((2, 3, 4))
    velocity = jnp.stack([jnp.full((3, 4), 2.0), jnp.zeros((3, 4)).at[0, 0].set(6.0)])
    np.testing.assert_allclose(losses.velocity_loss(predicted, velocity), [4.0, 3.0])


def test_gaussian_kl_is_that_of_its_integral():
    x = np.linspace(-30, 30, 200_001)
    for mean, logvar in ((0.0, 0.0), (1.5, -1.0), (-0.7, 1.2)):
        std = np.exp(logvar / 2)
        log_q = -0.5 * ((x - mean) / std) ** 2 - np.log(std)
        q = np.exp(log_q) / np.sqrt(2 * np.pi)
        wanted = np.trapezoid(q * (log_q + 0.5 * x**2), x)
        got = losses.gaussian_kl(*(jnp.full((1, 1, 1), v) for v in (mean, logvar)))
        np.testing.assert_allclose(got[0, 0, 0], wanted, atol=1e-5)


def test_release_kl_leaves_the_mean_free_up_to_about_three():
    mean = jnp.array([0.0, 1.0, -1.0, 10 / 3, 5.0])[None, None]
    logvar = jnp.full_like(mean, 0.5)
    got = losses.release_kl(mean, logvar)[0, 0]
    variance = -0.5 * (1 + 0.5 - np.exp(0.5))
    wanted = variance + 0.5 * (0.3 * np.asarray(mean[0, 0])) ** 6
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    np.testing.assert_allclose(got[1] - got[0], 0.5 * 0.3**6, atol=1e-6)
    np.testing.assert_allclose(got[3] - got[0], 0.5, rtol=1e-5)
    np.testing.assert_allclose(got[0], losses.gaussian_kl(mean, logvar)[0, 0, 0])


@pytest.mark.parametrize("form", ["gaussian", "release"])
@pytest.mark.parametrize(
    ("reduction", "divisor"),
    [
        ("batch_sum", lambda b: 1),
        ("sample_mean", lambda b: b),
        ("element_mean", lambda b: b * 3 * 2),
    ],
)
@pytest.mark.parametrize("batch", [2, 5])
def test_kl_reductions(form, reduction, divisor, batch):
    mean, logvar = tiny.normal(RNG, batch, 3, 2), tiny.normal(RNG, batch, 3, 2)
    elementwise = {"gaussian": losses.gaussian_kl, "release": losses.release_kl}[form]
    total = np.asarray(elementwise(mean, logvar), np.float64).sum()
    got = losses.kl_loss(mean, logvar, f"{form}_{reduction}")
    np.testing.assert_allclose(got, total / divisor(batch), rtol=1e-5)


def test_kl_of_an_unknown_form_is_refused():
    zeros = jnp.zeros((1, 1, 1))
    with pytest.raises(ValueError, match="'gaussian'; expected one of"):
        losses.kl_loss(zeros, zeros, "gaussian")


def slow_contrastive(z, target, tau) -> float:
    """One pair of rows at a time, in float64."""
    a, b = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (z, target))
    n, total = len(a), 0.0
    logits = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            norms = np.sqrt(a[i] @ a[i]) * np.sqrt(b[j] @ b[j])
            logits[i, j] = np.exp(tau) * (a[i] @ b[j]) / norms
    for i in range(n):
        total += np.log(np.exp(logits[i]).sum()) - logits[i, i]
        total += np.log(np.exp(logits[:, i]).sum()) - logits[i, i]
    return total / (2 * n)


def test_contrastive_alignment_is_that_of_the_slow_version():
    z, target = tiny.normal(RNG, 6, 3, 2), tiny.normal(RNG, 6, 3, 2)
    whole = losses.contrastive_alignment(z, target, jnp.float32(1.5))
    np.testing.assert_allclose(whole, slow_contrastive(z, target, 1.5), rtol=1e-5)
    groups = losses.contrastive_alignment(z, target, jnp.float32(1.5), groups=3)
    wanted = np.mean(
        [slow_contrastive(z[i : i + 2], target[i : i + 2], 1.5) for i in (0, 2, 4)]
    )
    np.testing.assert_allclose(groups, wanted, rtol=1e-5)
    assert abs(whole - groups) > 0.1


def test_cosine_alignment_asks_for_a_cosine_above_one_less_the_margin():
    z = jnp.array([[[1.0, 0.0], [3.0, 0.0], [2.0, 0.0], [1.0, 0.0]]])
    target = jnp.array([[[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.8, 0.6]]])
    cosines = np.array([1.0, 0.0, -1.0, 0.8])
    for margin in (0.0, 0.3):
        wanted = np.maximum(0, 1 - margin - cosines).mean()
        got = losses.cosine_alignment(z, target, margin)
        np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_cosine_alignment_has_a_gradient_at_zero():
    zeros, target = jnp.zeros((1, 2, 3)), jnp.ones((1, 2, 3))
    gradient = jax.grad(losses.cosine_alignment)(zeros, target, 0.1)
    assert np.isfinite(gradient).all()


def test_reconstruction_loss_is_a_mean_over_the_pixels_of_a_row():
    image = jnp.zeros((2, 2, 2, 3)).at[0, 0, 0, 0].set(2.4)
    got = losses.reconstruction_loss(image, jnp.zeros_like(image))
    np.testing.assert_allclose(got, [2.4**2 / 12, 0], rtol=1e-6)


def test_caption_loss_is_a_cross_entropy_over_every_position():
    logits = tiny.normal(RNG, 2, 3, 5)
    ids = jnp.array([[0, 4, 2], [1, 1, 0]])
    p = np.exp(np.asarray(logits, np.float64))
    p /= p.sum(-1, keepdims=True)
    picked = [[p[b, n, ids[b, n]] for n in range(3)] for b in range(2)]
    got = losses.caption_loss(logits, ids)
    np.testing.assert_allclose(got, -np.log(picked).mean(1), rtol=1e-5)


def test_a_caption_is_exact_when_all_its_positions_are():
    logits = jax.nn.one_hot(jnp.array([[0, 4, 2], [1, 1, 0]]), 5)
    ids = jnp.array([[0, 4, 2], [1, 3, 0]])
    np.testing.assert_array_equal(losses.caption_is_exact(logits, ids), [True, False])


def _logits(*values):
    return jnp.array(values, jnp.float32)[:, None, None]


def test_hinge_loss_is_flat_beyond_its_margin():
    real, fake = _logits(2.0, 0.5), _logits(-3.0, 0.0)
    np.testing.assert_allclose(losses.hinge_loss(real, fake), 0.5 * (0.25 + 0.5))
    slopes = jax.grad(losses.hinge_loss, (0, 1))(real, fake)
    np.testing.assert_allclose(slopes[0].ravel(), [0, -0.25])
    np.testing.assert_allclose(slopes[1].ravel(), [0, 0.25])


def test_generator_loss_falls_as_its_images_look_real():
    np.testing.assert_allclose(losses.generator_loss(_logits(1, 2, 3, 6)), -3.0)


def test_lecam_loss_takes_means_before_squares():
    real, fake = _logits(3.0, -1.0), _logits(-2.0, -4.0)
    averages = jnp.float32(0.5), jnp.float32(0.25)
    wanted = (1.0 - 0.25) ** 2 + (0.5 + 3.0) ** 2
    np.testing.assert_allclose(losses.lecam_loss(real, fake, *averages), wanted)
    np.testing.assert_allclose(losses.lecam_loss(fake, real, *averages), 0)
