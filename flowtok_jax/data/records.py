"""Records of a data set before decoding, and the reasons that rule a record out."""

import abc
import bisect
import collections
import dataclasses
import hashlib
import itertools
import json
import types
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from flowtok_jax.runtime.errors import UserError

# Broken data. The indices of tars hold places in REASONS, and their cache keys hash
# all of it: a new reason makes every index anew.
BROKEN = (
    "bad_json",
    "bad_row",
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
    "sparse_member",
    "too_large",
    "truncated_image",
    "unreadable_file",
    "unsafe_name",
    "unsupported_image",
    "wrong_extension",
    "wrong_shape",
)
# Sound data that the run's filters refuse; never counted against data.max_rejected.
UNWANTED = (
    "duplicate",
    "filtered_aesthetic",
    "filtered_aspect",
    "filtered_size",
    "filtered_watermark",
)
REASONS = BROKEN + UNWANTED


def printable(text: str) -> str:
    """Escapes line breaks, controls of terminals and bytes that are no text."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class BadRecord(Exception):  # noqa: N818 (it is replaced and counted, no error)
    """A record that cannot be used, with the reason and the record's name."""

    def __init__(self, reason: str, name: str):
        assert reason in REASONS, reason
        # Off a stranger's tar or disk: a line break would look like another message.
        name = printable(name)
        super().__init__(reason, name)  # both, or the exception would not unpickle
        self.reason = reason
        self.name = name


class Record(NamedTuple):
    """An image, or moments of its tokens, with its captions.

    Attributes:
        name: the file, or the tar and the member's key; for messages.
        recaptions: captions that a model wrote of the image.
        image: bytes of an image file, not decoded.
        moments: [n, 2 * c], mean and logvar.
        metadata: further columns, such as original_width.
        key: name within the source, as `Records.keys` has it; empty: `name` is that.
    """

    name: str
    captions: tuple[str, ...] = ()
    recaptions: tuple[str, ...] = ()
    image: bytes | None = None
    moments: np.ndarray | None = None
    metadata: Mapping[str, Any] = {}
    key: str = ""

    def with_captions(
        self, captions: Sequence[str], recaptions: Sequence[str]
    ) -> "Record":
        """Returns a copy with the captions that are not empty.

        Raises:
            BadRecord: if all are empty.
        """
        texts = tuple(filter(None, captions))
        retold = tuple(filter(None, recaptions))
        if not texts + retold:
            raise BadRecord("empty_caption", self.name)
        return self._replace(captions=texts, recaptions=retold)


class Records(abc.ABC):
    """Random access to records; indexing a broken one raises BadRecord.

    Attributes:
        passed_over: count of what lies beside the records and is none, by kind.
    """

    passed_over: Mapping[str, int] = types.MappingProxyType({})

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Record: ...

    def keys(self) -> Iterable[str]:
        """Returns each record's name within the source, which stays when that moves;
        by default its number.
        """
        return map(str, range(len(self)))

    def read_many(self, indices: Sequence[int]) -> list[Record | BadRecord]:
        """Reads many records; a broken one is returned as its BadRecord."""
        found: list[Record | BadRecord] = []
        for index in indices:
            try:
                found.append(self[index])
            except BadRecord as bad:
                found.append(bad)
        return found


class Joined(Records):
    """Records of several data sets, one set after the other."""

    def __init__(self, parts: Sequence[Records]):
        self._parts = parts
        self._ends = list(itertools.accumulate(map(len, parts)))
        self.passed_over = sum(
            (collections.Counter(part.passed_over) for part in parts),
            collections.Counter(),
        )

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        part = bisect.bisect_right(self._ends, index)
        found = self._parts[part]
        # The part begins len(found) before its end.
        return found[index - self._ends[part] + len(found)]

    def keys(self) -> Iterable[str]:
        """Returns each record's name within its own data set."""
        return itertools.chain.from_iterable(part.keys() for part in self._parts)


class Chosen(Records):
    """Some records of a data set.

    Attributes:
        whole: the data set.
        indices: numbers of the records there.
    """

    def __init__(self, records: Records, indices: np.ndarray):
        self.whole = records
        self.indices = indices
        self.passed_over = records.passed_over

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.whole[int(self.indices[index])]

    def keys(self) -> Iterable[str]:
        """Returns each record's name within the data set."""
        return map(list(self.whole.keys()).__getitem__, self.indices.tolist())

    def read_many(self, indices: Sequence[int]) -> list[Record | BadRecord]:
        """Reads many records as the data set does."""
        return self.whole.read_many(self.indices[np.asarray(indices, int)].tolist())


class Side(NamedTuple):
    """One side of a data set that is split by a hash of its records' names.

    Attributes:
        share: of the records that is held out of training, about.
        is_held_out: whether this side is that share, or what training sees.
    """

    share: float
    is_held_out: bool

    def has(self, key: str) -> bool:
        """Tells whether a record is on this side."""
        # macOS writes é as two characters; names off a disk may have surrogates.
        text = unicodedata.normalize("NFC", key)
        data = text.encode(errors="backslashreplace")
        digest = hashlib.blake2b(data, digest_size=8).digest()
        is_held_out = int.from_bytes(digest) < self.share * 2**64
        return is_held_out == self.is_held_out

    def find(self, keys: Iterable[str]) -> np.ndarray:
        """Finds the numbers of this side's records among those of these names."""
        return np.flatnonzero([self.has(key) for key in keys])

    def none_found(self, spec: str, length: int) -> UserError:
        """Makes the error for a source without a record on this side."""
        what = "none" if self.is_held_out else "all"
        return UserError(
            f"data.held_out = {self.share:g} holds out {what} of the {length} records "
            f"of {spec}; expected another share, such as 0.2, or 0 and a source for "
            "data.eval"
        )


def read_object(data: bytes, name: str) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        BadRecord: if the bytes are something else.
    """
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is the former
        raise BadRecord("bad_json", name) from error
    if not isinstance(found, dict):
        raise BadRecord("bad_json", name)
    return found


@dataclasses.dataclass(eq=False)
class RejectCounter:
    """Counter of rejected records by reason; too many broken records stop the run.

    Args:
        max_fraction: share of the records read that may be broken; records that a
            filter refused do not count.
        first: number of names kept for each reason.
        patience: number of records read before the share is checked.
        known: number of distinct records remembered, each of which counts once;
            records beyond that count each time.
    """

    max_fraction: float = 0.05
    first: int = 5
    patience: int = 200
    known: int = 1_000_000

    def __post_init__(self):
        self.counts: collections.Counter[str] = collections.Counter()
        self.names: dict[str, list[str]] = {}
        self.read = self.broken = 0
        self._seen: set[int] = set()  # hashes: names of a million records fill memory

    def add(self, rejected: Iterable[tuple[str, str]], examples: int) -> None:
        """Counts the records rejected while a number of examples was made.

        Raises:
            UserError: if a larger share of the records is broken than max_fraction.
        """
        self.read += examples
        for reason, name in rejected:
            # A record met again in a later epoch counts in the share, not in `counts`.
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
        """Describes each reason by its count and first name, on one line."""
        return ", ".join(
            f"{reason} {count}, first {printable(self.names[reason][0])}"
            for reason, count in self.counts.most_common()
        )

    def summary(self) -> dict[str, Any]:
        """Returns counts and first names by reason, for a report."""
        return {"rejected": dict(sorted(self.counts.items())), "first": self.names}
