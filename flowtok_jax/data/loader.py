"""Training batches of a source, a pure function of (seed, step).

The source is shuffled anew in each epoch; a run that was stopped goes on at its step. A
process loads the rows of the global batch that its devices hold, so that the global
batch is the same whatever the number of processes.
"""

import dataclasses
import itertools
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grain
import jax
import numpy as np
from ml_collections import ConfigDict

from flowtok_jax.data.captions import CaptionOptions
from flowtok_jax.data.examples import (
    CONTENTS,
    Example,
    Mixture,
    Source,
    collate,
)
from flowtok_jax.data.records import Record, RejectCounter, Side
from flowtok_jax.data.source_strings import parse_sources
from flowtok_jax.data.sources import Shapes, keep_centres, make_source
from flowtok_jax.data.transforms import possible_captions
from flowtok_jax.data.vocabulary import SPECIAL_TOKENS, CaptionCounts, Vocabulary
from flowtok_jax.runtime.errors import UserError

Batch = dict[str, np.ndarray]
SAID = 0.01  # share of unknown tokens, or of captions cut, above which it is said
COUNTED = 512  # captions that a vocabulary not made of them is compared with
BLOCK = 256  # records in memory at a time
ANY_SIZE = 1 << 31  # rows for all words of captions


def caption_options(config: ConfigDict) -> CaptionOptions:
    """Returns how a config has captions read; runs of before the keys had no choice."""
    if "captions" not in config.data:
        return CaptionOptions()
    return CaptionOptions(
        reading=config.data.captions,
        keys=config.data.caption_keys,
        extensions=config.data.caption_extensions,
    )


def training_side(config: ConfigDict) -> Side | None:
    """Returns the side of data.train that training sees; None: all of it.

    Raises:
        UserError: for a share that cannot be.
    """
    share = config.data.held_out
    if not 0 <= share < 1:
        raise UserError(
            f"data.held_out is {share:g}; expected a share of at least 0, below 1"
        )
    return Side(share, False) if share else None


def evaluated_source(config: ConfigDict) -> tuple[str, Side | None]:
    """Returns the source that previews and evaluation look at, and the side of it: all
    of data.eval, by default what training holds out of data.train, or all of that.
    """
    side = training_side(config)
    if config.data.eval or side is None:
        return config.data.eval or config.data.train, None
    return config.data.train, side._replace(is_held_out=True)


def open_training(config: ConfigDict, *, with_images: bool = True) -> Source:
    """Opens data.train without the share that is held out.

    Args:
        with_images: whether examples have images; see `ImageTransform`.
    """
    spec = config.data.train
    side = training_side(config)
    source = open_source(config, spec, side=side, with_images=with_images)
    keep_centres(source, config.data.keep_gib * 2**30 / max(1, config.data.workers))
    return source


def open_evaluation(config: ConfigDict) -> Source:
    """Opens the centres of the images of `evaluated_source`."""
    spec, side = evaluated_source(config)
    return open_source(config, spec, centre=True, side=side)


def open_source(
    config: ConfigDict,
    spec: str,
    *,
    centre: bool = False,
    side: Side | None = None,
    with_images: bool = True,
) -> Source:
    """Makes the source that a source string names, with a config's sizes and options.

    Args:
        centre: take the centre of each image as it is, whatever training draws.
        side: of a split, whose records alone the source has; None: all.
        with_images: whether examples have images; see `ImageTransform`.

    Raises:
        UserError: for a source that is missing, damaged or given wrongly.
    """
    transform = config.data.transform.to_dict() | {"with_images": with_images}
    if centre:
        transform |= {"crop": "center", "flip": False}
    return make_source(
        spec,
        image_size=config.tokenizer.image_size,
        seed=config.train.seed,
        tokens=config.latent.tokens,
        channels=config.latent.channels,
        transform=transform,
        filters=config.data.filters.to_dict(),
        cache=config.data.cache,
        captions=caption_options(config),
        side=side,
    )


def make_vocabulary(config: ConfigDict) -> Vocabulary:
    """Makes the vocabulary that a config names; "captions" trains one on data.train."""
    context = config.latent.tokens
    if config.text.vocabulary != "captions":
        return _load_vocabulary("text.vocabulary", config.text.vocabulary, context)
    captions = _captions_of_vocabulary(config)
    return Vocabulary.train(captions, config.clip.vocab_size, context)


def make_new_vocabulary(config: ConfigDict, old: Vocabulary) -> Vocabulary:
    """Makes the vocabulary that replaces the one of weights, with rows for all words.

    Raises:
        UserError: where `init_vocabulary` names none.
    """
    if config.init_vocabulary != "captions":
        return _load_vocabulary("init_vocabulary", config.init_vocabulary, old.context)
    captions = _captions_of_vocabulary(config)
    # A tower that reads a start token before every caption goes on to find one there.
    has_start = old.start_id is not None
    return Vocabulary.train(captions, ANY_SIZE, old.context, has_start)


