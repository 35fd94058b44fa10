"""A diagonal Gaussian over tokens: what both the image and the text encoder give."""

import flax.struct
import jax
import jax.numpy as jnp

from flowtok_jax.array_types import Key, Moments, Tokens


class Posterior(flax.struct.PyTreeNode):
    """N(mean, exp(logvar)), each token and channel on its own; float32."""

    mean: Tokens
    logvar: Tokens

    @classmethod
    def from_moments(cls, moments: Moments, clip: bool = False) -> "Posterior":
        """Splits [mean | logvar]; `clip` holds logvar in [-30, 20] (the tokenizer)."""
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
        return cls(mean, jnp.clip(logvar, -30.0, 20.0) if clip else logvar)

    @property
    def std(self) -> Tokens:
        return jnp.exp(0.5 * self.logvar)

    def at(self, noise: Tokens) -> Tokens:
        """mean + std * noise: a sample, where the noise is one of N(0, 1)."""
        return self.mean + self.std * noise

    def sample(self, key: Key) -> Tokens:
        """mean + std * noise, by reparameterisation."""
        return self.at(jax.random.normal(key, self.mean.shape))
