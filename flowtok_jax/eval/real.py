"""The real images of an evaluation: the first records of a source, each once."""

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from flowtok_jax.data import images, scenes, sources
from flowtok_jax.data.records import BadRecord, Joined, Record
from flowtok_jax.data.transforms import ImageTransform
from flowtok_jax.eval.protocols import Prompt
from flowtok_jax.runtime.errors import UserError

BLOCK = 256  # records, with their image files, in memory at a time


class Item(NamedTuple):
    """A record that can be used: the centre of its image, and all its captions."""

    number: int
    image: UInt8[np.ndarray, "s s 3"]
    record: Record


class RealImages:
    """The first `count` records of a source of captioned images.

    Nothing about them is random, unlike in training: the centre, the first caption.
    Broken ones are left out, and not replaced.

    Args:
        spec: as of `data.eval`.

    Raises:
        UserError: where the source has weights or latents, or fewer than 2 records.
    """

    def __init__(
        self,
        spec: str,
        transform: ImageTransform,
        *,
        count: int,
        seed: int,
        threads: int,
        cache: str | None = None,
    ):
        parts = sources.parse(spec)
        if any(part.kind == "latents" or part.weight is not None for part in parts):
            raise UserError(
                f"data.eval = {spec} has latents or weights; evaluation wanted images, "
                "each once"
            )
        size = transform.image_size
        options = {"image_size": size, "seed": seed, "cache": cache}
        self._records = Joined([sources.make_records(p, **options) for p in parts])
        self._transform, self._threads = transform, threads
        self._shapes = None
        if [part.kind for part in parts] == ["shapes"]:
            split = parts[0].arguments or "train"
            self._shapes = sources.Shapes(split, size, seed)
        self.spec, self.count = spec, min(count, len(self._records))
        if self.count < 2:
            raise UserError(f"data.eval = {spec} has {self.count} images; wanted 2")

    @property
    def are_scenes(self) -> bool:
        """Whether it is known exactly what each image shows."""
        return self._shapes is not None

    def scene(self, number: int) -> scenes.Scene:
        """What a generated image shows."""
        return self._shapes.scene(number)

    def _item(self, number: int) -> Item | BadRecord:
        try:
            record = self._records[number]
            if not record.captions:
                raise BadRecord("missing_caption", record.name)
            image = self._transform.decode(record)
        except BadRecord as bad:
            return bad
        image = images.resize_and_crop(image, self._transform.image_size)
        return Item(number, image, record._replace(image=None))

    def pixels(self, number: int) -> UInt8[np.ndarray, "s s 3"] | None:
        """An image, or None where it cannot be used."""
        item = self._item(number)
        return None if isinstance(item, BadRecord) else item.image

    def read(self, rows: range) -> tuple[list[Item], list[BadRecord]]:
        """The records of a range that can be used, and what is wrong with others.

        Raises:
            UserError: where none of them can be used.
        """
        with ThreadPoolExecutor(self._threads) as pool:
            found = list(pool.map(self._item, rows))
        bad = [item for item in found if isinstance(item, BadRecord)]
        if len(bad) == len(found):
            raise UserError(
                f"data.eval = {self.spec}: none of the records {rows.start} to "
                f"{rows.stop - 1} can be used, the first ({bad[0].name}) because of "
                f"{bad[0].reason}"
            )
        return [item for item in found if isinstance(item, Item)], bad

    def prompts(self) -> list[Prompt]:
        """The first caption of each record that has one.

        Raises:
            UserError: where fewer than 2 have one.
        """
        good = []
        for start in range(0, self.count, BLOCK):
            rows = range(start, min(start + BLOCK, self.count))
            found = self._records.read_many(rows)
            good += [
                Prompt(r.name, r.captions[0])
                for r in found
                if isinstance(r, Record) and r.captions
            ]
        if len(good) < 2:
            raise UserError(
                f"data.eval = {self.spec}: {len(good)} of {self.count} records have a "
                "caption; wanted 2 at least to draw"
            )
        if len(good) < self.count:
            counts = self.count - len(good), self.count
            logging.warning("%s: %d of %d records have no caption", self.spec, *counts)
        return good
