"""Records in ArrayRecord shards, as `shards.write_arrayrecord` writes them."""

import pathlib
from collections.abc import Sequence

import grain
from array_record.python.array_record_module import ArrayRecordReader

from flowtok_jax.data import globs, shards
from flowtok_jax.data.records import BadRecord, Record, Records
from flowtok_jax.runtime.errors import UserError

DAMAGE = (RuntimeError, ValueError, KeyError, TypeError)  # of reading and unpacking
LOOKED_AT = 32  # records that are opened at the start, to tell a wrong source


class ArrayRecords(Records):
    """Shards of images, or of latents.

    Args:
        pattern: see `globs.find_files`; local files.
        moments: (n, 2 * c) of latents; None: images are wanted.

    Raises:
        UserError: naming a shard that is missing, cut short, or holds something else.
    """

    def __init__(self, pattern: str, *, moments: tuple[int, int] | None = None):
        self.pattern, self.moments = pattern, moments
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
        self._entries = grain.sources.ArrayRecordDataSource(
            [f"{file.path}[0:{count}]" for file, count in pairs]
        )
        self._check_content()

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"ArrayRecords({self.pattern!r}, {len(self)} records)"

    def __getitem__(self, index: int) -> Record:
        try:
            return shards.unpack(self._entries[index])
        except DAMAGE as error:
            raise BadRecord("unreadable_file", f"{self.pattern}:{index}") from error

    def read_many(self, indices: Sequence[int]) -> list[Record | BadRecord]:
        """See Records; one call reads them all, in parallel."""
        try:
            return [shards.unpack(e) for e in self._entries.__getitems__(indices)]
        except DAMAGE:  # of one: find out which
            return super().read_many(indices)

    def _check_content(self) -> None:
        shapes, readable = set(), 0
        for index in range(min(LOOKED_AT, len(self))):
            try:
                record = self[index]
            except BadRecord:
                continue
            readable += 1
            shapes.add(None if record.moments is None else record.moments.shape)
        if readable and self.moments not in shapes:
            wanted = "images" if self.moments is None else f"latents {self.moments}"
            got = ", ".join("images" if s is None else f"latents {s}" for s in shapes)
            raise UserError(
                f"{self.pattern} holds {got}; wanted {wanted}: is it a source of "
                "another kind (arrayrecord, latents), or made for another config?"
            )
        if not readable and len(self):
            raise UserError(
                f"{self.pattern} holds no records of this package; wanted shards of "
                "`python -m flowtok_jax.data.prepare` or of --mode=pretokenize"
            )


def count_records(path: pathlib.Path) -> int:
    """How many records a shard holds.

    Raises:
        UserError: where it is cut short or is no ArrayRecord file.
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
