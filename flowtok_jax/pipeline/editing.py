"""Editing by a trained FlowTok: between pictures, around one, and from one to another.

A picture goes back along the flow of text to image to time t, is changed where captions
live, and comes forth again. An edit goes to t = 0, where the noise that a picture has
beyond its caption is kept in part, and draws from there as text to image does; of a
real picture the noise is longer than draws are, and made as long as they:

    e = (z - mean_old) / std_old                                                    (1)
    z <- mean_new + std_new (1 - strength) e / max(1, rms e)                        (2)

A variation goes to t = 1 - strength, where noise of the source is seen by its share,
and comes forth as it went back:

    z_t <- z_t + (1 - t) std * noise                                                (3)
"""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from flowtok_jax.array_types import Image
from flowtok_jax.data.inputs import check_prompts
from flowtok_jax.flow import editing
from flowtok_jax.flow.average_velocity import teacher_options
from flowtok_jax.flow.samplers import AVERAGE
from flowtok_jax.models.build import Nets
from flowtok_jax.models.posterior import Posterior
from flowtok_jax.pipeline.edit_programs import EditOptions, EditPrograms, check_share
from flowtok_jax.runtime.config import check_seed, choose_seeds
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.sampling import (
    Programs,
    SampleOptions,
    change_options,
    flow_group,
    noise_key,
    row_noise,
)

CLOSED = 1e-3  # relative L2 above which a closed loop is warned of
OPERATORS = re.compile(r"(?:^|\s)([+-])\s+")  # a hyphen inside a word is none


class Strips(NamedTuple):
    """Rows of pictures with captions, and how well each row holds.

    Attributes:
        images: in [0, 1].
        captions: of each row, one a picture.
        values: a number a row; `measure` says which.
        sources: tokens at the start of the way of each row, where there is one.
    """

    images: Float[np.ndarray, "b k s s 3"]
    captions: list[list[str]]
    measure: str
    values: Float[np.ndarray, " b"]
    sources: Float[np.ndarray, "b n c"] | None = None


