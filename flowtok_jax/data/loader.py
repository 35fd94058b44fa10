"""Batches of a source, a pure function of (seed, step).

The order is a shuffle of the source, another one each epoch; a run that stops goes on
at its step. A process loads the rows of the global batch that its devices hold, so that
the global batch is the same whatever the number of processes.
"""

from collections.abc import Iterator

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from flowtok_jax.data.captions import Vocabulary
from flowtok_jax.data.sources import make_source

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


class _Positions:
    """Which record of the source stands at each place of this process's batches.

    Place i is row `rows[i % len(rows)]` of global batch `i // len(rows)`; `order` gives
    the record of every place of the global sequence.
    """

    def __init__(self, order: grain.MapDataset, rows: np.ndarray, batch_size: int):
        self._order, self._rows, self._batch_size = order, rows, batch_size

    def __len__(self) -> int:
        return len(self._order) // self._batch_size * len(self._rows)

    def __getitem__(self, index: int) -> int:
        step, place = divmod(index, len(self._rows))
        return self._order[step * self._batch_size + int(self._rows[place])]


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
    config: ConfigDict,
    vocabulary: Vocabulary,
    start_step: int,
    rows: np.ndarray | None = None,
) -> Iterator[Batch]:
    """This process's rows of the global batches from step `start_step` on.

    A batch is {"image": uint8 [b, s, s, 3], "caption_ids": int32 [b, n]}.

    Args:
        rows: of the global batch, ascending; all of them by default.
    """
    batch_size = config.train.batch_size
    rows = np.arange(batch_size) if rows is None else rows
    source = make_source(
        config.data.train,
        image_size=config.tokenizer.image_size,
        seed=config.train.seed,
    )

    def load(index):
        record = source[index]
        ids = vocabulary.encode([record["caption"]])[0]
        return {"image": record["image"], "caption_ids": ids}

    order = grain.MapDataset.range(len(source)).seed(config.train.seed)
    positions = _Positions(order.shuffle().repeat(), rows, batch_size)
    batches = grain.MapDataset.source(positions).map(load).batch(len(rows))
    options = grain.ReadOptions(
        num_threads=config.data.threads,
        prefetch_buffer_size=config.data.prefetch * len(rows),
    )
    return iter(batches[start_step:].to_iter_dataset(options))
