"""The centre of an image, read the same way by every mode that draws no crop at random:
pretokenising, evaluation, reference statistics and captioning.
"""

import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from flowtok_jax.data import images, sources
from flowtok_jax.data.captions import CaptionOptions
from flowtok_jax.data.records import BadRecord, Chosen, Joined, Record, Records, Side
from flowtok_jax.data.source_strings import parse_sources
from flowtok_jax.data.transforms import Filters, ImageTransform
from flowtok_jax.runtime.errors import UserError

Square = UInt8[np.ndarray, "s s 3"]


def file_record(path: pathlib.Path) -> Record:
    """Reads an image file as a record without captions.

    Raises:
        BadRecord: if the file cannot be read.
    """
    try:
        return Record(str(path), image=path.read_bytes())
    except OSError as error:
        raise BadRecord("unreadable_file", str(path)) from error


class ImageFiles(Records):
    """Image files as records without captions."""

    def __init__(self, paths: Sequence[pathlib.Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Record:
        return file_record(self.paths[index])


def open_images(
    spec: str,
    *,
    key: str,
    image_size: int,
    seed: int,
    cache: str | None = None,
    captions: CaptionOptions = CaptionOptions(),  # noqa: B008 (immutable)
    side: Side | None = None,
) -> Records:
    """Opens the records of a source string, one source after the other, each once.

    Args:
        key: name of the string, for messages.
        image_size, seed: of generated scenes.
        cache: folder for indices of tars; None: the user's.
        captions: how they are read.
        side: of a split, whose records alone are opened; None: all.

    Raises:
        UserError: if a source has a weight, latents instead of images, or no record on
            the side.
    """
    parts = parse_sources(spec)
    if any(part.kind == "latents" or part.weight is not None for part in parts):
        raise UserError(
            f"{key}={spec} has latents or weights; expected images, each once"
        )
    # Only generated scenes take size and seed; only tars have an index to keep.
    options = {"image_size": image_size, "seed": seed, "cache": cache}
    options["captions"] = captions
    records = Joined([sources.make_records(part, **options) for part in parts])
    if side is None:
        return records
    indices = side.find(records.keys())
    if not len(indices):
        raise side.none_found(spec, len(records))
    return Chosen(records, indices)


class CentreReader:
    """A function of a record to its image: upright, RGB, white behind transparency, the
    shorter side resized and the centre cut out.

    Args:
        image_size: pixels of a side of the result.
        max_pixels, filters: as of `ImageTransform`.
    """

    def __init__(
        self,
        image_size: int,
        max_pixels: int = images.MAX_PIXELS,
        filters: Filters = Filters(),  # noqa: B008 (immutable)
    ):
        # Training's own transform decodes, so that no two readers can differ.
        self._transform = ImageTransform(
            image_size, max_pixels=max_pixels, filters=filters
        )
        self.image_size = image_size

    def __call__(self, record: Record) -> Square:
        """Returns the centre of the record's image.

        Raises:
            BadRecord: if the image is missing, broken, or refused by the filters.
        """
        image = self._transform.decode(record)
        return images.resize_and_crop(image, self.image_size)
