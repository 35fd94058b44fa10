"""Training examples by random access: what a source string names.

An example is a pure function of (seed, position, index): the position in the endless
stream of examples draws crops and captions, the index names the record. A record that
cannot be used is replaced by another, drawn from (seed, index), and reported with the
example that took its place.
"""

import abc
import bisect
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

import grain
import numpy as np

from flowtok_jax.data.records import BadRecord, Record, Records
from flowtok_jax.runtime.errors import UserError

# {"image": uint8 [s, s, 3] or "moments": float16 [n, 2 * c], "caption": str,
# "rejected": what it replaces}; in a batch, arrays with one axis more, a list of
# captions, and all that was rejected.
Example = dict[str, Any]
Number = int | np.integer
Numbers = Sequence[int] | np.ndarray
Transform = Callable[[Record, random.Random], Example]

TRIES = 256  # records in a row before a run stops


class Source(abc.ABC):
    """Random access to examples, and the order in which training sees them."""

    content: str  # image or moments

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, position: Number, index: Number) -> Example:
        """The example at a position of the stream, whose record has that index."""

    def __getitem__(self, index: Number) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.read(index, index)

    def order(self, seed: int) -> grain.MapDataset:
        """Indices without end: all of them shuffled, and again in each epoch."""
        return grain.MapDataset.range(len(self)).seed(seed).shuffle().repeat()

    def picks(self, seed: int) -> grain.MapDataset:
        """(position, index) without end, the arguments of `read` and `read_batch`."""
        return self.order(seed).map_with_index(_pick)

    def read_many(self, positions: Numbers, indices: Numbers) -> list[Example]:
        """As `read`, of many."""
        pairs = zip(positions, indices, strict=True)
        return [self.read(position, index) for position, index in pairs]

    def read_batch(self, positions: Numbers, indices: Numbers) -> Example:
        """The examples of a batch together."""
        return collate(self.read_many(positions, indices))


def _pick(position: int, index: int) -> tuple[int, int]:
    return position, index


def collate(examples: Sequence[Example]) -> Example:
    """A batch of examples."""
    first = examples[0]
    batch: Example = {
        key: np.stack([example[key] for example in examples])
        for key in first
        if key in ("image", "moments")
    }
    batch["caption"] = [example["caption"] for example in examples]
    rejected = (example["rejected"] for example in examples)
    batch["rejected"] = tuple(itertools.chain.from_iterable(rejected))
    return batch


class Examples(Source):
    """Examples made of records; those that cannot be used are replaced."""

    def __init__(
        self,
        records: Records,
        transform: Transform,
        *,
        content: str,
        seed: int,
        tries: int = TRIES,
    ):
        self.records, self.transform, self.content = records, transform, content
        self.seed, self.tries = seed, tries

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return f"Examples({self.records!r}, seed={self.seed})"

    def read(self, position: Number, index: Number) -> Example:
        """See Source.

        Raises:
            UserError: where too many records in a row cannot be used.
        """
        return self.read_many([position], [index])[0]

    def read_many(self, positions: Numbers, indices: Numbers) -> list[Example]:
        """See Source."""
        numbers = [int(index) for index in indices]
        found = zip(positions, numbers, self.records.read_many(numbers), strict=True)
        return [self._make(int(position), i, record) for position, i, record in found]

    def _make(self, position: int, index: int, found: Record | BadRecord) -> Example:
        rejected = []
        for attempt in range(self.tries):
            try:
                if isinstance(found, BadRecord):
                    raise found
                rng = random.Random(self.seed << 64 | position)
                example = self.transform(found, rng)
            except BadRecord as bad:
                rejected.append((bad.reason, bad.name))
            else:
                example["rejected"] = tuple(rejected)
                return example
            rng = np.random.default_rng((self.seed, index, attempt))
            step = int(rng.integers(1, max(2, len(self))))  # never to itself
            (found,) = self.records.read_many([(index + step) % len(self)])
        reason, name = rejected[0]
        raise UserError(
            f"{self.tries} records in a row cannot be used, the first ({name}) because "
            f"of {reason}; mend the data or loosen data.filters"
        )


class Mixture(Source):
    """Several sources as one.

    Args:
        weights: how often each is drawn, to 1 %; each goes through its own epochs.
            None: as often as it is long, so that one epoch sees each record once.

    Raises:
        UserError: where images and latents are mixed.
    """

    def __init__(self, parts: Sequence[Source], weights: Sequence[float] | None):
        contents = {part.content for part in parts}
        if len(contents) > 1:
            raise UserError(
                "a source mixes images and latents; pretokenise the images, or leave "
                "out one of them"
            )
        (self.content,) = contents
        self.parts, self.weights = parts, weights
        self._ends = list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __repr__(self) -> str:
        return f"Mixture({list(self.parts)!r}, {self.weights})"

    def _start(self, part: int) -> int:
        return self._ends[part] - len(self.parts[part])

    def read(self, position: Number, index: Number) -> Example:
        """See Source; a record is replaced by one of the same part."""
        part = bisect.bisect_right(self._ends, index)
        return self.parts[part].read(position, index - self._start(part))

    def read_many(self, positions: Numbers, indices: Numbers) -> list[Example]:
        """See Source; each part reads its own together."""
        positions, indices = np.asarray(positions), np.asarray(indices)
        parts = np.searchsorted(self._ends, indices, side="right")
        found: list[Example] = [{}] * len(indices)
        for part, source in enumerate(self.parts):
            (rows,) = np.nonzero(parts == part)
            inner = indices[rows] - self._start(part)
            examples = source.read_many(positions[rows], inner)
            for row, example in zip(rows, examples, strict=True):
                found[row] = example
        return found

    def order(self, seed: int) -> grain.MapDataset:
        """See Source; each part in an order of its own where there are weights."""
        if self.weights is None:
            return super().order(seed)
        ranges = [
            grain.MapDataset.range(self._start(part), end)
            .seed(seed + part)
            .shuffle()
            .repeat()
            for part, end in enumerate(self._ends)
        ]
        return grain.MapDataset.mix(ranges, self.weights)