class Editing:
    """The part of `FlowTok` that edits."""

    # Of FlowTok, which this is a part of.
    nets: Nets
    sample: SampleOptions
    losses: Mapping[str, Any]
    text_to_image: Callable[..., np.ndarray]
    image_to_text: Callable[..., list[str]]
    encode_text: Callable[[Iterable[str]], Posterior]
    encode_image: Callable[[Any], Posterior]
    decode_image: Callable[..., Image]
    changed: Callable[..., SampleOptions]
    _programs: Programs
    _need: Callable[[str, str], None]
    _ids: Callable[[object], np.ndarray]
    _images: Callable[[object], np.ndarray]
    _in_batches: Callable[..., Any]

    def interpolate(
        self,
        prompts: Iterable[str] | None = None,
        images: Any = None,
        *,
        steps: int = 7,
        seed: int = 0,
        **options,
    ) -> Strips:
        """Goes from each prompt, or image, to the next one.

        Between draws of a source it goes along an arc, between means along a line. The
        number is the evenness of the steps between the pictures' tokens: their mean
        over the largest one.

        Args:
            prompts: two or more; with images their captions, else they are read.
            steps: pictures of a row, the ends among them.
            options: fields of SampleOptions that replace the object's own.
        """
        chosen = self.changed(self.sample, options)
        if not isinstance(steps, int) or steps < 2:
            raise UserError(f"steps is {steps!r}; expected an integer from 2")
        if images is None:
            captions = check_prompts(() if prompts is None else prompts)
            posterior = self.encode_text(captions)
        else:
            pictures = self._images(images)
            captions = self._captions(pictures, prompts)
            posterior = self.encode_image(pictures)
        if len(captions) < 2:
            raise UserError("one prompt or image; expected two or more to go between")
        # Of an image the tokens themselves, of a prompt what the flow starts from.
        z = _between(posterior, steps, seed, chosen.source)
        nearer = np.arange(steps) >= steps / 2  # the second end is
        pairs = zip(captions[:-1], captions[1:], strict=True)
        texts = [[pair[int(k)] for k in nearer] for pair in pairs]
        flat = [text for row in texts for text in row]
        if images is None:
            drawn, tokens = self._draw_from(flat, z, chosen)
        else:
            drawn = np.asarray(self.decode_image(z, flat))
            tokens = z
        tokens = tokens.reshape(-1, steps, z.shape[1] * z.shape[2])
        gaps = np.linalg.norm(np.diff(tokens, axis=1), axis=-1)  # [b k-1]
        even = gaps.mean(1) / np.maximum(gaps.max(1), 1e-12)
        return Strips(_in_strips(drawn, steps), texts, "evenness of the steps", even)

    def vary(
        self,
        images: Any,
        captions: str | Iterable[str] | None = None,
        *,
        seed: int = 0,
        num_images: int = 3,
        strength: float = 0.3,
        **options,
    ) -> Strips:
        """Draws variations of images: some way back, noise (3), and forth again.

        The number is the relative L2 between tokens of image and variations, in the
        mean of these.

        Args:
            captions: of the images, one for all or one each; read where not given.
            num_images: variations of each image, of the seeds `seed`, `seed` + 1, ...
            strength: share of the path that is gone back, from 0 to 1.
            options: fields of EditOptions but for `way`.
        """
        chosen = self._chosen(options, way=strength)
        seeds = choose_seeds(seed, num_images)
        pictures = self._images(images)
        captions = self._captions(pictures, captions)
        state, own, _, _ = self._back(pictures, captions, chosen)
        std = np.asarray(self.encode_text(captions).std)
        columns = [pictures]
        changes = []
        for s in seeds:
            noise = (1 - chosen.span[0]) * std * _draw_noise(s, std)
            moved = tuple(z + noise for z in state)  # (3)
            drawn, tokens = self._forth(captions, moved, chosen)
            columns.append(drawn)
            changes.append(editing.relative_l2(tokens, own))
        texts = [[c, *(f"seed {s}" for s in seeds)] for c in captions]
        values = np.mean(changes, axis=0)
        return Strips(np.stack(columns, 1), texts, "change, relative L2", values)

    def invert(
        self, images: Any, captions: str | Iterable[str] | None = None, **options
    ) -> Strips:
        """Finds the sources that images come from, and draws them from there again.

        The number is the closed loop's relative L2, of tokens; above 1e-3 it is warned
        of.

        Args:
            captions: of the images, one for all or one each; read where not given.
            options: fields of EditOptions.
        """
        chosen = self._chosen(options)
        pictures = self._images(images)
        captions = self._captions(pictures, captions)
        state, _, copies, errors = self._back(pictures, captions, chosen)
        texts = [[c, "there and back"] for c in captions]
        columns = np.stack([pictures, copies], 1)
        return Strips(columns, texts, "closed loop, relative L2", errors, state[-1])

    def edit(
        self,
        images: Any,
        before: str | Iterable[str] | None,
        after: str | Iterable[str],
        *,
        strength: float = 0.5,
        **options,
    ) -> Strips:
        """Changes images from what one caption says to what another one says, by (2).

        They are drawn with the object's own options but for `scale`. The number is that
        of `invert`.

        Args:
            before: captions of the images, one for all or one each; read where None.
            after: what is wanted.
            strength: share of a picture's own noise that is left out, from 0 to 1,
                which draws what `text_to_image` draws from the mean, with that scale.
            options: fields of EditOptions but for `way`.
        """
        check_share("strength", strength)
        chosen = self._chosen(options, way=1.0)
        pictures = self._images(images)
        before = self._captions(pictures, before)
        after = self._captions(pictures, after)
        state, _, copies, errors = self._back(pictures, before, chosen)
        old, new = (self.encode_text(captions) for captions in (before, after))
        noise = (state[-1] - np.asarray(old.mean)) / np.asarray(old.std)  # (1)
        length = np.sqrt(np.square(noise).mean((1, 2), keepdims=True))
        kept = (1 - strength) * noise / np.maximum(length, 1)
        z_new = np.asarray(new.at(jnp.asarray(kept)))  # (2)
        # Guidance would pull at all of the picture, not at what is asked alone, and a
        # student has it inside.
        drawing = self.sample
        if drawing.solver == AVERAGE:
            teacher = teacher_options(self.losses, "t2i_distilled")
            drawing = drawing._replace(**teacher)
        drawing = drawing._replace(scale=chosen.scale)
        drawn, _ = self._draw_from(after, z_new, drawing)
        texts = [[b, "there and back", a] for b, a in zip(before, after, strict=True)]
        columns = np.stack([pictures, copies, drawn], 1)
        return Strips(columns, texts, "closed loop, relative L2", errors, state[-1])

    def combine(
        self, expression: str, expected: str | None = None, **options
    ) -> Strips:
        """Draws from a sum of the means of captions, as "king - man + woman".

        The number is the relative L2 from the sum to the mean of the expected caption.

        Args:
            expected: what the sum should be; read off its own picture where None.
            options: fields of SampleOptions that replace the object's own.
        """
        chosen = self.changed(self.sample, options)
        signs, terms = parse_sum(expression)
        means = np.asarray(self.encode_text(terms).mean)
        z = np.tensordot(signs, means, 1)[None]  # [1 n c]
        if expected is None:
            blind, _ = self._draw_from([""], z, chosen)
            (expected,) = self.image_to_text(blind)  # its picture, without a caption
        wanted = np.asarray(self.encode_text([expected]).mean)
        # The decoder sees a caption too: the sum's is the one that it should be.
        names = [*terms, expected, expected]
        drawn, _ = self._draw_from(names, np.concatenate([means, z, wanted]), chosen)
        texts = [*terms, expression, f"drawn of: {expected}"]
        away = editing.relative_l2(z, wanted)
        measure = "from the expected mean, relative L2"
        return Strips(drawn[None], [texts], measure, np.asarray(away), z)

    def round_trip(self, images: Any, seed: int = 0, **options) -> Strips:
        """Describes images and draws them from what was said.

        The number is the relative L2 between tokens of both.

        Args:
            options: fields of SampleOptions that replace the object's own in drawing.
        """
        self.changed(self.sample, options)  # refuses other names before it describes
        pictures = self._images(images)
        said = self.image_to_text(pictures, seed)
        drawn = self.text_to_image(said, seed, **options)
        own, new = (np.asarray(self.encode_image(x).mean) for x in (pictures, drawn))
        texts = [["", caption] for caption in said]
        values = np.asarray(editing.relative_l2(new, own))
        columns = np.stack([pictures, drawn], 1)
        return Strips(columns, texts, "change, relative L2", values)

    def _chosen(self, options: dict[str, Any], **fixed: float) -> EditOptions:
        """Returns options of the way; some are fixed, and refused where given."""
        self._need("t2i", "editing")
        if given := fixed.keys() & options.keys():
            raise UserError(f"no option {', '.join(given)} here; expected strength")
        return change_options(EditOptions(**fixed), options).check()

    def _captions(
        self, pictures: np.ndarray, captions: str | Iterable[str] | None
    ) -> list[str]:
        """Returns a caption an image: those given, one for all, or read."""
        if captions is None:
            return self.image_to_text(pictures)
        count = len(pictures)
        one_for_all = isinstance(captions, str)
        found = check_prompts([captions] * count if one_for_all else captions)
        if len(found) != count:
            raise UserError(
                f"{len(found)} captions of {count} images; expected one each, or one "
                "for all"
            )
        return found

    def _back(
        self, pictures: np.ndarray, captions: Sequence[str], options: EditOptions
    ):
        program = EditPrograms(self.nets, self._programs).way_back
        inputs = (pictures, self._ids(captions))
        state, own, copies, errors = self._in_batches(program, inputs, 0, 0, options)
        far = ~(errors <= CLOSED)  # what is no number too
        if far.any():
            logging.warning(
                "the way back and forth does not close for %d of %d images: relative "
                "L2 up to %.2g, expected at most %g; take more num_steps or another "
                "solver",
                far.sum(),
                len(errors),
                errors.max(),
                CLOSED,
            )
        return state, own, copies, errors

    def _forth(self, captions: Sequence[str], state: tuple, options: EditOptions):
        program = EditPrograms(self.nets, self._programs).way_forth
        return self._in_batches(program, (self._ids(captions), *state), 0, 0, options)

    def _draw_from(
        self, captions: Sequence[str], z: np.ndarray, options: SampleOptions
    ):
        self._need(flow_group("t2i", options.solver), "text to image")
        program = self._programs.draw_from
        return self._in_batches(program, (self._ids(captions), z), 0, 0, options)


