"""Image tokenizer: an image to n tokens of c channels, and back.

    encode  [patches, n latent tokens] -> Transformer -> latents -> mean and logvar
    decode  [g*g mask tokens, n tokens, n text features] -> Transformer -> pixels

Rotary positions apply to the g*g image places only, MLPs are SwiGLU, and the caption's
features guide the decoder (FlowTok section 3.2; release file
`modeling/modules/blocks.py`).
"""

from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from flowtok_jax.array_types import Image, Moments, TextFeatures, Tokens
from flowtok_jax.models.layers import (
    Attention,
    SwiGLU,
    dot_general,
    pin_rows,
    rope_tables,
    scan_blocks,
)
from flowtok_jax.models.posterior import Posterior
from flowtok_jax.runtime.errors import UserError

SIZES = {
    "small": dict(width=512, depth=8, heads=8),
    "base": dict(width=768, depth=12, heads=12),
    "large": dict(width=1024, depth=24, heads=16),
}


def _dense(
    features: int, std: float, dtype: DTypeLike, layout: str, name: str
) -> nn.Dense:
    """Makes a dense layer with TA-TiTok's truncated normal init."""
    # Source: TA-TiTok's release, `modeling/modules/blocks.py`.
    init = nn.initializers.truncated_normal(std)
    dot = dot_general(layout)
    return nn.Dense(features, dtype=dtype, kernel_init=init, dot_general=dot, name=name)


def patchify(image: Image, patch: int) -> Float[Array, "b m f"]:
    """Cuts images into patches, row by row, each flattened as (row, column, RGB)."""
    b, s, _, c = image.shape
    g = s // patch
    x = image.reshape(b, g, patch, g, patch, c)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # [b g g p p c]
    return x.reshape(b, g * g, patch * patch * c)


def unpatchify(patches: Float[Array, "b m f"], patch: int) -> Image:
    """Joins patches into images; the inverse of `patchify`."""
    b, m, f = patches.shape
    g = round(m**0.5)
    c = f // patch**2
    x = patches.reshape(b, g, g, patch, patch, c)
    x = x.transpose(0, 1, 3, 2, 4, 5)  # [b g p g p c]
    return x.reshape(b, g * patch, g * patch, c)


class TokenizerBlock(nn.Module):
    """Rotary attention and SwiGLU, each after a LayerNorm."""

    heads: int
    kernel_std: float
    dtype: DTypeLike = jnp.float32
    attention: str = "xla"
    layout: str = "batch"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b m d"],
        rope: tuple[Float[Array, "r k"], Float[Array, "r k"]],
    ) -> tuple[Float[Array, "b m d"], None]:
        x = pin_rows(x)
        norm = dict(epsilon=1e-5, dtype=jnp.float32)  # PyTorch's default epsilon
        init = nn.initializers.truncated_normal(self.kernel_std)
        attend = Attention(
            self.heads,
            self.dtype,
            init,
            implementation=self.attention,
            layout=self.layout,
            name="attention",
        )
        mlp = SwiGLU(self.dtype, init, self.layout, name="mlp")
        x = x + attend(nn.LayerNorm(name="norm1", **norm)(x).astype(self.dtype), rope)
        x = x + mlp(nn.LayerNorm(name="norm2", **norm)(x).astype(self.dtype))
        return x, None


