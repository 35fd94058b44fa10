"""CLIP score of images and their captions (Hessel et al. 2021), as text-to-image work
gives it:

    score = 100 max(cos(image, caption), 0)

of CLIP's two projected features. (Hessel et al. multiply by 2.5 instead of 100.) Images
are resized as for CLIP: shorter side by Pillow's bicubic, rounded to uint8, the centre.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, UInt8
from PIL import Image

from flowtok_jax.array_types import Params
from flowtok_jax.data.images import resize_and_crop
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.runtime.batches import filled, run_rows
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.weights.nets import RANDOM, MetricNet

BATCH = 64  # rows that the towers take at a time


def clip_score(
    net: MetricNet,
    vocabulary: Vocabulary,
    images: UInt8[np.ndarray, "b h w 3"],
    captions: Sequence[str],
) -> Float64[np.ndarray, " b"]:
    """Scores each image with its own caption, from 0 to 100.

    Captions of more tokens than CLIP's context are cut, keeping the end token.

    Args:
        net: a `ClipScorer`.
        vocabulary: CLIP's; of random networks any that they have enough ids for.

    Raises:
        UserError: if numbers of images and captions differ, and for another model's
            vocabulary.
    """
    if len(images) != len(captions):
        raise UserError(
            f"CLIP score got {len(images)} images and {len(captions)} captions; "
            "expected one caption an image"
        )
    text = net.module.text
    params = jax.device_put(net.params)
    _check(vocabulary, net)
    # A model may cut captions elsewhere than CLIP does.
    vocabulary = vocabulary.with_context(text.context)
    if not len(images):
        return np.zeros(0)

    def start(rows: np.ndarray) -> jax.Array:
        # A slice ends where the images do; `filled` adds what is missing.
        kept = slice(rows[0], rows[-1] + 1)
        pixels = preprocess(images[kept], net.module.image_size)
        ids = vocabulary.encode(captions[kept], warns=False)
        return _cosines(net.module, params, filled(pixels, BATCH), filled(ids, BATCH))

    cosines = run_rows(start, len(images), BATCH)
    # Negative cosines count as 0 (Hessel et al. 2021).
    return 100 * cosines.astype(np.float64).clip(0)


def preprocess(
    images: UInt8[np.ndarray, "b h w 3"], side: int
) -> Float[np.ndarray, "b {side} {side} 3"]:
    """Makes images in [0, 1] of the tower's size; the tower normalises them itself."""
    # Rounded to bytes, as CLIP's own preprocessing does before normalising.
    resized = [resize_and_crop(Image.fromarray(image), side) for image in images]
    return np.stack(resized).astype(np.float32) / 255


def _check(vocabulary: Vocabulary, net: MetricNet) -> None:
    size = net.module.text.vocab_size
    # CLIP's features of a caption are those of its end token, the largest id.
    wrong_end = vocabulary.end_id != size - 1 and net.sha256 != RANDOM
    if len(vocabulary) > size or wrong_end:
        raise UserError(
            f"CLIP score got a vocabulary of {len(vocabulary)} tokens with the end "
            f"token {vocabulary.end_id}; expected CLIP's own, {size} with {size - 1}"
        )


@functools.partial(jax.jit, static_argnums=0)
def _cosines(
    module: nn.Module,
    params: Params,
    images: Float[Array, "b s s 3"],
    ids: Int[Array, "b n"],
) -> Float[Array, " b"]:
    image, text = (
        module.apply({"params": params}, inputs, method=method)
        for inputs, method in ((images, "embed_image"), (ids, "embed_text"))
    )
    return jnp.sum(image * text, -1)
