"""The real images of an evaluation: records of a source drawn by seed, each once."""

import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from flowtok_jax.data import scenes, sources
from flowtok_jax.data.captions import CaptionOptions
from flowtok_jax.data.centre import CentreReader, Square, open_images
from flowtok_jax.data.records import BadRecord, Chosen, Record, Records, Side
from flowtok_jax.data.source_strings import parse_sources
from flowtok_jax.eval.protocols import Prompt
from flowtok_jax.runtime.errors import UserError

BLOCK = 256  # records, with their image files, in memory at a time


def image_id(metadata: Mapping[str, Any], index: int) -> int:
    """Returns the number of an image in its data set as its metadata has it, else its
    index.

    Karpathy's files of Flickr images have no `cocoid`.
    """
    # The most specific one first: `imgid` counts images of one JSON file.
    for key in ("cocoid", "image_id", "imgid"):
        if isinstance(metadata.get(key), int):
            return metadata[key]
    return index


class RealImage(NamedTuple):
    """The centre of a record's image, with the record and its number in the draw."""

    number: int
    image: Square
    record: Record


class RealImages:
    """Records of a source of captioned images: `count` of them by a seed, or all.

    Nothing else about them is random, unlike in training: the centre, the first
    caption. Generated scenes are random already, and the first ones are taken.

    Args:
        spec: source string, as of `data.eval`.
        seed: of generated scenes.
        side: of a split of the source; None: all of it.
        drawn_by: seed of the draw.
        needs_all: captions are measured on every image of one source: a broken image is
            an error, and one without a caption is kept. Otherwise both are left out,
            counted, and not replaced.

    Raises:
        UserError: if the source has weights or latents, or fewer than 2 records.
    """

    def __init__(
        self,
        spec: str,
        centre: CentreReader,
        *,
        count: int,
        seed: int,
        threads: int,
        cache: str | None = None,
        captions: CaptionOptions = CaptionOptions(),  # noqa: B008 (immutable)
        needs_all: bool = False,
        side: Side | None = None,
        drawn_by: int = 0,
    ):
        size = centre.image_size
        records = open_images(
            spec,
            key="data.eval",
            image_size=size,
            seed=seed,
            cache=cache,
            captions=captions,
            side=side,
        )
        parts = parse_sources(spec)
        if needs_all and len(parts) > 1:
            raise UserError(
                f"captions are measured on one source of images; got {spec!r}: give "
                "one such as karpathy:dataset_coco.json:images:test"
            )
        self._centre = centre
        self._threads = threads
        self._needs_all = needs_all
        # Records can be asked what they show if all are scenes of one split.
        self._shapes = None
        if [part.kind for part in parts] == ["shapes"]:
            split = parts[0].arguments or "train"
            self._shapes = sources.Shapes(split, size, seed)
        self.spec = spec
        self.count = min(count, len(records))
        self._draw(records, side, drawn_by)
        if self.count < 2:
            raise UserError(
                f"data.eval = {spec} has {self.count} images; expected at least 2"
            )

    def _draw(self, records: Records, side: Side | None, seed: int) -> None:
        """Chooses the records, and notes what the choice rests on."""
        # What numbers depend on beside the source, as far as it is not the usual.
        self.choice = {"held_out": side.share} if side else {}
        indices = np.arange(self.count)
        if self.count < len(records) and not self.are_scenes:
            rng = np.random.default_rng(seed)
            indices = rng.choice(len(records), self.count, replace=False)
            self.choice["drawn_by"] = seed
        # Scenes are asked for by their number in the whole source.
        self._numbers = records.indices[indices] if side else indices
        self._records = Chosen(records, indices)

    @property
    def are_scenes(self) -> bool:
        """True of generated scenes: it is known exactly what each image shows."""
        return self._shapes is not None

    def scene(self, number: int) -> scenes.Scene:
        """Returns what a generated image shows."""
        return self._shapes.scene(self._numbers[number])

    def _read(self, number: int) -> RealImage | BadRecord:
        try:
            record = self._records[number]
            if not (record.captions or self._needs_all):
                raise BadRecord("missing_caption", record.name)
            image = self._centre(record)
        except BadRecord as bad:
            return bad
        # The file's bytes would keep megabytes alive for each image.
        return RealImage(number, image, record._replace(image=None))

    def pixels(self, number: int) -> Square | None:
        """Returns an image, or None for one that cannot be used."""
        found = self._read(number)
        return None if isinstance(found, BadRecord) else found.image

    def read(self, rows: range) -> tuple[list[RealImage], list[BadRecord]]:
        """Reads the records of a range that can be used, and what is wrong with others.

        Raises:
            UserError: if none of them can be used, or `needs_all` and one cannot.
        """
        with ThreadPoolExecutor(self._threads) as pool:
            found = list(pool.map(self._read, rows))
        bad = [item for item in found if isinstance(item, BadRecord)]
        if bad and self._needs_all:
            number = rows[found.index(bad[0])]
            raise UserError(
                f"image {number} of {self.spec} cannot be used ({bad[0].reason}: "
                f"{bad[0].name}); mend it: every image of the source is measured"
            ) from bad[0]
        if len(bad) == len(found):
            raise UserError(
                f"data.eval = {self.spec}: none of the records {rows.start} to "
                f"{rows.stop - 1} can be used, the first ({bad[0].name}) because of "
                f"{bad[0].reason}"
            )
        return [item for item in found if isinstance(item, RealImage)], bad

    def references(self, item: RealImage) -> list[str]:
        """Returns all that people wrote of an image; of a generated scene every
        phrasing.
        """
        if self._shapes is None:
            return list(item.record.captions)
        return list(scenes.captions_of(self.scene(item.number)))

    def prompts(self) -> dict[int, Prompt]:
        """Returns, by number, the first caption of each record that has one.

        Raises:
            UserError: if fewer than 2 have one.
        """
        good = {}
        for start in range(0, self.count, BLOCK):
            rows = range(start, min(start + BLOCK, self.count))
            # Without decoding: a broken image costs its prompt nothing.
            found = self._records.read_many(rows)
            good |= {
                number: Prompt(r.name, r.captions[0])
                for number, r in zip(rows, found, strict=True)
                if isinstance(r, Record) and r.captions
            }
        if len(good) < 2:
            raise UserError(
                f"data.eval = {self.spec}: {len(good)} of {self.count} records have a "
                "caption; expected at least 2 to draw"
            )
        if len(good) < self.count:
            counts = self.count - len(good), self.count
            logging.warning("%s: %d of %d records have no caption", self.spec, *counts)
        return good