def _captions_of_vocabulary(config: ConfigDict) -> list[str]:
    """Draws the captions that a vocabulary is made of.

    Raises:
        UserError: where there are none: a run would go on with a vocabulary of nothing.
    """
    source = open_training(config)
    count = min(config.text.vocabulary_captions, len(source))
    if captions := draw_captions(source, count):
        return captions
    source[0]  # says what is wrong where no record can be used
    raise UserError(
        f"none of {count} records of data.train = {config.data.train} has a caption to "
        "make a vocabulary of; expected captions, or another text.vocabulary"
    )


def _load_vocabulary(key: str, spec: str, context: int) -> Vocabulary:
    try:
        return Vocabulary.load(spec, context)
    except UserError as error:
        raise UserError(f"{key} is {spec!r}: {error}") from error


def check_captions(config: ConfigDict, vocabulary: Vocabulary, inherited: str) -> None:
    """Says what a vocabulary lacks for the captions of data.train, with the cure.

    Args:
        inherited: the weights that the vocabulary comes with; "" for the config's own.

    Raises:
        UserError: where a larger share of the tokens is unknown than text.max_unknown.
    """
    named = config.init_vocabulary or config.text.vocabulary
    is_made = not inherited and named == "captions"
    most = config.text.vocabulary_captions if is_made else COUNTED
    counts = count_captions(config, vocabulary, most)
    if counts.cut_share > SAID:
        logging.warning(
            "%.0f %% of the captions are longer than latent.tokens = %d and are cut; "
            "expected shorter captions, or a larger latent.tokens in training "
            "from nothing",
            100 * counts.cut_share,
            vocabulary.context,
        )
    if counts.unknown_share <= SAID:
        return
    words = ", ".join(repr(word) for word, _ in counts.unknown.most_common(5))
    message = (
        f"the vocabulary lacks {100 * counts.unknown_share:.0f} % of the tokens of "
        f"{counts.captions} captions of {config.data.train}, most often {words}; "
        f"expected {_words_cure(config, counts.words, inherited, is_made)}"
    )
    if counts.unknown_share > config.text.max_unknown:
        raise UserError(
            f"{message}, or --config.text.max_unknown=1 to train all the same"
        )
    logging.warning(message)


def _words_cure(config: ConfigDict, words: int, inherited: str, is_made: bool) -> str:
    """Returns what to do about words that a vocabulary lacks.

    Args:
        words: number of different words in the captions.
        inherited, is_made: where the vocabulary comes from: weights, the captions.
    """
    needed = words + len(SPECIAL_TOKENS)
    if inherited:
        flags = "--config.init_vocabulary=captions"
        # A text tokenizer has to learn to write the new words before i2t uses them.
        if "i2t" in config.stages and "text_tokenizer" not in config.stages:
            flags += f" --config.stages={','.join(('text_tokenizer', *config.stages))}"
        return (
            f"captions in the words of {inherited}, or training from these weights "
            f"with {flags}, a vocabulary made of the captions in which shared words "
            "keep their rows"
        )
    if config.init_vocabulary:
        return "another --config.init_vocabulary"
    if is_made and needed > config.clip.vocab_size:
        return f"--config.clip.vocab_size={needed} at least"
    if is_made:
        return "a larger --config.text.vocabulary_captions"
    return "another --config.text.vocabulary"


def count_captions(
    config: ConfigDict, vocabulary: Vocabulary, most: int = COUNTED
) -> CaptionCounts:
    """Counts what a vocabulary makes of the captions of `most` records of data.train.

    These are other records than those of which a vocabulary is made, if there are more.
    """
    return vocabulary.count(draw_captions(open_training(config), most, seed=1))


