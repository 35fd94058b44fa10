"""Text to image: a flow from text tokens to image tokens, projector trained along.

    L = L_flow + align_weight * L_align + kl_weight * L_kl                          (1)

(FlowTok section 3.3.) With clip.trained_along the text tower is trained along too.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jaxtyping import Array, Float

from flowtok_jax.array_types import Key, Params, TextFeatures, Tokens
from flowtok_jax.models.build import Nets
from flowtok_jax.models.posterior import Posterior
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import losses
from flowtok_jax.tasks.base import (
    Batch,
    Preview,
    PreviewModel,
    Scalars,
    Task,
    flow_loss,
    image_posterior,
    latent_scalars,
    project,
    text_features,
)

ALIGNMENTS = ("contrastive", "cosine")


class TextSource(NamedTuple):
    """The source of text to image, with the terms that hold it in place.

    Attributes:
        text_feats: features of the captions.
        posterior: that of the captions' tokens, with dropout.
        z_txt: a sample.
        terms: of the loss, weighted: `align` and `kl`.
    """

    text_feats: TextFeatures
    posterior: Posterior
    z_txt: Tokens
    terms: dict[str, Float[Array, ""]]


def draw_source(
    trained: Params,
    frozen: Params,
    batch: Batch,
    keys: Mapping[str, Key],
    *,
    nets: Nets,
    kl: str,
    kl_weight: float,
    align: str,
    align_weight: float,
    align_margin: float,
    align_groups: int,
) -> TextSource:
    """Draws caption tokens by the trained projector.

    Args:
        keys: `projector` and `source`.
    """
    text_feats = text_features(nets, frozen, batch, trained)
    source = project(nets, trained["projector"], text_feats, keys["projector"])
    z_txt = source.sample(keys["source"])
    head = {"params": trained["align_head"]}
    # The head sees features before the projector: a target the source cannot move.
    still = jax.lax.stop_gradient(text_feats)
    target, tau = nets.align_head.apply(head, still)
    # Alignment couples the rows of a batch, so it is never computed in parts.
    if align == "contrastive":
        alignment = losses.contrastive_alignment(z_txt, target, tau, align_groups)
    elif align == "cosine":
        alignment = losses.cosine_alignment(z_txt, target, align_margin)
    else:
        raise UserError(f"loss.t2i.align is {align!r}; expected one of {ALIGNMENTS}")
    terms = {
        "align": align_weight * alignment,
        "kl": kl_weight * losses.kl_loss(source.mean, source.logvar, kl),
    }
    return TextSource(text_feats, source, z_txt, terms)


def t2i_loss(
    trained: Params,
    frozen: Params,
    batch: Batch,
    key: Key,
    *,
    nets: Nets,
    null_rate: float,
    time_location: float,
    parts: int = 1,
    **source: Any,
) -> tuple[Float[Array, ""], Scalars]:
    """Computes (1); gradients of the flow reach the projector through its source.

    Args:
        source: what `draw_source` takes beside.
    """
    names = ("image", "projector", "source", "flow")
    keys = dict(zip(names, jax.random.split(key, 4), strict=True))
    image = image_posterior(nets, frozen["tokenizer"]["tokenizer"], batch)
    z_img = image.sample(keys["image"]) * nets.tokenizer.latent_scale
    drawn = draw_source(trained, frozen, batch, keys, nets=nets, **source)
    ends = drawn.z_txt, z_img
    flow = dict(null_rate=null_rate, time_location=time_location, parts=parts)
    flow = flow_loss(nets, trained["dit"], *ends, keys["flow"], **flow)
    terms = {"flow": flow, **drawn.terms}
    scalars = {f"loss/{name}": value for name, value in terms.items()}
    return sum(terms.values()), scalars | latent_scalars("source", drawn.posterior)


def preview_images(model: PreviewModel, examples: Any) -> Preview:
    """Draws the examples' captions."""
    return Preview("text_to_image", images=model.text_to_image(examples.captions))


TASK = Task(
    name="t2i",
    networks=("projector", "align_head", "dit"),
    frozen={"clip": "clip", "tokenizer": "tokenizer"},
    loss=t2i_loss,
    preview=preview_images,
    draws=True,
    passes=("clip", "encoder"),
    trains_tower=True,
    directions=("text_to_image",),
)
