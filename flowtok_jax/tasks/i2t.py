"""Image to text: a flow from image tokens to text tokens, all else frozen.

    L = L_flow, with z_tgt = text_scale * (mean or sample of the caption's tokens)  (1)

(FlowTok section 3.3: both extra weights are 0 in this direction.)
"""

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Float

from flowtok_jax.array_types import Key, Params, Tokens
from flowtok_jax.models.build import Nets
from flowtok_jax.tasks.base import (
    Batch,
    Preview,
    PreviewModel,
    Scalars,
    Task,
    choose_tokens,
    flow_loss,
    image_posterior,
    project,
    text_features,
)


def draw_ends(
    frozen: Params,
    batch: Batch,
    keys: Mapping[str, Key],
    *,
    nets: Nets,
    target: str,
    text_scale: float,
) -> tuple[Tokens, Tokens]:
    """Draws image tokens and caption tokens.

    Args:
        keys: `image` and `text`.
    """
    image = image_posterior(nets, frozen["tokenizer"]["tokenizer"], batch)
    z_img = image.sample(keys["image"]) * nets.tokenizer.latent_scale
    reader = frozen["text_tokenizer"]  # as a part of `both` maybe with its own tower
    text_feats = text_features(nets, frozen, batch, reader)
    # Without a key no dropout: the target is the same at every visit of a caption.
    text = project(nets, reader["projector"], text_feats, None)
    z_txt = choose_tokens(text, keys["text"], target, "loss.i2t.target")
    return z_img, text_scale * z_txt


def i2t_loss(
    trained: Params,
    frozen: Params,
    batch: Batch,
    key: Key,
    *,
    nets: Nets,
    null_rate: float,
    time_location: float,
    target: str,
    text_scale: float,
    parts: int = 1,
) -> tuple[Float[Array, ""], Scalars]:
    """Computes (1)."""
    names = ("image", "text", "flow")
    keys = dict(zip(names, jax.random.split(key, 3), strict=True))
    form = dict(target=target, text_scale=text_scale)
    z_img, z_txt = draw_ends(frozen, batch, keys, nets=nets, **form)
    flow = dict(null_rate=null_rate, time_location=time_location, parts=parts)
    loss = flow_loss(nets, trained["dit"], z_img, z_txt, keys["flow"], **flow)
    scalars = {"loss/flow": loss, "target/std": z_txt.std(), "source/std": z_img.std()}
    return loss, scalars


def preview_captions(model: PreviewModel, examples: Any) -> Preview:
    """Describes the examples' images."""
    examples = examples.with_images(model)  # of stored latents there are none
    # A preview has no text to image, to choose among candidates.
    captions = model.image_to_text(examples.floats, candidates=1)
    return Preview("image_to_text", captions=captions, described=examples.images)


TASK = Task(
    name="i2t",
    networks=("dit",),
    frozen={
        "clip": "clip",
        "tokenizer": "tokenizer",
        "text_tokenizer": "text_tokenizer",
    },
    loss=i2t_loss,
    preview=preview_captions,
    passes=("clip", "encoder", "projector"),
    directions=("image_to_text",),
)
