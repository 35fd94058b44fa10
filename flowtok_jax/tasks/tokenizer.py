"""The image tokenizer: image -> tokens -> image, guided by its caption.

    L = mean (decoded - image)^2 + kl_weight * KL                               (1)

(KL forms are in tasks/losses.py.)
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowtok_jax.array_types import Key, Params
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
    image_posterior,
    latent_scalars,
    text_features,
)


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
    parts: int = 1,
) -> tuple[Float[Array, ""], Scalars]:
    """Computes (1); a share `caption_dropout` of the rows decodes without caption.

    Otherwise the decoder reads the caption, and the tokens need not carry the image.
    """
    keys = dict(zip(("drop", "sample"), jax.random.split(key), strict=True))
    text_feats = text_features(nets, frozen, batch)
    rows = text_feats.shape[0]
    # Drawn for the whole batch, so that `parts` do not change which rows are kept.
    kept = jax.random.bernoulli(keys["drop"], 1 - caption_dropout, (rows, 1, 1))

    def rows_loss(params, _, rest, key):
        posterior = image_posterior(nets, params, rest)
        tokens = posterior.at(rest["noise"])
        decode = functools.partial(nets.tokenizer.apply, method="decode")
        image = decode({"params": params}, tokens, rest["text_feats"])
        target = rest["image"].astype(jnp.float32) / 255
        mse = losses.reconstruction_loss(image, target)
        divergence = losses.kl_loss(posterior.mean, posterior.logvar, kl, rows)
        moments = posterior.mean, posterior.logvar
        return mse.mean() + kl_weight * divergence, (mse, moments)

    rest = {
        "image": batch["image"],
        "text_feats": jnp.where(kept, text_feats, 0),
        "noise": draw_noise(nets, keys["sample"], rows),
    }
    loss, (mse, moments) = accumulate(rows_loss, parts)(
        trained["tokenizer"], (), rest, key
    )
    mse = mse.mean()
    divergence = losses.kl_loss(*moments, kl)
    scalars = {"loss/reconstruction": mse, "loss/kl": kl_weight * divergence}
    scalars |= {"psnr_db": -10 * jnp.log10(mse)}  # of the batch's mean error
    scalars |= latent_scalars("latent", Posterior(*moments))
    return loss, scalars


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
    passes=("clip",),
    contents=("image",),
)
