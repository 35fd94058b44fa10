"""What sampling computes, as pure functions of parameters.

text to image   ids -> features -> z_txt --flow--> z_img -> image
image to text   image -> z_img --flow--> z_txt -> ids
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float16, Int, UInt8

from flowtok_jax.array_types import CaptionIds, Image, Key, Params, TextFeatures, Tokens
from flowtok_jax.flow import samplers
from flowtok_jax.models.build import Nets
from flowtok_jax.models.dit import modulations
from flowtok_jax.models.posterior import Posterior
from flowtok_jax.runtime.errors import UserError

SOURCES = ("sample", "mean")


class Direction(NamedTuple):
    """One way through the flow.

    Attributes:
        section: the section of a config with its options.
        groups: the groups of parameters that its program uses.
        takes_images: whether its rows are images, and not captions.
    """

    section: str
    groups: tuple[str, ...]
    takes_images: bool


# By the name of the program, a method of `Programs`.
DIRECTIONS = {
    "text_to_image": Direction("sample", ("clip", "t2i", "tokenizer"), False),
    "image_to_text": Direction("caption", ("i2t", "text_tokenizer", "tokenizer"), True),
}


class SampleOptions(NamedTuple):
    """How the flow is run; one of these, and one batch size, is one compiled program.

    `scale` is that of the guidance, 1 for none. `source` starts from a sample of the
    source's posterior (diversity) or from its mean (one result a caption or image).
    """

    num_steps: int = 20
    scale: float = 2.0
    source: str = "sample"
    solver: str = "euler"
    times: str = "release"
    batch_size: int = 64

    def check(self, section: str = "") -> "SampleOptions":
        """Validates the options and returns them unchanged.

        Args:
            section: of the config that they are from, if any: sample or caption.

        Raises:
            UserError: naming the option, as SECTION.OPTION if it is from a config.
        """
        prefix = f"{section}." if section else ""
        known = {
            "source": SOURCES,
            "solver": tuple(samplers.SOLVERS),
            "times": samplers.TIMES,
        }
        for field, choices in known.items():
            if getattr(self, field) not in choices:
                raise UserError(
                    f"{prefix}{field} is {getattr(self, field)!r}; expected one of "
                    f"{', '.join(choices)}"
                )
        for field in ("num_steps", "batch_size"):
            if getattr(self, field) < 1:
                raise UserError(
                    f"{prefix}{field} is {getattr(self, field)}; expected at least 1"
                )
        return self


def _start(
    posterior: Posterior, key: Key, rows: Int[Array, " b"], source: str
) -> Tokens:
    """The flow's source; the noise of a row depends on its number, not on the batch."""
    if source == "mean":
        return posterior.mean
    shape = posterior.mean.shape[1:]
    noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))
    return posterior.mean + posterior.std * noise(rows)


def _flow(nets: Nets, dit: Params, z_src: Tokens, options: SampleOptions) -> Tokens:
    """The flow's end; the DiT's modulations, the same for all rows, are computed before
    its steps.
    """
    velocity = samplers.guided(
        lambda z, at, null: nets.dit.apply({"params": dit}, z, at, null), options.scale
    )
    return samplers.SOLVERS[options.solver](
        velocity,
        z_src,
        options.num_steps,
        options.times,
        prepare=lambda t: modulations(nets.dit, dit, t),
    )


class Programs(NamedTuple):
    """The functions of one set of networks; `params` holds groups of parameters."""

    nets: Nets
    text_scale: float = 1.0

    def _features(self, params: Params, ids: CaptionIds) -> TextFeatures:
        return self.nets.clip.apply({"params": params["clip"]["clip"]}, ids)

    def _project(self, params: Params, group: str, ids: CaptionIds) -> Posterior:
        projector = {"params": params[group]["projector"]}
        return self.nets.projector.apply(projector, self._features(params, ids))

    def project(self, params: Params, ids: CaptionIds) -> Posterior:
        """The source of text to image."""
        return self._project(params, "t2i", ids)

    def encode(self, params: Params, images: Image) -> Posterior:
        """The raw tokens of images."""
        tokenizer = {"params": params["tokenizer"]["tokenizer"]}
        return self.nets.tokenizer.apply(tokenizer, images, method="encode")

    def moments(
        self, params: Params, pixels: UInt8[Array, "b s s 3"]
    ) -> Float16[Array, "b n cc"]:
        """Computes [mean | logvar] of images' raw tokens, as shards store them."""
        posterior = self.encode(params, pixels.astype(jnp.float32) / 255)
        moments = jnp.concatenate([posterior.mean, posterior.logvar], axis=-1)
        return moments.astype(jnp.float16)

    def decode(self, params: Params, tokens: Tokens, ids: CaptionIds) -> Image:
        """Images of raw tokens, guided by captions."""
        tokenizer = {"params": params["tokenizer"]["tokenizer"]}
        text_feats = self._features(params, ids)
        image = self.nets.tokenizer.apply(
            tokenizer, tokens, text_feats, method="decode"
        )
        return jnp.clip(image, 0.0, 1.0)

    def _decode_text(self, params: Params, tokens: Tokens) -> CaptionIds:
        decoder = {"params": params["text_tokenizer"]["text_decoder"]}
        return self.nets.text_decoder.apply(decoder, tokens).argmax(-1)

    def reconstruct_text(self, params: Params, ids: CaptionIds) -> CaptionIds:
        """Captions through the text tokenizer and back."""
        posterior = self._project(params, "text_tokenizer", ids)
        return self._decode_text(params, posterior.mean)

    def text_to_image(
        self,
        params: Params,
        ids: CaptionIds,
        key: Key,
        rows: Int[Array, " b"],
        *,
        options: SampleOptions,
    ) -> Image:
        """Images of captions; the noise is that of (key, row number)."""
        posterior = self.project(params, ids)
        z_txt = _start(posterior, key, rows, options.source)
        z_img = _flow(self.nets, params["t2i"]["dit"], z_txt, options)
        return self.decode(params, z_img / self.nets.tokenizer.latent_scale, ids)

    def image_to_text(
        self,
        params: Params,
        images: Image,
        key: Key,
        rows: Int[Array, " b"],
        *,
        options: SampleOptions,
    ) -> CaptionIds:
        """Captions of images; the noise is that of (key, row number)."""
        posterior = self.encode(params, images)
        z_img = _start(posterior, key, rows, options.source)
        z_img = z_img * self.nets.tokenizer.latent_scale
        z_txt = _flow(self.nets, params["i2t"]["dit"], z_img, options)
        return self._decode_text(params, z_txt / self.text_scale)
