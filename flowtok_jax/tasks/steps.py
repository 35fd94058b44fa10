"""One pure loss a task, and the step that all of them share.

    tokenizer       image -> tokens -> image, guided by its caption
    text_tokenizer  caption -> tokens -> caption
    t2i             flow from text tokens to image tokens, projector trained along
    i2t             flow from image tokens to text tokens, everything else frozen

A loss maps (trained, frozen, batch, key) to a value and named scalars. `trained` are
the networks of the task's own group; `frozen` those of the groups it needs. With
`parts` above 1 the trained network (of t2i its DiT) sees the rows part by part, see
tasks/accumulate.py.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowtok_jax.array_types import Key, Params, TextFeatures, Tokens
from flowtok_jax.flow import paths
from flowtok_jax.models.build import Nets
from flowtok_jax.models.posterior import Posterior
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks import losses
from flowtok_jax.tasks.accumulate import accumulate

Batch = dict[str, Array]
Scalars = dict[str, Float[Array, ""]]
Loss = Callable[[Params, Params, Batch, Key], tuple[Float[Array, ""], Scalars]]

ALIGNMENTS = ("contrastive", "cosine")
TARGETS = ("mean", "sample")


def _text_features(nets: Nets, frozen: Params, batch: Batch) -> TextFeatures:
    params = {"params": frozen["clip"]["clip"]}
    return nets.clip.apply(params, batch["caption_ids"])


def _image_posterior(nets: Nets, params: Params | None, batch: Batch) -> Posterior:
    """That of stored moments where the batch has them, else of its images."""
    if "moments" in batch:
        return Posterior.from_moments(batch["moments"], clip=True)
    image = batch["image"].astype(jnp.float32) / 255
    return nets.tokenizer.apply({"params": params}, image, method="encode")


def _project(nets: Nets, params: Params, text_feats: Array, key: Key | None):
    """The text posterior; with dropout where there is a key."""
    return nets.projector.apply(
        {"params": params},
        text_feats,
        deterministic=key is None,
        rngs=None if key is None else {"dropout": key},
    )


def _noise(nets: Nets, key: Key, rows: int) -> Tokens:
    """For samples of a posterior, drawn for the whole batch."""
    return jax.random.normal(key, (rows, nets.dit.tokens, nets.dit.channels))


def _latent_scalars(prefix: str, posterior: Posterior) -> Scalars:
    return {
        f"{prefix}/sigma": posterior.std.mean(),
        f"{prefix}/mean_std": posterior.mean.std(),
    }


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
    """Reconstruction + KL; some rows decode without caption: tokens must carry all.

    Perceptual and adversarial terms join the value of `rows_loss` with their weights.
    """
    keys = dict(zip(("drop", "sample"), jax.random.split(key), strict=True))
    text_feats = _text_features(nets, frozen, batch)
    rows = text_feats.shape[0]
    kept = jax.random.bernoulli(keys["drop"], 1 - caption_dropout, (rows, 1, 1))

    def rows_loss(params, _, rest, key):
        posterior = _image_posterior(nets, params, rest)
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
        "noise": _noise(nets, keys["sample"], rows),
    }
    loss, (mse, moments) = accumulate(rows_loss, parts)(
        trained["tokenizer"], (), rest, key
    )
    mse, divergence = mse.mean(), losses.kl_loss(*moments, kl)
    scalars = {"loss/reconstruction": mse, "loss/kl": kl_weight * divergence}
    scalars |= {"psnr_db": -10 * jnp.log10(mse)}
    scalars |= _latent_scalars("latent", Posterior(*moments))
    return loss, scalars


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
    """Cross-entropy of the caption's ids from its own tokens, + KL."""
    keys = dict(zip(("nets", "sample"), jax.random.split(key), strict=True))
    text_feats = _text_features(nets, frozen, batch)
    rows = text_feats.shape[0]

    def rows_loss(params, _, rest, key):
        projector_key, decoder_key = jax.random.split(key)
        posterior = _project(
            nets, params["projector"], rest["text_feats"], projector_key
        )
        logits = nets.text_decoder.apply(
            {"params": params["text_decoder"]},
            posterior.at(rest["noise"]),
            deterministic=False,
            rngs={"dropout": decoder_key},
        )
        caption = losses.caption_loss(logits, rest["caption_ids"])
        divergence = losses.kl_loss(posterior.mean, posterior.logvar, kl, rows)
        exact = losses.caption_is_exact(logits, rest["caption_ids"])
        moments = posterior.mean, posterior.logvar
        return caption.mean() + kl_weight * divergence, (caption, exact, moments)

    rest = {
        "caption_ids": batch["caption_ids"],
        "text_feats": text_feats,
        "noise": _noise(nets, keys["sample"], rows),
    }
    loss, (caption, exact, moments) = accumulate(rows_loss, parts)(
        trained, (), rest, keys["nets"]
    )
    divergence = losses.kl_loss(*moments, kl)
    scalars = {"loss/caption": caption.mean(), "loss/kl": kl_weight * divergence}
    scalars |= {"exact": exact.mean()}
    scalars |= _latent_scalars("latent", Posterior(*moments))
    return loss, scalars


