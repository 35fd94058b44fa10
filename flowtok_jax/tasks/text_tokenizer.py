"""The text tokenizer: caption -> tokens -> caption, with a projector of its own.

    L = cross-entropy of the caption's ids + kl_weight * KL                     (1)

(FlowTok section 3.3 names it; KL forms are in tasks/losses.py.)
"""

from typing import Any

import jax
from jaxtyping import Array, Bool, Float

from flowtok_jax.array_types import CaptionIds, Key, Params, Tokens
from flowtok_jax.models.build import Nets
from flowtok_jax.models.posterior import Posterior
from flowtok_jax.tasks import losses
from flowtok_jax.tasks.accumulate import accumulate
from flowtok_jax.tasks.base import (
    Batch,
    Preview,
    PreviewModel,
    Scalars,
    Task,
    draw_noise,
    latent_scalars,
    project,
    text_features,
)


def decode_captions(
    nets: Nets, params: Params, tokens: Tokens, caption_ids: CaptionIds, key: Key
) -> tuple[Float[Array, " b"], Bool[Array, " b"]]:
    """Computes each caption's cross-entropy, and whether all of it is read rightly.

    Args:
        params: the text decoder's.
        key: of its dropout.
    """
    logits = nets.text_decoder.apply(
        {"params": params}, tokens, deterministic=False, rngs={"dropout": key}
    )
    right = losses.caption_is_exact(logits, caption_ids)
    return losses.caption_loss(logits, caption_ids), right


def text_tokenizer_loss(
    trained: Params,
    frozen: Params,
    batch: Batch,
    key: Key,
    *,
    nets: Nets,
    kl: str,
    kl_weight: float,
    parts: int = 1,
) -> tuple[Float[Array, ""], Scalars]:
    """Computes (1), on a sample of the caption's posterior."""
    keys = dict(zip(("nets", "sample"), jax.random.split(key), strict=True))
    text_feats = text_features(nets, frozen, batch)
    rows = text_feats.shape[0]

    def rows_loss(params, _, rest, key):
        projector_key, decoder_key = jax.random.split(key)
        posterior = project(
            nets, params["projector"], rest["text_feats"], projector_key
        )
        tokens = posterior.at(rest["noise"])
        decoder = params["text_decoder"]
        captions = rest["caption_ids"], decoder_key
        caption, exact = decode_captions(nets, decoder, tokens, *captions)
        divergence = losses.kl_loss(posterior.mean, posterior.logvar, kl, rows)
        moments = posterior.mean, posterior.logvar
        return caption.mean() + kl_weight * divergence, (caption, exact, moments)

    rest = {
        "caption_ids": batch["caption_ids"],
        "text_feats": text_feats,
        "noise": draw_noise(nets, keys["sample"], rows),
    }
    # Both networks see a part together: the projector's gradient comes through the
    # decoder.
    loss, (caption, exact, moments) = accumulate(rows_loss, parts)(
        trained, (), rest, keys["nets"]
    )
    divergence = losses.kl_loss(*moments, kl)
    scalars = {"loss/caption": caption.mean(), "loss/kl": kl_weight * divergence}
    scalars |= {"exact": exact.mean()}
    scalars |= latent_scalars("latent", Posterior(*moments))
    return loss, scalars


def _preview(model: PreviewModel, examples: Any) -> Preview:
    """Encodes and decodes the examples' captions; there is no picture of that."""
    captions = model.reconstruct_text(examples.captions)
    return Preview("", captions=captions, are_copies=True)


TASK = Task(
    name="text_tokenizer",
    networks=("projector", "text_decoder"),
    frozen={"clip": "clip"},
    loss=text_tokenizer_loss,
    preview=_preview,
    passes=("clip",),
    reads_contents=lambda options: False,
)