class _Transformer(nn.Module):
    """LayerNorm and rotary blocks over the sequence [image places, other tokens]."""

    width: int
    depth: int
    heads: int
    grid: int
    kernel_std: float
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    attention: str = "xla"
    layout: str = "batch"

    @nn.compact
    def __call__(self, x: Float[Array, "b m d"]) -> Float[Array, "b m d"]:
        norm = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm_pre")
        # Image places come first in the sequence, because rotary positions turn the
        # first g*g places.
        rope = tuple(map(jnp.asarray, rope_tables(self.grid, self.width // self.heads)))
        blocks = scan_blocks(
            TokenizerBlock, self.depth, self.remat, layout=self.layout
        )(
            self.heads,
            self.kernel_std,
            self.dtype,
            self.attention,
            self.layout,
            name="blocks",
        )
        x, _ = blocks(norm(x).astype(self.dtype), rope)
        return x


class _Side(nn.Module):
    """Base of encoder and decoder: their sizes and their Transformer."""

    width: int
    depth: int
    heads: int
    grid: int
    patch: int
    tokens: int
    channels: int
    token_std: float
    kernel_std: float
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    attention: str = "xla"
    layout: str = "batch"

    def transform(self, x: Float[Array, "b m d"]) -> Float[Array, "b m d"]:
        """Applies the Transformer to the sequence [image places, other tokens]."""
        transformer = _Transformer(
            self.width,
            self.depth,
            self.heads,
            self.grid,
            self.kernel_std,
            self.dtype,
            self.remat,
            self.attention,
            self.layout,
            name="transformer",
        )
        return transformer(x)


class Encoder(_Side):
    """Encoder from images to the moments [mean | logvar] of n tokens."""

    @nn.compact
    def __call__(
        self, image: Image, hidden: Bool[Array, "b p"] | None = None
    ) -> Moments:
        dense = dict(std=self.kernel_std, dtype=self.dtype, layout=self.layout)
        patches = patchify(image, self.patch)  # [b g*g p*p*3]
        # Equals the release's convolution of stride p.
        patches = _dense(self.width, name="patch_embed", **dense)(patches)
        if hidden is not None:
            patches = jnp.where(hidden[..., None], 0, patches)
        init = nn.initializers.normal(self.token_std)
        shape = (self.tokens, self.width)
        latents = self.param("latent_tokens", init, shape)
        latents = latents + self.param("latent_positions", init, shape)
        latents = jnp.broadcast_to(latents, (image.shape[0], *shape))
        latents = latents.astype(self.dtype)
        x = jnp.concatenate([patches, latents], axis=1)  # [b g*g+n d]
        x = self.transform(x)[:, self.grid**2 :]  # [b n d], the latent tokens
        x = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm_post")(x)
        return _dense(2 * self.channels, name="out", **dense)(x.astype(self.dtype))


class Decoder(_Side):
    """Decoder from raw tokens, guided by text features, to images (not clamped)."""

    @nn.compact
    def __call__(self, tokens: Tokens, text_feats: TextFeatures) -> Image:
        dense = dict(std=self.kernel_std, dtype=self.dtype, layout=self.layout)
        init = nn.initializers.normal(self.token_std)
        shape = (self.tokens, self.width)
        mask = self.param("mask_token", init, (self.width,)).astype(self.dtype)
        x = _dense(self.width, name="embed", **dense)(tokens)
        x = x + self.param("latent_positions", init, shape).astype(self.dtype)[None]
        text = _dense(self.width, name="text_embed", **dense)(text_feats)
        text = text + self.param("text_positions", init, shape).astype(text.dtype)[None]
        masks = jnp.broadcast_to(mask, (x.shape[0], self.grid**2, self.width))
        x = jnp.concatenate([masks, x, text], axis=1)  # [b g*g+n+n d]
        x = self.transform(x)[:, : self.grid**2]  # [b g*g d], the image places
        x = nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm_post")(x)
        x = _dense(3 * self.patch**2, name="pixels", **dense)(x.astype(self.dtype))
        x = unpatchify(x, self.patch)
        # The release's `conv_out`, which works across the seams between patches.
        smooth = nn.Conv(3, (3, 3), dtype=self.dtype, name="smooth")
        return smooth(x).astype(jnp.float32)


class Tokenizer(nn.Module):
    """Encoder and decoder; the flow's tokens are raw tokens * latent_scale.

    `encoder` and `decoder` hold width, depth and heads. `token_std` is the initial
    deviation of the learned tokens and positions, `kernel_std` of the dense layers.
    """

    encoder: Mapping[str, int]
    decoder: Mapping[str, int]
    image_size: int = 256
    patch: int = 16
    tokens: int = 77
    channels: int = 16
    latent_scale: float = 1.0143
    token_std: float = 0.02
    kernel_std: float = 0.02
    dtype: DTypeLike = jnp.float32
    remat: str = "none"
    attention: str = "xla"
    layout: str = "batch"

    def setup(self):
        if self.image_size % self.patch:
            raise UserError(
                f"tokenizer.image_size is {self.image_size}; expected a multiple of "
                f"tokenizer.patch = {self.patch}"
            )
        shared = dict(
            grid=self.image_size // self.patch,
            patch=self.patch,
            tokens=self.tokens,
            channels=self.channels,
            token_std=self.token_std,
            kernel_std=self.kernel_std,
            dtype=self.dtype,
            remat=self.remat,
            attention=self.attention,
            layout=self.layout,
        )
        self._encoder = Encoder(**self.encoder, **shared, name="encoder")
        self._decoder = Decoder(**self.decoder, **shared, name="decoder")

    def encode(
        self, image: Image, hidden: Bool[Array, "b p"] | None = None
    ) -> Posterior:
        """Returns the posterior of the raw tokens of an image in [0, 1].

        Args:
            hidden: patches of which only the place is seen, row by row.
        """
        return Posterior.from_moments(self._encoder(image, hidden), clip=True)

    def decode(self, tokens: Tokens, text_feats: TextFeatures) -> Image:
        """Decodes raw tokens, guided by their caption; values may leave [0, 1]."""
        return self._decoder(tokens, text_feats)

    def __call__(self, image: Image, text_feats: TextFeatures) -> Image:
        """Reconstructs images from the posterior mean."""
        return self.decode(self.encode(image).mean, text_feats)
