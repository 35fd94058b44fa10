"""Look at a set of captioned pictures before anything is trained on it."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from flowtok_jax.data.examples import Mixture, RecordSource, Source
from flowtok_jax.data.images import open_image
from flowtok_jax.data.loader import draw_captions, open_source
from flowtok_jax.data.records import BadRecord, Records, RejectCounter
from flowtok_jax.data.vocabulary import PAD_ID, SPECIAL_TOKENS, Vocabulary
from flowtok_jax.runtime.errors import UserError

CAPTIONS_READ = 20_000
PICTURES_READ = 256
COMPARED = 4096  # pictures; of more sets none is read whole for it
TOGETHER = 64  # files in memory at a time
LONGEST = 1024  # tokens of a caption that are counted
MOST_WORDS = 32_768


class Survey(NamedTuple):
    """Counts and samples of data.train.

    Attributes:
        pictures: records of all.
        sides: (width, height) of some pictures, as they lie there.
        broken: records that cannot be used, beside these.
        copies: pictures of which another one has the same bytes; 0 of large sets, which
            are not compared.
        captions: all of some pictures.
        words: different ones in these captions.
        lengths: tokens of each caption, its end too.
    """

    pictures: int
    sides: list[tuple[int, int]]
    broken: int
    copies: int
    captions: list[str]
    words: int
    lengths: np.ndarray

    @property
    def usable(self) -> int:
        """How many pictures can be used, by the share of those looked at."""
        looked_at = len(self.sides) + self.broken
        return self.pictures - self.pictures * self.broken // max(looked_at, 1)


def look_at_data(config: ConfigDict) -> Survey:
    """Reads captions and sizes of pictures from all over data.train.

    Raises:
        UserError: where there is none, nothing in it, or too much of it broken.
    """
    if not config.data.train:
        raise UserError(
            "data.train is empty; expected --config.data.train=folder:DIR, a folder of "
            "pictures with captions (docs/data.md has all forms)"
        )
    source = open_source(config, config.data.train)
    captions = draw_captions(source, CAPTIONS_READ)
    vocabulary = Vocabulary.train(captions, MOST_WORDS, LONGEST)
    lengths = (vocabulary.encode(captions, warns=False) != PAD_ID).sum(1)
    looked_at = _read_sides(source, config.data.transform.max_pixels)
    broken = [(x.reason, x.name) for x in looked_at if isinstance(x, BadRecord)]
    sides = [side for side in looked_at if not isinstance(side, BadRecord)]
    try:
        RejectCounter(config.data.max_rejected, patience=0).add(broken, len(sides))
    except UserError as error:
        raise UserError(
            f"data.train = {config.data.train}: {error}; python -m "
            "flowtok_jax.data.prepare lists them all"
        ) from error
    words = len(vocabulary) - len(SPECIAL_TOKENS)
    copies = _count_copies(source)
    return Survey(len(source), sides, len(broken), copies, captions, words, lengths)


def _read_sides(source: Source, max_pixels: int) -> list[tuple[int, int] | BadRecord]:
    """Reads (width, height) of pictures from all over a source, without decoding them.

    Returns:
        Of a record that cannot be used what is wrong; nothing of latents and scenes.
    """
    found: list[tuple[int, int] | BadRecord] = []
    for part in _record_sources(source):
        rows = np.linspace(0, len(part) - 1, min(PICTURES_READ, len(part)))
        for record in part.records.read_many(rows.astype(int).tolist()):
            if isinstance(record, BadRecord):
                found.append(record)
            elif record.image is not None:
                try:
                    found.append(open_image(record.image, record.name, max_pixels).size)
                except BadRecord as bad:
                    found.append(bad)
    return found


def _record_sources(source: Source) -> Iterator[RecordSource]:
    """Yields the parts of a source that have records: not scenes."""
    if isinstance(source, Mixture):
        yield from itertools.chain(*map(_record_sources, source.parts))
    elif isinstance(source, RecordSource):
        yield source


def _count_copies(source: Source) -> int:
    """Counts the pictures whose bytes another one has too."""
    if len(source) > COMPARED:
        return 0
    digests: Counter[bytes] = Counter()
    for part in _record_sources(source):
        digests.update(_digests(part.records))
    return sum(n for n in digests.values() if n > 1)


def _digests(records: Records) -> Iterator[bytes]:
    for start in range(0, len(records), TOGETHER):
        rows = range(start, min(start + TOGETHER, len(records)))
        for record in records.read_many(list(rows)):
            if not isinstance(record, BadRecord) and record.image is not None:
                yield hashlib.sha256(record.image).digest()