def _flow_loss(
    nets: Nets,
    dit: Params,
    z_src: Tokens,
    z_tgt: Tokens,
    key: Key,
    *,
    null_rate: float,
    time_location: float,
    parts: int,
) -> Float[Array, ""]:
    """Velocity loss, mean over the batch, at random times and with null rows.

    The DiT sees the rows in `parts`, one after the other.
    """
    keys = dict(zip(("time", "null"), jax.random.split(key), strict=True))
    t = paths.sample_time(keys["time"], z_src.shape[0], time_location)
    chosen = jax.random.bernoulli(keys["null"], null_rate, t.shape)
    z_tgt, null = paths.null_row_targets(z_tgt, chosen)

    def rows_loss(params, inputs, rest, key):
        predicted = nets.dit.apply({"params": params}, inputs[0], *rest)
        return losses.velocity_loss(predicted, inputs[1]).mean(), ()

    path = paths.straight_path(z_src, z_tgt, t)
    return accumulate(rows_loss, parts)(dit, path, (t, null), key)[0]


def t2i_loss(
    trained: Params,
    frozen: Params,
    batch: Batch,
    key: Key,
    *,
    nets: Nets,
    null_rate: float,
    time_location: float,
    kl: str,
    kl_weight: float,
    align: str,
    align_weight: float,
    align_margin: float,
    align_groups: int,
    parts: int = 1,
) -> tuple[Float[Array, ""], Scalars]:
    """L_flow + align_weight * L_align + kl_weight * L_kl (FlowTok section 3.3)."""
    names = ("image", "projector", "source", "flow")
    keys = dict(zip(names, jax.random.split(key, 4), strict=True))
    image = _image_posterior(nets, frozen["tokenizer"]["tokenizer"], batch)
    z_img = image.sample(keys["image"]) * nets.tokenizer.latent_scale
    text_feats = _text_features(nets, frozen, batch)
    source = _project(nets, trained["projector"], text_feats, keys["projector"])
    z_txt = source.sample(keys["source"])
    head = {"params": trained["align_head"]}
    target, tau = nets.align_head.apply(head, text_feats)
    if align == "contrastive":
        alignment = losses.contrastive_alignment(z_txt, target, tau, align_groups)
    elif align == "cosine":
        alignment = losses.cosine_alignment(z_txt, target, align_margin)
    else:
        raise UserError(f"loss.t2i.align is {align!r}; wanted one of {ALIGNMENTS}")
    flow = dict(null_rate=null_rate, time_location=time_location, parts=parts)
    terms = {
        "flow": _flow_loss(nets, trained["dit"], z_txt, z_img, keys["flow"], **flow),
        "align": align_weight * alignment,
        "kl": kl_weight * losses.kl_loss(source.mean, source.logvar, kl),
    }
    scalars = {f"loss/{name}": value for name, value in terms.items()}
    return sum(terms.values()), scalars | _latent_scalars("source", source)


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
    """L_flow from image tokens to the frozen text tokens * text_scale."""
    names = ("image", "text", "flow")
    keys = dict(zip(names, jax.random.split(key, 3), strict=True))
    image = _image_posterior(nets, frozen["tokenizer"]["tokenizer"], batch)
    z_img = image.sample(keys["image"]) * nets.tokenizer.latent_scale
    text_feats = _text_features(nets, frozen, batch)
    text = _project(nets, frozen["text_tokenizer"]["projector"], text_feats, None)
    if target not in TARGETS:
        raise UserError(f"loss.i2t.target is {target!r}; wanted one of {TARGETS}")
    z_txt = text_scale * (text.mean if target == "mean" else text.sample(keys["text"]))
    flow = dict(null_rate=null_rate, time_location=time_location, parts=parts)
    loss = _flow_loss(nets, trained["dit"], z_img, z_txt, keys["flow"], **flow)
    scalars = {"loss/flow": loss, "target/std": z_txt.std(), "source/std": z_img.std()}
    return loss, scalars


class Task(NamedTuple):
    """A task's loss and the frozen groups it needs."""

    loss: Callable
    frozen: tuple[str, ...]


TASKS = {
    "tokenizer": Task(tokenizer_loss, ("clip",)),
    "text_tokenizer": Task(text_tokenizer_loss, ("clip",)),
    "t2i": Task(t2i_loss, ("clip", "tokenizer")),
    "i2t": Task(i2t_loss, ("clip", "tokenizer", "text_tokenizer")),
}
