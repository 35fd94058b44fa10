"""Records in tars, found by an index of the members, with one read per record."""

import bisect
import itertools
import logging
import math
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from flowtok_jax.data import globs
from flowtok_jax.data.captions import CaptionOptions, log_once
from flowtok_jax.data.records import (
    REASONS,
    BadRecord,
    Record,
    Records,
    RejectCounter,
    read_object,
)
from flowtok_jax.data.shards import check_manifest
from flowtok_jax.data.tar_index import ABSENT, EXTENSIONS, PARTS, Spans, read_indices
from flowtok_jax.runtime.errors import UserError

GAP = 1 << 16  # bytes between two members up to which one read takes both


class Tars(Records):
    """Records of tars: `KEY.jpg` (png, webp, ...), `KEY.txt`, `KEY.recap_txt`,
    `KEY.json`; or, instead of the image, `KEY.token.npy`: raw float16 [2 * c, n].

    Args:
        pattern: glob of the tars; see `globs.find_files`.
        moments: (n, 2 * c) of latents; None: the tars hold images.
        cache: directory for the indices; None: the user's cache directory.
        captions: how they are read.

    Raises:
        UserError: for a tar that is missing, cut short or damaged.
    """

    def __init__(
        self,
        pattern: str,
        *,
        moments: tuple[int, int] | None = None,
        cache: str | None = None,
        captions: CaptionOptions = CaptionOptions(),  # noqa: B008 (immutable)
    ):
        self.pattern = pattern
        self._captions = captions
        self.moments = moments
        self._files = globs.find_files(pattern, pattern)
        if moments and not globs.is_remote(pattern):
            for directory in {pathlib.Path(file.path).parent for file in self._files}:
                check_manifest(directory)
        self._indices = read_indices(self._files, cache, captions.extensions)
        self._ends = list(itertools.accumulate(map(len, self._indices)))
        self._check_content()

    def _check_content(self) -> None:
        """Refuses tars in which no record has an image, or moments of this size."""
        part = "image" if self.moments is None else "moments"
        expected = 2 * math.prod(self.moments) if self.moments else None  # bytes
        place = PARTS.index(part)
        largest = ABSENT
        for index in self._indices:  # mostly the first one tells
            sizes = index["size"][:, place]
            if ((sizes != ABSENT) if expected is None else (sizes == expected)).any():
                return
            largest = max(largest, int(sizes.max(initial=ABSENT)))
        if largest == ABSENT:
            other = "latents" if self.moments is None else "tars"
            endings = ", ".join(f".{x}" for x, y in EXTENSIONS.items() if y == part)
            faults = self._describe_faults(part)
            raise UserError(
                f"{self.pattern} has no {part}: {faults}; expected "
                f"members {endings}, or is it a source {other}:{self.pattern}?"
            )
        tokens, channels = self.moments
        raise UserError(
            f"{self.pattern} has members .token.npy of up to {largest} bytes; "
            f"{tokens} tokens of {channels // 2} channels take {expected}: made for "
            "another config?"
        )

    def _describe_faults(self, part: str) -> str:
        """Describes what is wrong with the records by counts and first keys."""
        faults = RejectCounter(1.0)
        for index in self._indices:
            for key, fault in zip(index["key"], index["fault"], strict=True):
                reason = REASONS[fault - 1] if fault else f"missing_{part}"
                faults.add([(reason, key.decode(errors="replace"))], 0)
        return faults.describe() or "it is empty"

    def __len__(self) -> int:
        return self._ends[-1]

    def __repr__(self) -> str:
        return f"Tars({self.pattern!r}, {len(self)} records)"

    def __getitem__(self, index: int) -> Record:
        (found,) = self.read_many([index])
        if isinstance(found, BadRecord):
            raise found
        return found

    def keys(self) -> Iterable[str]:
        """Returns the key of each record's members, whatever the tars are called."""
        for index in self._indices:
            for key in index["key"].tolist():
                yield key.decode(errors="replace")

    def read_many(self, indices: Sequence[int]) -> list[Record | BadRecord]:
        """Reads many records; each tar is opened once, and read from front to back."""
        found: dict[int, Record | BadRecord] = {}
        for tar, rows in itertools.groupby(sorted(set(indices)), self._tar):
            path = self._files[tar].path
            start = self._ends[tar] - len(self._indices[tar])
            plans = []
            for index in rows:
                key, fault, offsets, sizes = self._indices[tar][index - start].item()
                name = f"{path}:{key.decode(errors='replace')}"
                if fault:
                    found[index] = BadRecord(REASONS[fault - 1], name)
                else:
                    spans = _spans(offsets.tolist(), sizes.tolist())
                    plans.append((index, name, spans))
            for index, name, parts in _read_parts(path, plans):
                try:
                    found[index] = self._record(parts, name)._replace(
                        key=name.removeprefix(f"{path}:")
                    )
                except BadRecord as bad:
                    found[index] = bad
        return [found[index] for index in indices]

    def _tar(self, index: int) -> int:
        return bisect.bisect_right(self._ends, index)

    def _record(self, parts: dict[str, bytes], name: str) -> Record:
        metadata = {}
        if "metadata" in parts:
            metadata = read_object(parts["metadata"], name)
        options = self._captions
        captions = ()
        if "caption" in parts:
            captions = (options.decode(parts["caption"], name),)
        elif (value := options.pick(metadata)) is not None:
            captions = options.texts(value, name)
            if rivals := options.rivals(metadata):
                log_once(
                    f"{self.pattern}: JSON has different texts under "
                    f"{' and '.join(rivals)}; the first one is the caption, unless "
                    "data.caption_keys says otherwise",
                    logging.WARNING,
                )
        recaptions = ()
        if "recaption" in parts:
            recaptions = (options.decode(parts["recaption"], name),)
        if not captions + recaptions:
            raise BadRecord("missing_caption", name)
        record = Record(name, metadata=metadata)
        record = record.with_captions(captions, recaptions)
        return record._replace(**self._content(parts, name))

    def _content(self, parts: dict[str, bytes], name: str) -> dict[str, Any]:
        if self.moments is None:
            if "image" not in parts:
                raise BadRecord("missing_image", name)
            return {"image": parts["image"]}
        if "moments" not in parts:
            raise BadRecord("missing_moments", name)
        buffer = parts["moments"]
        if not buffer:
            raise BadRecord("empty_file", name)
        if len(buffer) != 2 * math.prod(self.moments):
            raise BadRecord("wrong_shape", name)
        channels_first = np.frombuffer(buffer, "<f2").reshape(self.moments[::-1])
        return {"moments": channels_first.T}  # [n 2*c]


