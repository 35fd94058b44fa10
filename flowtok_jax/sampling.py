"""Pure functions of parameters that make up sampling, in both directions.

Each direction is one program, from its input to its output:

    text to image   ids -> features -> z_txt --flow--> z_img -> image
    image to text   image -> z_img --flow--> z_txt -> ids
"""

import logging
import math
import numbers
from collections.abc import Container, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float16, Int, UInt8

from flowtok_jax.array_types import (
    CaptionIds,
    Image,
    Params,
    RowKeys,
    TextFeatures,
    Tokens,
)
from flowtok_jax.flow import average_velocity, samplers
from flowtok_jax.models.build import Nets, has_group, take_group
from flowtok_jax.models.dit import average_modulations, modulations
from flowtok_jax.models.posterior import Posterior
from flowtok_jax.runtime.errors import UserError

SOURCES = ("sample", "mean")
T = TypeVar("T", bound=tuple)


def flow_group(flow: str, solver: str) -> str:
    """Returns the group whose network a solver runs: t2i, i2t or a distilled one."""
    return f"{flow}_distilled" if solver == samplers.AVERAGE else flow


class Direction(NamedTuple):
    """One way through the flow.

    Attributes:
        section: the section of a config with its options.
        groups: the groups of parameters that its program uses, of a distilled flow too,
            which has its source from there.
        flow: that of them which has the flow.
        takes_images: whether its rows are images, and not captions.
    """

    section: str
    groups: tuple[str, ...]
    flow: str
    takes_images: bool

    def groups_of(self, solver: str) -> tuple[str, ...]:
        """Returns the groups of parameters that its program uses with a solver."""
        return tuple(sorted({*self.groups, flow_group(self.flow, solver)}))


# By the name of the program, a method of `Programs`.
DIRECTIONS = {
    "text_to_image": Direction("sample", ("clip", "t2i", "tokenizer"), "t2i", False),
    "image_to_text": Direction(
        "caption", ("i2t", "text_tokenizer", "tokenizer"), "i2t", True
    ),
}


def change_options(options: T, changes: dict[str, Any]) -> T:
    """Returns a named tuple of options with some of them replaced.

    Raises:
        UserError: where there is no such option.
    """
    if unknown := sorted(set(changes) - set(options._fields)):
        raise UserError(
            f"no option {', '.join(unknown)}; expected some of "
            f"{', '.join(options._fields)}"
        )
    return options._replace(**changes)


class SampleOptions(NamedTuple):
    """The way the flow is run; each choice of options is one compiled program.

    Attributes:
        num_steps: steps of the solver.
        scale: strength of the guidance, 1 for none.
        source: "sample" starts from a draw of the source's posterior (diversity),
            "mean" from its mean (one result a caption or image).
        solver: a name of samplers.SOLVERS; or "average", by the distilled flow, whose
            steps are one call each, with the guidance that it was trained for.
        times: a name of samplers.TIMES, the grid of the steps; not of "average".
        batch_size: rows of the program.
        candidates: captions of each image, drawn from as many seeds, of which the one
            is kept that text to image draws nearest to the image; 1 of text to image.
    """

    num_steps: int = 20
    scale: float = 2.0
    source: str = "sample"
    solver: str = "euler"
    times: str = "release"
    batch_size: int = 64
    candidates: int = 1

    def changed(self, changes: dict[str, Any]) -> "SampleOptions":
        """Returns the options with some of them replaced.

        Raises:
            UserError: where there is no such option, or a value is wrong.
        """
        return change_options(self, changes).check()

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
            "solver": (*samplers.SOLVERS, samplers.AVERAGE),
            "times": samplers.TIMES,
        }
        for field, choices in known.items():
            if getattr(self, field) not in choices:
                raise UserError(
                    f"{prefix}{field} is {getattr(self, field)!r}; expected one of "
                    f"{', '.join(choices)}"
                )
        for field in ("num_steps", "batch_size", "candidates"):
            value = getattr(self, field)
            is_whole = isinstance(value, numbers.Integral) and value is not True
            if not is_whole or value < 1:
                expected = "expected at least 1" if is_whole else "expected an integer"
                raise UserError(f"{prefix}{field} is {value}; {expected}")
        if not isinstance(self.scale, numbers.Real) or not math.isfinite(self.scale):
            raise UserError(
                f"{prefix}scale is {self.scale}; expected a number, 1 for no guidance"
            )
        if self.candidates > 1 and section == "sample":
            raise UserError(
                f"sample.candidates is {self.candidates}; expected 1: captions alone "
                "are chosen among several"
            )
        if self.candidates > 1 and self.source == "mean":
            raise UserError(
                f"{prefix}candidates is {self.candidates} and {prefix}source is mean, "
                "from which all of them are alike; expected source=sample"
            )
        return self


