"""Records in ArrayRecord shards, as `shards.write_arrayrecord` writes them."""

import logging
import pathlib
from collections.abc import Iterable, Sequence

import grain
from array_record.python.array_record_module import ArrayRecordReader

from flowtok_jax.data import globs, shards
from flowtok_jax.data.captions import CaptionOptions
from flowtok_jax.data.records import BadRecord, Record, Records
from flowtok_jax.runtime.errors import UserError

# Exceptions of array_record and of shards.unpack for a damaged entry.
DAMAGE = (RuntimeError, ValueError, KeyError, TypeError)
BLOCK = 256  # records in memory at a time, where all names are read
# Names of all records by the files that have them. Reading all of a data set may take
# minutes, and a run opens its sources a dozen times.
_NAMES: dict[tuple[globs.File, ...], list[str]] = {}
LOOKED_AT = 32  # records opened at the start, to tell a wrong source


class ArrayRecords(Records):
    """Records of ArrayRecord shards, with images or with latents.

    Args:
        pattern: glob of local files; see `globs.find_files`.
        moments: (n, 2 * c) of latents; None: the shards hold images.
        captions: how they are read.

    Raises:
        UserError: for a shard that is missing, cut short, or holds something else.
    """

    def __init__(
        self,
        pattern: str,
        *,
        moments: tuple[int, int] | None = None,
        captions: CaptionOptions = CaptionOptions(),  # noqa: B008 (immutable)
    ):
        self.pattern = pattern
        self.moments = moments
        self._captions = captions
        if globs.is_remote(pattern):
            raise UserError(
                f"source {pattern}: ArrayRecord shards are read from local files only; "
                "copy them here, or use tars"
            )
        found = globs.find_files(pattern, pattern)
        for directory in {pathlib.Path(file.path).parent for file in found}:
            shards.check_manifest(directory)
        counts = [count_records(pathlib.Path(file.path)) for file in found]
        pairs = zip(found, counts, strict=True)
        # Without [0:count] grain would open and count each shard once more.
        self._entries = grain.sources.ArrayRecordDataSource(
            [f"{file.path}[0:{count}]" for file, count in pairs]
        )
        self._files = tuple(found)
        self._check_content()

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"ArrayRecords({self.pattern!r}, {len(self)} records)"

    def __getitem__(self, index: int) -> Record:
        try:
            return self._unpack(self._entries[index])
        except DAMAGE as error:
            raise BadRecord("unreadable_file", f"{self.pattern}:{index}") from error

    def keys(self) -> Iterable[str]:
        """Returns the name that each record had in the source of the shards."""
        if self._files not in _NAMES:
            logging.info("%s: reading the names of all records", self.pattern)
            _NAMES[self._files] = self._read_names()
        return _NAMES[self._files]

    def _read_names(self) -> list[str]:
        """Reads all names; a record that cannot be read has its number."""
        names = []
        for start in range(0, len(self), BLOCK):
            rows = range(start, min(start + BLOCK, len(self)))
            for number, found in zip(rows, self.read_many(rows), strict=True):
                is_bad = isinstance(found, BadRecord)
                names.append(str(number) if is_bad else found.name)
        return names

    def read_many(self, indices: Sequence[int]) -> list[Record | BadRecord]:
        """Reads many records by one call, in parallel."""
        try:
            return [self._unpack(e) for e in self._entries.__getitems__(indices)]
        except DAMAGE:  # one by one, to find the damaged record
            return super().read_many(indices)

    def _unpack(self, entry: bytes) -> Record:
        record = shards.unpack(entry)
        clean = self._captions.clean
        return record._replace(
            captions=tuple(map(clean, record.captions)),
            recaptions=tuple(map(clean, record.recaptions)),
        )

    def _check_content(self) -> None:
        """Refuses shards whose first records have none of the expected shape."""
        found = super().read_many(range(min(LOOKED_AT, len(self))))
        moments = [r.moments for r in found if not isinstance(r, BadRecord)]
        shapes = {None if m is None else m.shape for m in moments}
        if shapes and self.moments not in shapes:
            raise UserError(
                f"{self.pattern} holds {', '.join(map(_content, shapes))}; expected "
                f"{_content(self.moments)}: is it a source of another kind "
                "(arrayrecord, latents), or made for another config?"
            )
        if not shapes and len(self):
            raise UserError(
                f"{self.pattern} holds no records of this package; expected shards of "
                "`python -m flowtok_jax.data.prepare` or of --mode=pretokenize"
            )


def _content(shape: tuple[int, ...] | None) -> str:
    return "images" if shape is None else f"latents {shape}"


def count_records(path: pathlib.Path) -> int:
    """Counts the records of a shard.

    Raises:
        UserError: if the shard is cut short or is no ArrayRecord file.
    """
    reader = ArrayRecordReader(str(path))
    if not reader.ok():
        raise UserError(
            f"{path} is no whole ArrayRecord file ({path.stat().st_size} bytes); make "
            "or fetch it again"
        )
    count = reader.num_records()
    reader.close()
    return count