def _draw_noise(seed: int, like: np.ndarray) -> np.ndarray:
    """Draws noise for arrays of tokens, as text to image does for as many prompts."""
    key = jnp.asarray(noise_key(check_seed("seed", seed)))
    return np.asarray(row_noise(key, np.arange(len(like)), like.shape[1:]))


def _between(
    posterior: Posterior, steps: int, seed: int, source: str
) -> Float[np.ndarray, "k n c"]:
    """Returns points between neighbouring rows of a posterior, pair by pair."""
    mean = np.asarray(posterior.mean)
    std = np.asarray(posterior.std)
    noise = _draw_noise(seed, mean)
    shares = np.linspace(0, 1, steps)
    found = []
    for i in range(len(mean) - 1):
        z = editing.linear(mean[i], mean[i + 1], shares)
        if source == "sample":
            spread = editing.linear(std[i], std[i + 1], shares)
            z = z + spread * editing.spherical(noise[i], noise[i + 1], shares)
        found.append(z)
    return np.concatenate(found).astype(np.float32)


def _in_strips(images: np.ndarray, columns: int) -> np.ndarray:
    return images.reshape(-1, columns, *images.shape[1:])


def parse_sum(expression: str) -> tuple[np.ndarray, list[str]]:
    """Splits "a - b + c" into signs and captions.

    Raises:
        UserError: where a term is missing.
    """
    # The first term may have a sign of its own, as in "- a + b".
    first, *rest = OPERATORS.split(f"+ {expression.strip()}".replace("+ -", "-", 1))
    signs = np.array([1.0 if sign == "+" else -1.0 for sign in rest[::2]], np.float32)
    terms = [term.strip() for term in rest[1::2]]
    twice = any(OPERATORS.match(term) for term in terms)  # a sign after a sign
    if first or twice or not all(terms) or len(terms) < 2:
        raise UserError(
            f"{expression[:60]!r} is no sum of captions; expected some with + or - "
            "between them, as 'king - man + woman'"
        )
    return signs, terms
