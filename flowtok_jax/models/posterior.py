"""Diagonal Gaussian over tokens, the output of the image and the text encoder."""

import flax.struct
import jax
import jax.numpy as jnp

from flowtok_jax.array_types import Key, Moments, Tokens


class Posterior(flax.struct.PyTreeNode):
    """Normal distribution N(mean, exp(logvar)) of each token and channel; float32."""

    mean: Tokens
    logvar: Tokens

    @classmethod
    def from_moments(cls, moments: Moments, clip: bool = False) -> "Posterior":
        """Splits [mean | logvar]; `clip` limits logvar to [-30, 20]."""
        # Only the tokenizer clips: its release inherits it from latent diffusion.
        mean, logvar = jnp.split(moments.astype(jnp.float32), 2, axis=-1)  # [b n c]
        return cls(mean, jnp.clip(logvar, -30.0, 20.0) if clip else logvar)

    @property
    def std(self) -> Tokens:
        """Standard deviation."""
        return jnp.exp(0.5 * self.logvar)

    def at(self, noise: Tokens) -> Tokens:
        """Returns mean + std * noise, which is a sample if the noise is N(0, 1)."""
        return self.mean + self.std * noise

    def sample(self, key: Key) -> Tokens:
        """Draws a sample by reparameterisation: gradients reach mean and std."""
        return self.at(jax.random.normal(key, self.mean.shape))
