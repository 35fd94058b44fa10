"""The real images of an evaluation: records of a source drawn by seed, each once."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from flowtok_jax.data import scenes, sources
from flowtok_jax.data.captions import CaptionOptions
from flowtok_jax.data.centre import CentreReader, Square, open_images
from flowtok_jax.data.records import BadRecord, Record, Records, RejectCounter, Side
from flowtok_jax.data.source_strings import parse_sources
from flowtok_jax.eval.protocols import Prompt
from flowtok_jax.runtime import processes
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import json_sha256

LEAST = RejectCounter.patience  # records by which the share of broken ones is judged


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

    All are looked at first. Those that cannot be used are left out and not replaced,
    and the others are numbered anew: what is measured depends neither on chunks nor on
    threads and processes, and a killed evaluation that goes on finds the same.

    Attributes:
        drawn: number of records, with those left out.
        count: number of images.
        prompts: the name and the first caption of each image.
        rejected: counts of what was left out, by reason.
        left_out: the same in words, with the first names; "" for none.
        choice: what numbers depend on beside the source, as far as it is not the usual.

    Args:
        spec: source string, as of `data.eval`.
        seed: of generated scenes.
        max_rejected: share of the records that may be broken. Few records say little of
            a share: of fewer than LEAST, others all over the source are looked at too.
        side: of a split of the source; None: all of it.
        drawn_by: seed of the draw.

    Raises:
        UserError: if the source has weights or latents, more broken records than may
            be, or fewer than 2 images.
    """

    def __init__(
        self,
        spec: str,
        centre: CentreReader,
        *,
        count: int,
        seed: int,
        threads: int,
        max_rejected: float,
        cache: str | None = None,
        captions: CaptionOptions = CaptionOptions(),  # noqa: B008 (immutable)
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
        self._centre = centre
        self._threads = threads
        # Records can be asked what they show if all are scenes of one split.
        self._shapes = None
        if [part.kind for part in parts] == ["shapes"]:
            split = parts[0].arguments or "train"
            self._shapes = sources.Shapes(split, size, seed)
        self.spec = spec
        self.drawn = min(count, len(records))
        self._draw(records, side, drawn_by)
        self._leave_out(max_rejected)

    def _draw(self, records: Records, side: Side | None, seed: int) -> None:
        """Chooses the records, and notes what the choice rests on."""
        self.choice: dict[str, Any] = {"held_out": side.share} if side else {}
        indices = np.arange(self.drawn)
        if self.drawn < len(records) and not self.are_scenes:
            rng = np.random.default_rng(seed)
            indices = rng.choice(len(records), self.drawn, replace=False)
            self.choice["drawn_by"] = seed
        # Numbers in the whole source: scenes are asked for by these, too.
        self._whole = records.whole if side else records
        self._numbers = records.indices[indices] if side else indices

    def _leave_out(self, max_rejected: float) -> None:
        """Keeps the records that can be used, and counts the others.

        Raises:
            UserError: as of the class.
        """
        others = np.zeros(0, int)
        if self.drawn < LEAST and not self.are_scenes:
            size = min(LEAST, len(self._whole))
            spread = np.arange(size) * len(self._whole) // size
            others = np.setdiff1d(spread, self._numbers)
        found = self._look(np.concatenate([self._numbers, others]))
        try:
            _count(found, max_rejected)
        except UserError as error:
            raise UserError(f"evaluation of {self.spec}: {error}") from error
        mine = found[: self.drawn]
        rejects = _count(mine, 1.0)
        is_bad = np.array([isinstance(item, BadRecord) for item in mine], bool)
        self.rejected = rejects.summary()["rejected"]
        self.left_out = ""
        if self.rejected:
            counts = f"{is_bad.sum()} of {self.drawn} records"
            self.left_out = f"{counts} left out ({rejects.describe()})"
            if processes.is_first():
                logging.warning("evaluation of %s: %s", self.spec, self.left_out)
            # Once they are mended, the numbers are those of another protocol.
            self.choice["left_out"] = self.rejected
            names = json_sha256(self._numbers[is_bad].tolist())
            self.choice["left_out_sha256"] = names
        self._numbers = self._numbers[~is_bad]
        self.prompts = [item for item in mine if isinstance(item, Prompt)]
        self.count = len(self.prompts)
        if self.count < 2:
            raise UserError(
                f"data.eval = {self.spec} has {self.count} images; expected at least 2"
                + (f": {self.left_out}" if self.left_out else "")
            )

    def _look(self, numbers: np.ndarray) -> list[Prompt | BadRecord]:
        """Reads and decodes records of the whole source; all processes call it."""
        with ThreadPoolExecutor(self._threads) as pool:
            found = list(pool.map(self._check, numbers.tolist()))
        is_bad = np.array([isinstance(item, BadRecord) for item in found], np.int32)
        # What one process cannot read is left out in all, which compute together.
        for place in np.flatnonzero(processes.total(is_bad) - is_bad).tolist():
            if isinstance(item := found[place], Prompt):
                found[place] = BadRecord("unreadable_file", item.id)
        return found

    def _check(self, number: int) -> Prompt | BadRecord:
        try:
            record, _ = self._open(number)
        except BadRecord as bad:
            return bad
        # Without the image: those of all records would fill the memory.
        return Prompt(record.name, record.captions[0])

    def _open(self, number: int) -> tuple[Record, Square]:
        """Reads a record of the whole source.

        Raises:
            BadRecord: if it has no caption, or its image cannot be used.
        """
        record = self._whole[number]
        if not record.captions:
            raise BadRecord("missing_caption", record.name)
        return record, self._centre(record)

    @property
    def are_scenes(self) -> bool:
        """True of generated scenes: it is known exactly what each image shows."""
        return self._shapes is not None

    @property
    def are_open(self) -> bool:
        """True of scenes whose captions leave things open: each fits many scenes."""
        return self._shapes is not None and self._shapes.split == scenes.OPEN

    def scene(self, number: int) -> scenes.Scene:
        """Returns what a generated image shows."""
        return self._shapes.scene(self._numbers[number])

    def _read(self, number: int) -> RealImage:
        try:
            record, image = self._open(int(self._numbers[number]))
        except BadRecord as bad:
            raise UserError(
                f"{bad.name} of {self.spec} was sound when the evaluation began, and "
                f"cannot be used now ({bad.reason}); mend it, and start again"
            ) from bad
        # The file's bytes would keep megabytes alive for each image.
        return RealImage(number, image, record._replace(image=None))

    def pixels(self, number: int) -> Square:
        """Returns an image."""
        return self._read(number).image

    def read(self, rows: range) -> list[RealImage]:
        """Reads a range of the images.

        Raises:
            UserError: if one has changed since it was looked at.
        """
        with ThreadPoolExecutor(self._threads) as pool:
            return list(pool.map(self._read, rows))

    def references(self, item: RealImage) -> list[str]:
        """Returns all that people wrote of an image; of a generated scene every
        phrasing.
        """
        if self._shapes is None or self.are_open:
            return list(item.record.captions)
        return list(scenes.captions_of(self.scene(item.number)))


def _count(found: Sequence[Prompt | BadRecord], max_rejected: float) -> RejectCounter:
    """Counts records that cannot be used.

    Raises:
        UserError: if a larger share than max_rejected is broken.
    """
    rejects = RejectCounter(max_rejected, patience=0, known=0)
    bad = [(x.reason, x.name) for x in found if isinstance(x, BadRecord)]
    rejects.add(bad, len(found) - len(bad))
    return rejects
