"""The image tokenizer: image -> tokens -> image, guided by its caption.

    L = mean (decoded - image)^2 + kl_weight * KL + lpips_weight * LPIPS
        + convnext_weight * mean (ConvNeXt(image) - ConvNeXt(decoded))^2
        - gan_weight * mean D(decoded)                                          (1)

(TA-TiTok's release, `modeling/modules/losses.py`; KL forms are in tasks/losses.py.) D
is a discriminator that learns beside the tokenizer, see tasks/adversarial.py. A term
whose weight is 0 is not computed.

As in l-DeTok (arXiv:2507.15856) the decoder may learn from disturbed tokens,

    z' = (1 - a) z + a * noise * std(z) * eps,  a ~ U(0, 1) a row,              (2)

and the encoder from images with a share of the patches hidden; in training only.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from flowtok_jax.array_types import Image, Key, Params, Tokens
from flowtok_jax.models.build import Nets
from flowtok_jax.models.convnext import ConvNeXt
from flowtok_jax.models.critics import LPIPS
from flowtok_jax.models.posterior import Posterior
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import losses
from flowtok_jax.tasks.accumulate import accumulate, by_parts
from flowtok_jax.tasks.adversarial import (
    GanOptions,
    make_adversarial_trainer,
    make_discriminator,
)
from flowtok_jax.tasks.base import (
    Batch,
    Preview,
    PreviewModel,
    Scalars,
    Task,
    draw_noise,
    latent_scalars,
    text_features,
    to_floats,
)
from flowtok_jax.tasks.state import Trainer
from flowtok_jax.tasks.step import make_single_trainer

Judge = Callable[[Params, Image, Image], Float[Array, " b"]]
ALL = "all"
DECODER = "decoder"
# Numbers folded into a step's key for draws that came later than its first two.
DISTURBED = 2
HIDDEN = 3


def draw_given(
    frozen: Params,
    batch: Batch,
    key: Key,
    *,
    nets: Nets,
    caption_dropout: float,
    noise: float,
    hidden: tuple[float, float],
) -> Batch:
    """Draws what (1) depends on by chance, for the whole batch at once.

    A share `caption_dropout` of the rows decodes without caption: otherwise the decoder
    reads the caption, and the tokens need not carry the image.
    """
    keys = dict(zip(("drop", "sample"), jax.random.split(key), strict=True))
    text_feats = text_features(nets, frozen, batch)
    rows = text_feats.shape[0]
    kept = jax.random.bernoulli(keys["drop"], 1 - caption_dropout, (rows, 1, 1))
    given = {
        "image": batch["image"],
        "text_feats": jnp.where(kept, text_feats, 0),
        "noise": draw_noise(nets, keys["sample"], rows),
    }
    if noise:
        one, two = jax.random.split(jax.random.fold_in(key, DISTURBED))
        given["share"] = jax.random.uniform(one, (rows, 1, 1))
        given["disturbance"] = draw_noise(nets, two, rows)
    if any(hidden):
        one, two = jax.random.split(jax.random.fold_in(key, HIDDEN))
        low, high = hidden
        # A share below 0 hides nothing.
        share = jax.random.uniform(one, (rows, 1), minval=low, maxval=high)
        places = (nets.tokenizer.image_size // nets.tokenizer.patch) ** 2
        given["hidden"] = jax.random.uniform(two, (rows, places)) < share
    return given


def disturb(tokens: Tokens, given: Batch, noise: float) -> Tokens:
    """Computes (2)."""
    # The spread only scales: no gradient asks for tokens that drown the noise.
    spread = jax.lax.stop_gradient(tokens.std((1, 2), keepdims=True))
    return tokens + given["share"] * (noise * spread * given["disturbance"] - tokens)


class JudgeOptions(NamedTuple):
    """The section `judges` of the losses; see configs/default.py."""

    lpips_weight: float
    convnext_weight: float
    dtype: str
    parts: int
    remat: bool


def make_judges(
    judges: JudgeOptions,
    gan: GanOptions,
    is_judged: Bool[Array, ""] | bool,
    lpips: LPIPS | None = None,
    convnext: ConvNeXt | None = None,
) -> dict[str, tuple[float, Judge]]:
    """Makes the terms of (1) that networks judge, by the networks' names.

    Args:
        is_judged: whether the discriminator has begun.
        lpips: the network, if its sizes are not the published ones.
        convnext: likewise.

    Returns:
        Weight and judge of each term with a weight.
    """
    dtype = jnp.dtype(judges.dtype)
    options = {"dtype": dtype, "remat": judges.remat}
    lpips = (lpips or LPIPS()).clone(**options)
    convnext = (convnext or ConvNeXt()).clone(**options)
    # Remat saves the discriminator nothing: most of its memory is in one layer.
    discriminator = make_discriminator(gan, dtype)

    def perceptual(params, image, made):
        return lpips.apply({"params": params}, image, made)

    def logits(params, image, made):
        known, found = (convnext.apply({"params": params}, x) for x in (image, made))
        # The image's side is a constant, whose layers the backward pass leaves out.
        return jnp.square(jax.lax.stop_gradient(known) - found).mean(1)

    def adversarial(params, image, made):
        def judge(x):
            return -discriminator.apply({"params": params}, x).mean((1, 2))

        # A branch, so that the steps before the discriminator begins pay nothing.
        return jax.lax.cond(is_judged, judge, lambda x: jnp.zeros(len(x)), made)

    found = {
        "lpips": (judges.lpips_weight, perceptual),
        "convnext": (judges.convnext_weight, logits),
        "gan": (gan.weight, adversarial),
    }
    return {
        name: (weight, by_parts(judge, judges.parts))
        for name, (weight, judge) in found.items()
        if weight
    }


def reconstruction_terms(
    trained: Params,
    frozen: Params,
    given: Batch,
    *,
    nets: Nets,
    kl: str,
    kl_weight: float,
    judges: Mapping[str, tuple[float, Judge]],
    noise: float = 0.0,
    trains: str = ALL,
    parts: int = 1,
) -> tuple[Float[Array, ""], tuple[Scalars, Image]]:
    """Computes (1) of what `draw_given` gives, by the judges of `make_judges`.

    Returns:
        The loss; its terms, and the reconstructions.
    """
    rows = given["noise"].shape[0]

    def rows_loss(params, _, rest, key):
        apply = functools.partial(nets.tokenizer.apply, {"params": params})
        image = to_floats(rest["image"])
        posterior = apply(image, rest.get("hidden"), method="encode")
        if trains == DECODER:
            posterior = jax.lax.stop_gradient(posterior)
        tokens = posterior.at(rest["noise"])
        if noise:
            tokens = disturb(tokens, rest, noise)
        made = apply(tokens, rest["text_feats"], method="decode")
        mse = losses.reconstruction_loss(made, image)
        moments = posterior.mean, posterior.logvar
        value = mse.mean() + kl_weight * losses.kl_loss(*moments, kl, rows)
        judged = {}
        for name, (weight, judge) in judges.items():
            judged[name] = judge(frozen[name], image, made)
            value += weight * judged[name].mean()
        return value, (mse, moments, judged, made)

    loss, (mse, moments, judged, made) = accumulate(rows_loss, parts)(
        trained["tokenizer"], (), given, jax.random.key(0)
    )
    scalars = {
        "loss/kl": kl_weight * losses.kl_loss(*moments, kl),
        **{f"loss/{k}": judges[k][0] * x.mean() for k, x in judged.items()},
        **_quality(mse.mean()),
        **latent_scalars("latent", Posterior(*moments)),
    }
    return loss, (scalars, made)


def _quality(mse: Float[Array, ""]) -> Scalars:
    # PSNR of the batch's mean error.
    return {"loss/reconstruction": mse, "psnr_db": -10 * jnp.log10(mse)}


def judged_loss(
    trained: Params,
    frozen: Params,
    batch: Batch,
    key: Key,
    is_judged: Bool[Array, ""] | bool,
    *,
    nets: Nets,
    judges: Mapping[str, Any],
    gan: Mapping[str, Any],
    caption_dropout: float,
    noise: float,
    hidden: tuple[float, float],
    **terms,
) -> tuple[Float[Array, ""], tuple[Scalars, tuple[Image, Image]]]:
    """Computes (1) of a batch.

    Args:
        is_judged: whether the discriminator has begun.
        terms: further arguments of `reconstruction_terms`.

    Returns:
        The loss; its terms, and the images with their reconstructions.
    """
    drawn = dict(caption_dropout=caption_dropout, noise=noise, hidden=hidden)
    given = draw_given(frozen, batch, key, nets=nets, **drawn)
    made = make_judges(JudgeOptions(**judges), GanOptions(**gan), is_judged)
    loss, (scalars, copies) = reconstruction_terms(
        trained, frozen, given, nets=nets, judges=made, noise=noise, **terms
    )
    return loss, (scalars, (to_floats(batch["image"]), copies))


def tokenizer_loss(
    trained: Params,
    frozen: Params,
    batch: Batch,
    key: Key,
    *,
    nets: Nets,
    kl: str,
    kl_weight: float,
    caption_dropout: float,
    noise: float,
    hidden: tuple[float, float],
    trains: str,
    judges: Mapping[str, Any],
    gan: Mapping[str, Any],
    parts: int = 1,
) -> tuple[Float[Array, ""], Scalars]:
    """Computes (1) of a batch without a discriminator."""
    loss, (scalars, _) = judged_loss(
        trained,
        frozen,
        batch,
        key,
        False,
        nets=nets,
        kl=kl,
        kl_weight=kl_weight,
        caption_dropout=caption_dropout,
        noise=noise,
        hidden=hidden,
        trains=trains,
        judges=judges,
        gan=gan,
        parts=parts,
    )
    return loss, scalars


def judges_of(config: ConfigDict) -> tuple[str, ...]:
    """Returns the names of the frozen networks that judge reconstructions."""
    weights = config.loss.tokenizer.judges
    names = ("lpips", "convnext")
    return tuple(name for name in names if weights[f"{name}_weight"])


def make_tokenizer_trainer(task: Task, config: ConfigDict, nets: Nets) -> Trainer:
    """Makes the trainer: of the tokenizer alone, or of it and its discriminator.

    Raises:
        UserError: for options that cannot be.
    """
    options = config.loss.tokenizer
    if options.trains not in (ALL, DECODER):
        raise UserError(
            f"loss.tokenizer.trains is {options.trains!r}; expected {ALL} or {DECODER}"
        )
    is_frozen = _is_encoder if options.trains == DECODER else None
    if not options.gan.weight:
        return make_single_trainer(task, config, nets, is_frozen)
    loss = functools.partial(
        judged_loss, nets=nets, parts=config.train.accumulate, **options.to_dict()
    )
    return make_adversarial_trainer(task, config, nets, loss, is_frozen)


def _is_encoder(path: tuple[str, ...]) -> bool:
    return "encoder" in path


def _preview(model: PreviewModel, examples: Any) -> Preview:
    """Encodes and decodes the examples' images."""
    tokens = model.encode_image(examples.floats).mean
    images = np.asarray(model.decode_image(tokens, examples.captions))
    return Preview("reconstructions", images=images, are_copies=True)


TASK = Task(
    name="tokenizer",
    networks=("tokenizer",),
    frozen={"clip": "clip"},
    loss=tokenizer_loss,
    preview=_preview,
    draws=True,
    copies=True,
    passes=("clip",),
    contents=("image",),
    make_trainer=make_tokenizer_trainer,
    judges=judges_of,
    goes_on=lambda config: config.loss.tokenizer.trains == DECODER,
)