def draw_captions(source: Source, count: int, seed: int = 0) -> list[str]:
    """Draws all captions of `count` records from all over a source, without images.

    Those that `data.transform.recaption_rate` never takes are left out, unlike those of
    records that filters or broken images keep out of training.
    """
    count = min(count, len(source))
    if isinstance(source, Mixture):
        shares = (-(-count * len(part) // len(source)) for part in source.parts)
        pairs = zip(source.parts, shares, strict=True)
        drawn = (draw_captions(part, share, seed) for part, share in pairs)
        return list(itertools.chain.from_iterable(drawn))
    if isinstance(source, Shapes):  # each is drawn by itself, so that any will do
        source = dataclasses.replace(source, with_images=False)
        indices = np.arange(seed * count, (seed + 1) * count) % len(source)
        return [source[int(i)]["caption"] for i in indices]
    indices = np.random.default_rng(seed).choice(len(source), count, replace=False)
    captions: list[str] = []
    for start in range(0, count, BLOCK):  # records hold their image files
        rows = indices[start : start + BLOCK].tolist()
        for record in source.records.read_many(rows):
            if isinstance(record, Record):
                captions += possible_captions(record, source.transform.recaption_rate)
    return captions


def abstract_batch(
    config: ConfigDict, with_images: bool = True
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and dtypes of a global batch, without opening the source."""
    rows = config.train.batch_size
    tokens = config.latent.tokens
    side = config.tokenizer.image_size
    batch = {"caption_ids": jax.ShapeDtypeStruct((rows, tokens), np.int32)}
    if not with_images:
        return batch
    # The first part tells: a mixture has images alone or moments alone.
    if parse_sources(config.data.train)[0].kind == "latents":
        shape = (rows, tokens, 2 * config.latent.channels)
        return batch | {"moments": jax.ShapeDtypeStruct(shape, np.float16)}
    return batch | {"image": jax.ShapeDtypeStruct((rows, side, side, 3), np.uint8)}


@dataclasses.dataclass(eq=False)
class _Places:
    """Picks of this process: the (position, index) of each row of its batches.

    Place i is row `rows[i % len(rows)]` of global batch `i // len(rows)`; `picks` has
    one entry for each row of each global batch.
    """

    picks: grain.MapDataset
    rows: np.ndarray
    batch_size: int

    def __len__(self) -> int:
        return len(self.picks) // self.batch_size * len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, int]:
        step, place = divmod(index, len(self.rows))
        return self.picks[step * self.batch_size + int(self.rows[place])]


class Loader:
    """Endless iterator over this process's rows of the global batches.

    A batch is {"caption_ids": int32 [b, n]} with "image": uint8 [b, s, s, 3] or
    "moments": float16 [b, n, 2 * c], or with neither. `rejects` counts the records
    replaced since the loader was made.

    Args:
        start_step: step whose batch comes first.
        rows: rows of the global batch, ascending; None: all.
        with_images: whether batches have images or moments; what nobody takes is not
            decoded.
    """

    def __init__(
        self,
        config: ConfigDict,
        vocabulary: Vocabulary,
        start_step: int,
        rows: np.ndarray | None = None,
        with_images: bool = True,
    ):
        batch_size = config.train.batch_size
        rows = np.arange(batch_size) if rows is None else rows
        source = open_training(config, with_images=with_images)
        places = _Places(source.picks(config.train.seed), rows, batch_size)
        places = grain.MapDataset.source(places)[start_step * len(rows) :]
        self._rows = len(rows)
        read = _Reader(source, vocabulary, config.data.threads, with_images)
        batches = places.batch(len(rows)).map(read)
        ahead = _read_ahead(batches, config.data.prefetch, config.data.workers)
        self._batches = iter(ahead)
        self.rejects = RejectCounter(config.data.max_rejected)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """Returns the next batch.

        Raises:
            UserError: if a larger share of records is broken than data.max_rejected.
        """
        batch = next(self._batches)
        self.rejects.add(batch.pop("rejected"), self._rows)
        return batch


class _Reader:
    """Reader of the batch of given picks, with threads for images."""

    def __init__(
        self, source: Source, vocabulary: Vocabulary, threads: int, with_images: bool
    ):
        self._arguments = (source, vocabulary, threads, with_images)
        self._source = source
        self._vocabulary = vocabulary
        # Latents are read with their captions.
        self._left_out = frozenset() if with_images else CONTENTS
        self._pool = ThreadPoolExecutor(threads)

    def __reduce__(self):  # threads do not pickle: a worker process makes its own
        return _Reader, self._arguments

    def __call__(self, picks: tuple[np.ndarray, np.ndarray]) -> Example:
        if self._source.content == "moments":  # nothing to decode: read together
            batch = self._source.read_batch(*picks)
        else:
            numbers = (array.tolist() for array in picks)
            batch = collate(list(self._pool.map(self._source.read, *numbers)))
        # No warnings: training meets the same captions in each epoch.
        ids = self._vocabulary.encode(batch.pop("caption"), warns=False)
        kept = {k: v for k, v in batch.items() if k not in self._left_out}
        return {**kept, "caption_ids": ids}


def _read_ahead(
    batches: grain.MapDataset[Example], prefetch: int, workers: int
) -> grain.IterDataset[Example]:
    """Reads batches ahead, in order."""
    # Batches and not examples: grain looks through all that is ready for each element.
    # Two at once, so that no thread of the reader idles at the end of a batch.
    ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=prefetch)
    ready = batches.to_iter_dataset(ahead)
    if not workers:
        return ready
    return ready.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
