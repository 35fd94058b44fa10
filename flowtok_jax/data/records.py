"""One record of a data set before decoding, and what can be wrong with it."""

import abc
import bisect
import collections
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flowtok_jax.runtime.errors import UserError

# Why a record cannot be used. Data that is broken:
BROKEN = (
    "bad_json",
    "bad_text_encoding",
    "broken_image",
    "duplicate_member",
    "empty_caption",
    "empty_file",
    "missing_caption",
    "missing_image",
    "missing_metadata",
    "missing_moments",
    "not_a_file",
    "not_an_image",
    "not_finite",
    "too_large",
    "truncated_image",
    "unreadable_file",
    "unsafe_name",
    "unsupported_image",
    "wrong_extension",
    "wrong_shape",
)
# Data that the run does not want.
UNWANTED = (
    "duplicate",
    "filtered_aesthetic",
    "filtered_aspect",
    "filtered_size",
    "filtered_watermark",
)
REASONS = BROKEN + UNWANTED

Rejected = tuple[tuple[str, str], ...]  # (reason, name) of records that were replaced


class BadRecord(Exception):  # noqa: N818 (it is replaced and counted, no error)
    """A record that cannot be used: why, and which."""

    def __init__(self, reason: str, name: str):
        assert reason in REASONS, reason
        super().__init__(reason, name)
        self.reason, self.name = reason, name


class Record(NamedTuple):
    """An image, or moments of its tokens, with its captions.

    Attributes:
        name: for messages: the file, or the tar and the member's key.
        image: the bytes of an image file, not decoded.
        moments: [n, 2 * c], mean and logvar.
        recaptions: captions that another model wrote of the image.
        metadata: columns that came with it, such as original_width.
    """

    name: str
    captions: tuple[str, ...] = ()
    recaptions: tuple[str, ...] = ()
    image: bytes | None = None
    moments: np.ndarray | None = None
    metadata: Mapping[str, Any] = {}

    def with_captions(
        self, captions: Sequence[str], recaptions: Sequence[str]
    ) -> "Record":
        """With those that say something.

        Raises:
            BadRecord: where none does.
        """
        captions, recaptions = (
            tuple(filter(None, texts)) for texts in (captions, recaptions)
        )
        if not captions + recaptions:
            raise BadRecord("empty_caption", self.name)
        return self._replace(captions=captions, recaptions=recaptions)


class Records(abc.ABC):
    """Random access to records; indexing raises BadRecord for one that is broken."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Record: ...

    def read_many(self, indices: Sequence[int]) -> list[Record | BadRecord]:
        """Many records, in places of broken ones what is wrong with them."""
        found: list[Record | BadRecord] = []
        for index in indices:
            try:
                found.append(self[index])
            except BadRecord as bad:
                found.append(bad)
        return found


class Joined(Records):
    """The records of several, one after the other."""

    def __init__(self, parts: Sequence[Records]):
        self._parts = parts
        self._ends = list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        part = bisect.bisect_right(self._ends, index)
        found = self._parts[part]
        return found[index - self._ends[part] + len(found)]


def decode_text(data: bytes, name: str) -> str:
    """UTF-8 text without white space around it."""
    try:
        return data.decode().strip()
    except UnicodeDecodeError as error:
        raise BadRecord("bad_text_encoding", name) from error


def caption_list(value: Any, name: str) -> tuple[str, ...]:
    """Captions of a text, or of a list of texts, as found in JSON."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(x, str) for x in texts):
        raise BadRecord("missing_caption", name)
    found = tuple(text.strip() for text in texts if text.strip())
    try:
        "".join(found).encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, as "\\ud800"
        raise BadRecord("bad_text_encoding", name) from error
    if not found:
        raise BadRecord("empty_caption" if texts else "missing_caption", name)
    return found


class RejectCounter:
    """Counts rejected records by reason, each once, and stops where they are too many.

    Args:
        max_fraction: of the records read that may be broken; unwanted ones (filters)
            do not count.
        first: names kept of each reason.
        patience: records to read before the fraction is looked at.
        known: distinct names to remember; further ones count each time they are met.
    """

    def __init__(
        self,
        max_fraction: float = 0.05,
        first: int = 5,
        patience: int = 200,
        known: int = 1_000_000,
    ):
        self.max_fraction, self.first = max_fraction, first
        self.patience, self.known = patience, known
        self.counts: collections.Counter[str] = collections.Counter()
        self.names: dict[str, list[str]] = {}
        self.read = self.broken = 0
        self._seen: set[int] = set()

    def add(self, rejected: Iterable[tuple[str, str]], examples: int) -> None:
        """Takes in the rejects that came with a number of examples.

        Raises:
            UserError: where more records are broken than max_fraction allows.
        """
        self.read += examples
        for reason, name in rejected:
            self.read += 1
            self.broken += reason in BROKEN
            key = hash((reason, name))
            if key in self._seen:
                continue
            if len(self._seen) < self.known:
                self._seen.add(key)
            self.counts[reason] += 1
            names = self.names.setdefault(reason, [])
            if len(names) < self.first:
                names.append(name)
        if self.read >= self.patience and self.broken > self.max_fraction * self.read:
            raise UserError(
                f"{self.broken} of {self.read} records read are broken "
                f"({self.describe()}); at most {self.max_fraction:g} of them may be: "
                "mend the data, or allow more with data.max_rejected"
            )

    def describe(self) -> str:
        """Each reason with its count and first name, on one line."""
        return ", ".join(
            f"{reason} {count}, first {self.names[reason][0]}"
            for reason, count in self.counts.most_common()
        )

    def summary(self) -> dict[str, Any]:
        """Counts and first names by reason, for a report."""
        return {"rejected": dict(sorted(self.counts.items())), "first": self.names}
