"""Both directions by one group: a projector, a DiT with four rows, a text decoder.

    L = L_flow(text to image) + i2t_weight * L_flow(image to text)
        + align_weight * L_align + kl_weight * L_kl + caption_weight * L_caption  (1)

Text to image is that of tasks/t2i.py. Back, the flow goes from image tokens to
text_scale * (mean or sample of the same projector's posterior), which is held still.
L_caption is the cross-entropy of the text decoder on samples of that posterior: it
keeps captions legible, and their tokens from collapsing. Each pair of a batch goes
through the DiT both ways, in one forward pass.

Source: REFERENCE.md section 14; nearest published: BDBM (arXiv:2502.09655).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowtok_jax.array_types import CaptionIds, Key, Params, Tokens
from flowtok_jax.models.build import BOTH, BOTH_NETWORKS, Nets, init_networks
from flowtok_jax.models.dit import both_directions
from flowtok_jax.tasks import i2t, t2i
from flowtok_jax.tasks.accumulate import accumulate
from flowtok_jax.tasks.base import (
    Batch,
    Points,
    Preview,
    PreviewModel,
    Scalars,
    choose_tokens,
    draw_points,
    image_posterior,
    latent_scalars,
    points_loss,
    project,
)
from flowtok_jax.tasks.text_tokenizer import decode_captions


def interleave(first: Array, second: Array) -> Array:
    """Puts rows of two arrays in turn, so that every device has its own of each."""
    return jnp.stack([first, second], axis=1).reshape(-1, *first.shape[1:])


def _flow_losses(
    nets: Nets,
    params: Params,
    forth: Points,
    back: Points,
    key: Key,
    i2t_weight: float,
    parts: int,
) -> tuple[Float[Array, ""], Scalars]:
    """Computes the velocity losses of both directions in one forward pass.

    Returns:
        Their weighted sum, and each by itself.
    """
    # Row 2 i is pair i to its image, row 2 i + 1 the same pair to its caption.
    points = jax.tree.map(interleave, forth, back)
    direction = jnp.tile(jnp.arange(2), points.path[0].shape[0] // 2)
    points = points._replace(where=(*points.where, direction))
    # Twice, as the mean is over the rows of both.
    weights = 2 * jnp.where(direction == 0, 1.0, i2t_weight)
    net = nets.shared_dit
    value, errors = points_loss(net, params, points, key, parts, weights)
    # Without the weight, so that runs of different weights compare.
    each = {"loss/flow": errors[::2].mean(), "loss/flow_i2t": errors[1::2].mean()}
    return value, each


def _draw_end(
    nets: Nets, trained: Params, drawn: t2i.TextSource, key: Key, target: str
) -> Tokens:
    """Draws the target of image to text by the projector, which it does not move."""
    still = drawn.posterior
    # Without dropout the target is the same at every visit of a caption.
    if nets.projector.dropout:
        still = project(nets, trained["projector"], drawn.text_feats, None)
    # Were it to move, it could meet the flow at one point for all captions.
    return jax.lax.stop_gradient(choose_tokens(still, key, target, "loss.both.target"))


def _caption_loss(
    nets: Nets,
    decoder: Params,
    tokens: Tokens,
    caption_ids: CaptionIds,
    key: Key,
    parts: int,
) -> tuple[Float[Array, ""], Bool[Array, " b"]]:
    """Computes the mean cross-entropy of captions, and which are read rightly."""

    def rows_loss(params, tokens, caption_ids, key):
        error, exact = decode_captions(nets, params, tokens, caption_ids, key)
        return error.mean(), exact

    # Logits of CLIP's vocabulary are the largest array of a step: part by part.
    return accumulate(rows_loss, parts)(decoder, tokens, caption_ids, key)


def both_loss(
    trained: Params,
    frozen: Params,
    batch: Batch,
    key: Key,
    *,
    nets: Nets,
    null_rate: float,
    time_location: float,
    i2t_time_location: float | None,
    i2t_weight: float,
    caption_weight: float,
    image_source: str,
    target: str,
    text_scale: float,
    parts: int = 1,
    **source: Any,
) -> tuple[Float[Array, ""], Scalars]:
    """Computes (1).

    Args:
        i2t_time_location: of the times of the flow back; None: `time_location`.
        source: what `t2i.draw_source` takes beside.
    """
    names = ("image", "projector", "source", "forth", "back", "target", "decoder")
    keys = dict(zip(names, jax.random.split(key, len(names)), strict=True))
    image = image_posterior(nets, frozen["tokenizer"]["tokenizer"], batch)
    # One draw of the image for both directions, or its mean for the one back.
    z_img, z_start = (
        choose_tokens(image, keys["image"], how, "loss.both.image_source")
        * nets.tokenizer.latent_scale
        for how in ("sample", image_source)
    )
    drawn = t2i.draw_source(trained, frozen, batch, keys, nets=nets, **source)
    z_end = text_scale * _draw_end(nets, trained, drawn, keys["target"], target)
    # Null rows trade targets within their direction only.
    times = dict(null_rate=null_rate, time_location=time_location)
    forth = draw_points(drawn.z_txt, z_img, keys["forth"], **times)
    if i2t_time_location is not None:
        times["time_location"] = i2t_time_location
    back = draw_points(z_start, z_end, keys["back"], **times)
    net = trained["shared_dit"]
    flow, each = _flow_losses(nets, net, forth, back, keys["forth"], i2t_weight, parts)
    read = drawn.z_txt, batch["caption_ids"], keys["decoder"]
    caption, exact = _caption_loss(nets, trained["text_decoder"], *read, parts)
    terms = {**drawn.terms, "caption": caption_weight * caption}
    scalars = each | {f"loss/{name}": value for name, value in terms.items()}
    scalars |= {"exact": exact.mean(), "target/std": z_end.std()}
    scalars |= latent_scalars("source", drawn.posterior)
    return flow + sum(terms.values()), scalars


def begin_both(nets: Nets, given: Params, key: Key) -> dict[str, Params] | None:
    """Makes first parameters of those of text to image and of the text tokenizer.

    Rows 0 and 1 of the DiT are those of text to image, and rows 2 and 3 their copies.
    The text decoder is that of the text tokenizer, made for another projector, or a
    fresh one.

    Returns:
        None where text to image is not given.
    """
    if "t2i" not in given:
        return None
    found = {k: v for k, v in given["t2i"].items() if k != "dit"}
    tells_direction = nets.shared_dit.tells_direction
    found["shared_dit"] = both_directions(given["t2i"]["dit"], tells_direction)
    decoders = given.get("text_tokenizer") or init_networks(
        nets, ("text_decoder",), key
    )
    # It reads another projector's tokens: a start, and no more.
    return {**found, "text_decoder": decoders["text_decoder"]}


def _preview(model: PreviewModel, examples: Any) -> list[Preview]:
    """Draws the examples' captions, and describes their images."""
    ways = (t2i.preview_images, i2t.preview_captions)
    return [preview(model, examples) for preview in ways]


TASK = t2i.TASK._replace(
    name=BOTH,
    networks=BOTH_NETWORKS,
    loss=both_loss,
    preview=_preview,
    directions=t2i.TASK.directions + i2t.TASK.directions,
    init=begin_both,
    begins_from=("t2i", "text_tokenizer"),
)
