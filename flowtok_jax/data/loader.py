"""Batches of a source, a pure function of (seed, step).

The order is a shuffle of the source, another one each epoch; a run that stops goes on
at its step. Each process loads its own rows of the global batch.
"""

from collections.abc import Iterator

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from flowtok_jax.data.captions import Vocabulary
from flowtok_jax.data.sources import make_source
from flowtok_jax.errors import UserError

Batch = dict[str, np.ndarray]


def make_vocabulary(config: ConfigDict, seed: int) -> Vocabulary:
    """The vocabulary that the config names; "captions" trains one on data.train."""
    context = config.latent.tokens
    if config.text.vocabulary != "captions":
        return Vocabulary.load(config.text.vocabulary, context)
    source = make_source(
        config.data.train, image_size=config.tokenizer.image_size, seed=seed
    )
    count = min(config.text.vocabulary_captions, len(source))
    captions = (source[i]["caption"] for i in range(count))
    return Vocabulary.train(captions, config.clip.vocab_size, context)


def abstract_batch(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a global batch; what `latents` stores needs no images."""
    rows, latent = config.train.batch_size, config.latent
    side = config.tokenizer.image_size
    batch = {"caption_ids": jax.ShapeDtypeStruct((rows, latent.tokens), np.int32)}
    if config.data.train.startswith("latents:"):
        shape = rows, latent.tokens, 2 * latent.channels
        return batch | {"moments": jax.ShapeDtypeStruct(shape, np.float16)}
    return batch | {"image": jax.ShapeDtypeStruct((rows, side, side, 3), np.uint8)}


def make_loader(
    config: ConfigDict, vocabulary: Vocabulary, start_step: int
) -> Iterator[Batch]:
    """This process's part of the global batches from step `start_step` on.

    A batch is {"image": uint8 [b, s, s, 3], "caption_ids": int32 [b, n]}.
    """
    processes = jax.process_count()
    if config.train.batch_size % processes:
        raise UserError(
            f"train.batch_size is {config.train.batch_size}; wanted a multiple of the "
            f"{processes} processes"
        )
    local = config.train.batch_size // processes
    source = make_source(
        config.data.train,
        image_size=config.tokenizer.image_size,
        seed=config.train.seed,
    )

    def encode(record):
        ids = vocabulary.encode([record["caption"]])[0]
        return {"image": record["image"], "caption_ids": ids}

    records = grain.MapDataset.source(source).seed(config.train.seed)
    records = records.shuffle().repeat()[jax.process_index() :: processes]
    batches = records.map(encode).batch(local)[start_step:]
    options = grain.ReadOptions(
        num_threads=config.data.threads,
        prefetch_buffer_size=config.data.prefetch * local,
    )
    return iter(batches.to_iter_dataset(options))