def _spans(offsets: Sequence[int], sizes: Sequence[int]) -> Spans:
    """Returns the spans of the parts that a record has."""
    rows = zip(PARTS, offsets, sizes, strict=True)
    return {part: (offset, size) for part, offset, size in rows if offset != ABSENT}


def _read_parts(
    path: str, plans: Sequence[tuple[int, str, Spans]]
) -> Iterator[tuple[int, str, dict[str, bytes]]]:
    """Yields (index, name, bytes by part); adjacent parts are read together."""
    ranges: list[globs.Range] = []
    for _, _, spans in plans:
        start = min(offset for offset, _ in spans.values())
        end = max(offset + size for offset, size in spans.values())
        if end - start <= GAP + sum(size for _, size in spans.values()):
            # One read for all parts of the record, with the headers between them.
            ranges.append((start, end - start))
        else:
            ranges += spans.values()
    blocks = zip(ranges, globs.read_ranges(path, ranges), strict=True)
    for index, name, spans in plans:
        parts: dict[str, bytes] = {}
        while len(parts) < len(spans):  # one block for all parts, or one for each
            (start, size), data = next(blocks)
            if len(data) != size:
                raise UserError(
                    f"{path} has become shorter since it was indexed; start again"
                )
            for part, (offset, length) in spans.items():
                if start <= offset and offset + length <= start + size:
                    parts[part] = data[offset - start : offset - start + length]
        yield index, name, parts