def choose_without_judge(
    caption: SampleOptions, sample: SampleOptions, groups: Container[str]
) -> SampleOptions:
    """Returns a model's options of captions: one candidate where nothing can choose.

    Args:
        sample: options of text to image, which chooses.
        groups: of parameters that the model has.
    """
    judge = flow_group("t2i", sample.solver)
    if caption.candidates == 1 or has_group(judge, groups):
        return caption
    logging.warning(
        "caption.candidates is %d, and these weights have no %s to choose by: an image "
        "gets one caption",
        caption.candidates,
        judge,
    )
    return caption._replace(candidates=1)


def noise_key(seed: int | Sequence[int]) -> np.ndarray:
    """Returns the data of a seed's key, as the programs of both directions take it.

    Of a sequence of seeds, one a row, the keys are stacked: [b 2].
    """
    if isinstance(seed, Sequence):
        return np.stack([noise_key(own) for own in seed])
    return np.asarray(jax.random.key_data(jax.random.key(seed)))


def row_noise(
    key: RowKeys, rows: Int[np.ndarray | Array, " b"], shape: tuple[int, ...]
) -> Float[Array, "b *shape"]:
    """Draws the noise of rows; a row's key and number, not its batch, decide it."""

    # A key a row: one draw of the whole batch would change with its size.
    def draw(own: RowKeys, row: Int[Array, ""]) -> Array:
        return jax.random.normal(jax.random.fold_in(own, row), shape)

    of_all = None if key.ndim < 2 else 0  # one key for all rows, or one a row
    return jax.vmap(draw, (of_all, 0))(key, rows)


def _start(
    posterior: Posterior, key: RowKeys, rows: Int[Array, " b"], source: str
) -> Tokens:
    """Draws the flow's source."""
    if source == "mean":
        return posterior.mean
    return posterior.at(row_noise(key, rows, posterior.mean.shape[1:]))


def guided_flow(
    nets: Nets, params: Params, flow: str, scale: float
) -> tuple[samplers.Velocity, samplers.Prepare]:
    """Returns the guided velocity of a flow, and what prepares its times.

    A DiT's modulations depend on time only, so they are computed once, before the
    steps, and not in every step for every row.

    Args:
        flow: t2i or i2t.
    """
    dit = take_group(params, flow)["dit"]
    velocity = samplers.guided(
        lambda z, at, null: nets.dit.apply({"params": dit}, z, at, null), scale
    )
    return velocity, lambda t: modulations(nets.dit, dit, t)


def _flow(
    nets: Nets, params: Params, flow: str, z_src: Tokens, options: SampleOptions
) -> Tokens:
    """Solves the flow from its source to its end, guided.

    Args:
        flow: t2i or i2t.
    """
    if options.solver == samplers.AVERAGE:
        student = take_group(params, flow_group(flow, options.solver))["student"]
        return average_velocity.average_steps(
            lambda z, at: nets.student.apply({"params": student}, z, at),
            z_src,
            options.num_steps,
            lambda t: average_modulations(nets.student, student, t, options.scale),
        )
    velocity, prepare = guided_flow(nets, params, flow, options.scale)
    solve = samplers.SOLVERS[options.solver]
    return solve(velocity, z_src, options.num_steps, options.times, prepare)


