"""Batches of a source, a pure function of (seed, step).

The order is a shuffle of the source, another one each epoch; a run that stops goes on
at its step. A process loads the rows of the global batch that its devices hold, so that
the global batch is the same whatever the number of processes.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from flowtok_jax.data.examples import Example, Source, collate
from flowtok_jax.data.records import RejectCounter
from flowtok_jax.data.sources import make_source, parse
from flowtok_jax.data.vocabulary import Vocabulary

Batch = dict[str, np.ndarray]


def open_source(config: ConfigDict, spec: str) -> Source:
    """The source of a string, with the sizes and the options of a config.

    Raises:
        UserError: for what cannot be, or is not there.
    """
    return make_source(
        spec,
        image_size=config.tokenizer.image_size,
        seed=config.train.seed,
        tokens=config.latent.tokens,
        channels=config.latent.channels,
        transform=config.data.transform.to_dict(),
        filters=config.data.filters.to_dict(),
        cache=config.data.cache,
    )


def make_vocabulary(config: ConfigDict) -> Vocabulary:
    """The vocabulary that the config names; "captions" trains one on data.train."""
    context = config.latent.tokens
    if config.text.vocabulary != "captions":
        return Vocabulary.load(config.text.vocabulary, context)
    source = open_source(config, config.data.train)
    count = min(config.text.vocabulary_captions, len(source))
    captions = (source[i]["caption"] for i in range(count))
    return Vocabulary.train(captions, config.clip.vocab_size, context)


def abstract_batch(config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a global batch; what `latents` stores needs no images."""
    rows, latent = config.train.batch_size, config.latent
    side = config.tokenizer.image_size
    batch = {"caption_ids": jax.ShapeDtypeStruct((rows, latent.tokens), np.int32)}
    if parse(config.data.train)[0].kind == "latents":
        shape = rows, latent.tokens, 2 * latent.channels
        return batch | {"moments": jax.ShapeDtypeStruct(shape, np.float16)}
    return batch | {"image": jax.ShapeDtypeStruct((rows, side, side, 3), np.uint8)}


class _Places:
    """(position, index) of what stands at each place of this process's batches.

    Place i is row `rows[i % len(rows)]` of global batch `i // len(rows)`; `picks` gives
    every place of the global sequence.
    """

    def __init__(self, picks: grain.MapDataset, rows: np.ndarray, batch_size: int):
        self._picks, self._rows, self._batch_size = picks, rows, batch_size

    def __len__(self) -> int:
        return len(self._picks) // self._batch_size * len(self._rows)

    def __getitem__(self, index: int) -> tuple[int, int]:
        step, place = divmod(index, len(self._rows))
        return self._picks[step * self._batch_size + int(self._rows[place])]


class Loader:
    """This process's rows of the global batches, without end.

    A batch is {"caption_ids": int32 [b, n]} with "image": uint8 [b, s, s, 3] or
    "moments": float16 [b, n, 2 * c]. `rejects` counts the records that were replaced,
    since the loader was made.

    Args:
        start_step: of the first batch.
        rows: of the global batch, ascending; all of them by default.
    """

    def __init__(
        self,
        config: ConfigDict,
        vocabulary: Vocabulary,
        start_step: int,
        rows: np.ndarray | None = None,
    ):
        batch_size = config.train.batch_size
        rows = np.arange(batch_size) if rows is None else rows
        source = open_source(config, config.data.train)
        places = _Places(source.picks(config.train.seed), rows, batch_size)
        places = grain.MapDataset.source(places)[start_step * len(rows) :]
        self._rows = len(rows)
        read = _Reader(source, vocabulary, config.data.threads)
        ahead, workers = config.data.prefetch, config.data.workers
        self._batches = iter(
            _read_ahead(places.batch(len(rows)).map(read), ahead, workers)
        )
        self.rejects = RejectCounter(config.data.max_rejected)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            UserError: where more records are broken than data.max_rejected allows.
        """
        batch = next(self._batches)
        self.rejects.add(batch.pop("rejected"), self._rows)
        return batch


class _Reader:
    """Reads the batch of picks, its images one by one on threads."""

    def __init__(self, source: Source, vocabulary: Vocabulary, threads: int):
        self._arguments = source, vocabulary, threads
        self._source, self._vocabulary = source, vocabulary
        self._pool = ThreadPoolExecutor(threads)

    def __reduce__(self):  # a worker process makes threads of its own
        return _Reader, self._arguments

    def __call__(self, picks: tuple[np.ndarray, np.ndarray]) -> Example:
        if self._source.content == "moments":
            batch = self._source.read_batch(*picks)
        else:
            numbers = (array.tolist() for array in picks)
            batch = collate(list(self._pool.map(self._source.read, *numbers)))
        ids = self._vocabulary.encode(batch.pop("caption"), warns=False)
        return {**batch, "caption_ids": ids}


def _read_ahead(
    batches: grain.MapDataset[Example], prefetch: int, workers: int
) -> grain.IterDataset[Example]:
    """Keeps batches ready, in order. Whole ones, as grain looks through all that is
    ready each time; two at once, so that no thread idles at the end of a batch.
    """
    ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=prefetch)
    ready = batches.to_iter_dataset(ahead)
    if not workers:
        return ready
    options = grain.MultiprocessingOptions(num_workers=workers)
    return ready.mp_prefetch(options)
