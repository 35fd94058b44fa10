"""Records in tars, by an index of their members and one read a record."""

import bisect
import itertools
import json
import math
from typing import Any

import numpy as np

from flowtok_jax.data import files
from flowtok_jax.data.records import (
    REASONS,
    BadRecord,
    Record,
    caption_list,
    decode_text,
)
from flowtok_jax.data.tar_index import ABSENT, PARTS, read_indices
from flowtok_jax.errors import UserError

GAP = 1 << 16  # bytes between members that are read along rather than sought over


class Tars:
    """`KEY.jpg` (png, webp, ...), `KEY.txt`, `KEY.recap_txt`, `KEY.json` of tars; or
    `KEY.token.npy` instead of the image: a raw float16 buffer [2 * c, n].

    Args:
        pattern: see `files.find`.
        moments: (n, 2 * c) of latents; None: images are wanted.
        cache: directory for the indices; None: the user's cache directory.

    Raises:
        UserError: naming a tar that is missing, cut short or damaged.
    """

    def __init__(
        self,
        pattern: str,
        *,
        moments: tuple[int, int] | None = None,
        cache: str | None = None,
    ):
        self.pattern, self.moments = pattern, moments
        self._files = files.find(pattern, pattern)
        self._indices = read_indices(self._files, cache)
        self._ends = list(itertools.accumulate(map(len, self._indices)))
        wanted = PARTS.index("moments" if moments else "image")
        if not any((i["size"][:, wanted] != ABSENT).any() for i in self._indices):
            other = "latents" if moments is None else "tars"
            raise UserError(
                f"{pattern}: no tar has a member {'.token.npy' if moments else '.jpg'} "
                f"or the like; is it a source {other}:{pattern}?"
            )

    def __len__(self) -> int:
        return self._ends[-1]

    def __repr__(self) -> str:
        return f"Tars({self.pattern!r}, {len(self)} records)"

    def __getitem__(self, index: int) -> Record:
        tar = bisect.bisect_right(self._ends, index)
        row = self._indices[tar][index - self._ends[tar]]  # counted from the end
        path = self._files[tar].path
        key = row["key"].decode(errors="replace")
        name = f"{path.rpartition('/')[2]}:{key}"
        if row["fault"]:
            raise BadRecord(REASONS[row["fault"] - 1], name)
        parts = _read_parts(path, row["offset"].tolist(), row["size"].tolist())
        metadata = _metadata(parts, name)
        captions = ()
        if "caption" in parts:
            captions = (decode_text(parts["caption"], name),)
        elif "caption" in metadata:
            captions = caption_list(metadata["caption"], name)
        recaptions = ()
        if "recaption" in parts:
            recaptions = (decode_text(parts["recaption"], name),)
        if not captions + recaptions:
            raise BadRecord("missing_caption", name)
        if not any(captions + recaptions):
            raise BadRecord("empty_caption", name)
        return Record(
            name=name,
            captions=tuple(filter(None, captions)),
            recaptions=tuple(filter(None, recaptions)),
            metadata=metadata,
            **self._content(parts, name),
        )

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
        return {"moments": channels_first.T}


def _metadata(parts: dict[str, bytes], name: str) -> dict[str, Any]:
    if "metadata" not in parts:
        return {}
    try:
        found = json.loads(parts["metadata"])
    except ValueError as error:  # UnicodeDecodeError is one
        raise BadRecord("bad_json", name) from error
    if not isinstance(found, dict):
        raise BadRecord("bad_json", name)
    return found


def _read_parts(path: str, offsets: list[int], sizes: list[int]) -> dict[str, bytes]:
    """The parts that are there; with one read where they stand together."""
    spans = {
        part: (offset, size)
        for part, offset, size in zip(PARTS, offsets, sizes, strict=True)
        if offset != ABSENT
    }
    start = min(offset for offset, _ in spans.values())
    end = max(offset + size for offset, size in spans.values())
    if end - start <= GAP + sum(size for _, size in spans.values()):
        data = memoryview(files.read_range(path, start, end - start))
        parts = {
            part: bytes(data[offset - start : offset - start + size])
            for part, (offset, size) in spans.items()
        }
    else:
        parts = {part: files.read_range(path, *span) for part, span in spans.items()}
    if any(len(parts[part]) != size for part, (_, size) in spans.items()):
        raise UserError(f"{path} has become shorter since it was indexed; start again")
    return parts