class Programs(NamedTuple):
    """The functions of one set of networks; `params` maps groups to parameters."""

    nets: Nets
    text_scale: float = 1.0

    def _features(
        self, params: Params, ids: CaptionIds, group: str = "clip"
    ) -> TextFeatures:
        tower = {"params": take_group(params, group)["clip"]}
        return self.nets.clip.apply(tower, ids)

    def project(self, params: Params, ids: CaptionIds) -> Posterior:
        """Encodes captions as the posterior of text to image's source."""
        return self._project(params, "t2i", ids, self._features(params, ids))

    def _project(
        self, params: Params, group: str, ids: CaptionIds, text_feats: TextFeatures
    ) -> Posterior:
        """Encodes captions, whose features by the frozen tower are there already."""
        own = take_group(params, group)
        if "clip" in own:
            text_feats = self._features(params, ids, group)
        return self.nets.projector.apply({"params": own["projector"]}, text_feats)

    def encode(self, params: Params, images: Image) -> Posterior:
        """Encodes images as the posterior of their raw tokens."""
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
        """Decodes raw tokens to images, with their captions."""
        return self._decode_image(params, tokens, self._features(params, ids))

    def _decode_image(
        self, params: Params, tokens: Tokens, text_feats: TextFeatures
    ) -> Image:
        tokenizer = {"params": params["tokenizer"]["tokenizer"]}
        image = self.nets.tokenizer.apply(
            tokenizer, tokens, text_feats, method="decode"
        )
        return jnp.clip(image, 0.0, 1.0)

    def _decode_text(self, params: Params, tokens: Tokens) -> CaptionIds:
        # The decoder reads tokens of the projector that it was trained with.
        own = take_group(params, "text_tokenizer")
        decoder = {"params": own["text_decoder"]}
        return self.nets.text_decoder.apply(decoder, tokens).argmax(-1)

    def reconstruct_text(self, params: Params, ids: CaptionIds) -> CaptionIds:
        """Sends captions through the text tokenizer and back."""
        text_feats = self._features(params, ids)
        posterior = self._project(params, "text_tokenizer", ids, text_feats)
        return self._decode_text(params, posterior.mean)

    def text_to_image(
        self,
        params: Params,
        ids: CaptionIds,
        key: RowKeys,
        rows: Int[Array, " b"],
        *,
        options: SampleOptions,
    ) -> Image:
        """Draws images of captions; key and row number decide the noise."""
        text_feats = self._features(params, ids)
        tokens = self._draw(params, ids, text_feats, key, rows, options)
        return self._decode_image(params, tokens, text_feats)

    def draw_from(
        self,
        params: Params,
        ids: CaptionIds,
        z_txt: Tokens,
        key: RowKeys,
        rows: Int[Array, " b"],
        *,
        options: SampleOptions,
    ) -> tuple[Image, Tokens]:
        """Draws images and their raw tokens from sources, decoded with captions."""
        del key, rows  # the sources have their noise
        z_img = _flow(self.nets, params, "t2i", z_txt, options)
        tokens = z_img / self.nets.tokenizer.latent_scale
        return self.decode(params, tokens, ids), tokens

    def drawing_error(
        self,
        params: Params,
        ids: CaptionIds,
        images: Image,
        key: RowKeys,
        rows: Int[Array, " b"],
        *,
        options: SampleOptions,
    ) -> Float[Array, " b"]:
        """Returns mean squared errors of the tokens drawn of captions to images'."""
        text_feats = self._features(params, ids)
        # Tokens are compared, so that no decoder has to run and blur both.
        drawn = self._draw(params, ids, text_feats, key, rows, options)
        own = self.encode(params, images).mean
        return jnp.square(drawn - own).mean((1, 2))

    def _draw(
        self,
        params: Params,
        ids: CaptionIds,
        text_feats: TextFeatures,
        key: RowKeys,
        rows: Int[Array, " b"],
        options: SampleOptions,
    ) -> Tokens:
        posterior = self._project(params, "t2i", ids, text_feats)
        z_txt = _start(posterior, key, rows, options.source)
        z_img = _flow(self.nets, params, "t2i", z_txt, options)
        # The flow runs on scaled tokens, the decoder takes raw ones.
        return z_img / self.nets.tokenizer.latent_scale

    def image_to_text(
        self,
        params: Params,
        images: Image,
        key: RowKeys,
        rows: Int[Array, " b"],
        *,
        options: SampleOptions,
    ) -> CaptionIds:
        """Captions images; key and row number decide the noise."""
        posterior = self.encode(params, images)
        raw = _start(posterior, key, rows, options.source)
        z_img = raw * self.nets.tokenizer.latent_scale
        z_txt = _flow(self.nets, params, "i2t", z_img, options)
        return self._decode_text(params, z_txt / self.text_scale)
