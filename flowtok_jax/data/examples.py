"""Training examples by random access.

An example is a pure function of (seed, position, index): the position in the endless
stream of examples draws crops and captions, the index names the record. A record that
cannot be used is replaced by another, drawn from (seed, index), and reported with the
example that took its place.
"""

import abc
import bisect
import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np

from flowtok_jax.data.records import BadRecord, Record, Records, RejectCounter
from flowtok_jax.runtime.errors import UserError

# {"image": uint8 [s, s, 3] or "moments": float16 [n, 2 * c] or none, "caption": str,
# "rejected": (reason, name) of each record that the example replaces}. In a batch:
# arrays with one axis more, a list of captions, and the rejects of all examples.
Example = dict[str, Any]
Number = int | np.integer
Numbers = Sequence[int] | np.ndarray
Transform = Callable[[Record, random.Random], Example]

CONTENTS = frozenset({"image", "moments"})
TRIES = 256  # unusable records in a row before a run stops


class Source(abc.ABC):
    """Random access to examples, and the order in which training sees them."""

    content: str  # "image" or "moments"

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, position: Number, index: Number) -> Example:
        """Makes the example at a position of the stream from the record at an index."""

    def __getitem__(self, index: Number) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)  # ends iteration by index: no __iter__ here
        return self.read(index, index)

    def order(self, seed: int) -> grain.MapDataset:
        """Returns indices without end: all of them, shuffled anew in each epoch."""
        return grain.MapDataset.range(len(self)).seed(seed).shuffle().repeat()

    def picks(self, seed: int) -> grain.MapDataset:
        """Returns (position, index) without end, as `read` and `read_batch` take."""
        # A function of the module, no lambda: worker processes unpickle it.
        return self.order(seed).map_with_index(_pick)

    def read_many(self, positions: Numbers, indices: Numbers) -> list[Example]:
        """Makes many examples, as `read` makes one."""
        pairs = zip(positions, indices, strict=True)
        return [self.read(position, index) for position, index in pairs]

    def read_batch(self, positions: Numbers, indices: Numbers) -> Example:
        """Makes the examples of a batch and collates them."""
        return collate(self.read_many(positions, indices))


def _pick(position: int, index: int) -> tuple[int, int]:
    return position, index


def collate(examples: Sequence[Example]) -> Example:
    """Stacks examples into a batch."""
    contents = CONTENTS & examples[0].keys()  # none where captions are alone
    batch: Example = {name: np.stack([e[name] for e in examples]) for name in contents}
    batch["caption"] = [example["caption"] for example in examples]
    rejected = (example["rejected"] for example in examples)
    batch["rejected"] = tuple(itertools.chain.from_iterable(rejected))
    return batch


@dataclasses.dataclass(eq=False)
class RecordSource(Source):
    """Examples made of records; a record that cannot be used is replaced by another."""

    records: Records
    transform: Transform
    _: dataclasses.KW_ONLY
    content: str
    seed: int
    tries: int = TRIES

    def __len__(self) -> int:
        return len(self.records)

    def read(self, position: Number, index: Number) -> Example:
        """Makes one example; see Source.

        Raises:
            UserError: if too many records in a row cannot be used.
        """
        return self.read_many([position], [index])[0]

    def read_many(self, positions: Numbers, indices: Numbers) -> list[Example]:
        """Makes many examples, whose records are read together."""
        numbers = [int(index) for index in indices]
        found = zip(positions, numbers, self.records.read_many(numbers), strict=True)
        return [self._make(int(position), i, record) for position, i, record in found]

    def _make(self, position: int, index: int, found: Record | BadRecord) -> Example:
        rejected = []
        tried = {index}
        substitutes = self._substitutes(index, tried)
        while True:
            try:
                if isinstance(found, BadRecord):
                    raise found
                # The position gets the lower 64 bits, so that no two pairs are alike.
                rng = random.Random(self.seed << 64 | position)
                example = self.transform(found, rng)
            except BadRecord as bad:
                rejected.append((bad.reason, bad.name))
            else:
                example["rejected"] = tuple(rejected)
                return example
            place = next(substitutes, None)
            if place is None:
                raise self._unusable(rejected, len(tried))
            tried.add(place)
            (found,) = self.records.read_many([place])

    def _substitutes(self, index: int, tried: set[int]) -> Iterator[int]:
        """Yields the records that may take the place of one, in their order.

        Args:
            tried: records that the caller has read since.
        """
        for attempt in range(self.tries - 1):
            # Without the position: a bad record has one substitute in all epochs.
            rng = np.random.default_rng((self.seed, index, attempt))
            step = int(rng.integers(1, max(2, len(self))))  # never back to itself
            yield (index + step) % len(self)
        # Of few records all are tried: the draws may have missed the good one.
        if len(self) <= self.tries:
            yield from (place for place in range(len(self)) if place not in tried)

    def _unusable(self, rejected: Sequence[tuple[str, str]], tried: int) -> UserError:
        """Makes the error for a record that has no substitute."""
        counter = RejectCounter(max_fraction=1.0)
        counter.add(rejected, 0)
        which = f"{len(rejected)} records in a row cannot be used"
        if tried == len(self):
            which = f"none of the {tried} records of a source can be used"
        is_filtered = counter.broken < len(rejected)
        cure = "mend the data" + " or loosen data.filters" * is_filtered
        return UserError(f"{which}: {counter.describe()}; {cure}")


class Mixture(Source):
    """Several sources joined into one.

    Args:
        weights: frequency of each part, kept to 1 %; each part goes through its own
            epochs. None: by length, so that one epoch sees each record once.

    Raises:
        UserError: if images and latents are mixed.
    """

    def __init__(self, parts: Sequence[Source], weights: Sequence[float] | None):
        contents = {part.content for part in parts}
        if len(contents) > 1:
            raise UserError(
                "a source mixes images and latents; pretokenise the images, or leave "
                "out one of them"
            )
        (self.content,) = contents
        self.parts = parts
        self.weights = weights
        self._ends = list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __repr__(self) -> str:
        return f"Mixture({list(self.parts)!r}, {self.weights})"

    def _start(self, part: int) -> int:
        return self._ends[part] - len(self.parts[part])

    def read(self, position: Number, index: Number) -> Example:
        """Makes one example; a record is replaced by another of the same part."""
        part = bisect.bisect_right(self._ends, index)
        return self.parts[part].read(position, index - self._start(part))

    def read_many(self, positions: Numbers, indices: Numbers) -> list[Example]:
        """Makes many examples; the records of each part are read together."""
        positions = np.asarray(positions)
        indices = np.asarray(indices)
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
        """Returns indices without end; with weights, each part has its own order."""
        if self.weights is None:
            return super().order(seed)
        ranges = [  # seed + part: parts of one length would else have one order
            grain.MapDataset.range(self._start(part), end)
            .seed(seed + part)
            .shuffle()
            .repeat()
            for part, end in enumerate(self._ends)
        ]
        return grain.MapDataset.mix(ranges, self.weights)
