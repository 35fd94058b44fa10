"""The diagonal Gaussian of tokens."""

import jax
import jax.numpy as jnp
import numpy as np

from flowtok_jax.models.posterior import Posterior


def test_moments_are_mean_then_logvar():
    moments = jnp.arange(12.0).reshape(1, 2, 6)
    posterior = Posterior.from_moments(moments)
    np.testing.assert_array_equal(posterior.mean[0], [[0, 1, 2], [6, 7, 8]])
    np.testing.assert_array_equal(posterior.logvar[0], [[3, 4, 5], [9, 10, 11]])


def test_logvar_is_clipped_only_on_request():
    moments = jnp.array([[[0.0, 0.0, 0.0, -50.0, 1.0, 50.0]]])
    clipped = Posterior.from_moments(moments, clip=True)
    np.testing.assert_array_equal(clipped.logvar[0, 0], [-30, 1, 20])
    free = Posterior.from_moments(moments)
    np.testing.assert_array_equal(free.logvar[0, 0], [-50, 1, 50])


def test_samples_have_the_mean_and_the_spread():
    mean = jnp.full((20000, 1, 2), jnp.array([-1.0, 3.0])[None, None])
    logvar = jnp.full((20000, 1, 2), jnp.log(jnp.array([0.25, 4.0]))[None, None])
    posterior = Posterior(mean, logvar)
    sample = posterior.sample(jax.random.key(0))
    np.testing.assert_allclose(sample.mean((0, 1)), [-1, 3], atol=0.05)
    np.testing.assert_allclose(sample.std((0, 1)), [0.5, 2], rtol=0.02)
    again = posterior.sample(jax.random.key(0))
    other = posterior.sample(jax.random.key(1))
    np.testing.assert_array_equal(sample, again)
    assert np.abs(sample - other).max() > 1


def test_moments_of_low_precision_become_float32():
    posterior = Posterior.from_moments(jnp.ones((1, 1, 2), jnp.bfloat16))
    assert posterior.mean.dtype == posterior.logvar.dtype == jnp.float32


def test_gradient_reaches_mean_and_logvar():
    def total(posterior):
        return posterior.sample(jax.random.key(3)).sum()

    posterior = Posterior(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 3)))
    noise = posterior.sample(jax.random.key(3))
    gradient = jax.grad(total)(posterior)
    np.testing.assert_allclose(gradient.mean, np.ones((1, 2, 3)))
    np.testing.assert_allclose(gradient.logvar, 0.5 * noise, rtol=1e-6)
