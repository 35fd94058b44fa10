"""Transforms of a record into a training example."""

import dataclasses
import math
import random
import re
import zlib
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from flowtok_jax.data import images
from flowtok_jax.data.records import BadRecord, Record
from flowtok_jax.runtime.errors import UserError

CROPS = ("center", "random")
# Columns of img2dataset with the image's size before it was made smaller.
ORIGINAL_SIZE = ("original_width", "original_height")
# The opening of most recaptions, which the release cuts off.
LEADING = re.compile(r"^The image (?:depicts|displays|showcases|features|shows)\s+")


class Filters(NamedTuple):
    """Limits on the size and the metadata of images.

    Attributes:
        aspect: range of height / width.
        min_side: fewest pixels of the longer side, before resizing.
        min_aesthetic: lowest value in `aesthetic_column`; None: any.
        max_watermark: highest probability in `watermark_column`; None: any.
    """

    aspect: tuple[float, float] = (0.0, math.inf)
    min_side: int = 0
    min_aesthetic: float | None = None
    max_watermark: float | None = None
    aesthetic_column: str = "aesthetic_score"
    watermark_column: str = "pwatermark"

    def check_metadata(self, record: Record) -> bool:
        """Checks a record's metadata, and returns whether they hold the image's size.

        Raises:
            BadRecord: naming the filter that refuses the record, or a missing column.
        """
        name = record.name
        if self.min_aesthetic is not None and (
            _column(record, self.aesthetic_column) < self.min_aesthetic
        ):
            raise BadRecord("filtered_aesthetic", name)
        if self.max_watermark is not None and (
            _column(record, self.watermark_column) > self.max_watermark
        ):
            raise BadRecord("filtered_watermark", name)
        if not all(record.metadata.get(column) for column in ORIGINAL_SIZE):
            return False  # the caller checks the decoded image
        self.check_size(name, *(_column(record, column) for column in ORIGINAL_SIZE))
        return True

    def check_size(self, name: str, width: int | float, height: int | float) -> None:
        """Checks an image's size in pixels.

        Raises:
            BadRecord: naming the filter that refuses the image.
        """
        low, high = self.aspect
        if width <= 0 or height <= 0:  # only metadata can say so
            raise BadRecord("missing_metadata", name)
        if not low <= height / width <= high:
            raise BadRecord("filtered_aspect", name)
        if max(width, height) < self.min_side:
            raise BadRecord("filtered_size", name)


def _column(record: Record, column: str) -> float:
    """Returns a number of the metadata; CSV files and JSON hold some as texts."""
    try:
        value = float(record.metadata[column])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadRecord("missing_metadata", record.name) from error
    if math.isnan(value):  # passes every comparison with a limit
        raise BadRecord("missing_metadata", record.name)
    return value


def clean_recaption(text: str) -> str:
    """Cuts off the opening that recaptions have in common, and capitalises the rest."""
    text = LEADING.sub("", text.strip())
    return text[:1].upper() + text[1:]


def choose_caption(record: Record, rng: random.Random, recaption_rate: float) -> str:
    """Draws a caption: with probability `recaption_rate` a recaption, if there is one.

    Raises:
        BadRecord: if there is no caption.
    """
    if len(record.captions) == 1 and not record.recaptions:
        text = record.captions[0]  # most records: nothing to draw
    else:
        replaced = rng.random() < recaption_rate or not record.captions
        replaced = replaced and bool(record.recaptions)
        texts = record.recaptions if replaced else record.captions
        if not texts:
            raise BadRecord("missing_caption", record.name)
        text = texts[int(rng.random() * len(texts))]
        text = clean_recaption(text) if replaced else text
    if not text:
        raise BadRecord("empty_caption", record.name)
    return text


def possible_captions(record: Record, recaption_rate: float) -> tuple[str, ...]:
    """Returns the captions among which `choose_caption` draws, recaptions last."""
    captions = record.captions
    recaptions = tuple(map(clean_recaption, record.recaptions))
    if captions and recaption_rate <= 0:
        return captions
    return recaptions if recaptions and recaption_rate >= 1 else captions + recaptions


@dataclasses.dataclass(eq=False)
class ImageTransform:
    """Transform of image records to {"image": uint8 [s, s, 3], "caption": str}.

    Args:
        image_size: s.
        crop: part of the longer side that is kept: center or random.
        flip: whether half of the images are mirrored; captions that speak of left and
            right are wrong then.
        recaption_rate: share of captions replaced by a recaption, if there is one.
        max_pixels: width times height above which an image is refused.
        with_images: False makes examples of captions alone, the same ones as beside
            images; nothing is decoded, so that faults and sizes which only pixels show
            refuse no record.
        most_kept: number of centres that stay in memory, of the images met first, so
            that these are decoded once; 0 keeps none, and random crops are not kept.
    """

    image_size: int
    crop: str = "center"
    flip: bool = False
    recaption_rate: float = 0.95
    max_pixels: int = images.MAX_PIXELS
    filters: Filters = Filters()
    with_images: bool = True
    most_kept: int = 0

    def __post_init__(self):
        self._centres: dict[tuple[Any, ...], np.ndarray] = {}
        if self.crop not in CROPS:
            raise UserError(
                f"data.transform.crop is {self.crop!r}; expected one of "
                f"{', '.join(CROPS)}"
            )
        aspect = self.filters.aspect
        are_numbers = all(isinstance(value, int | float) for value in aspect)
        if not are_numbers or len(aspect) != 2 or not aspect[0] <= aspect[1]:
            raise UserError(
                f"data.filters.aspect is {aspect}; expected the lowest and the highest "
                "height / width, as in (0.5, 2)"
            )

    def __call__(self, record: Record, rng: random.Random) -> dict[str, Any]:
        # All three whatever the options are, so that these do not change the caption.
        across, down, mirror = (rng.random() for _ in range(3))
        caption = choose_caption(record, rng, self.recaption_rate)
        if not self.with_images:
            self._check(record)
            return {"caption": caption}
        if self.crop == "center":
            pixels = self._centre(record)
        else:
            image = self.decode(record)
            pixels = images.resize_and_crop(image, self.image_size, across, down)
        if self.flip and mirror < 0.5:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        return {"image": pixels, "caption": caption}

    def _centre(self, record: Record) -> np.ndarray:
        """Returns the centre of an image [s, s, 3], kept or made."""
        size_is_known = self._check(record)
        if not self.most_kept:
            return self._make_centre(record, size_is_known)
        # Its bytes beside its name, which a file written anew keeps. A record without
        # metadata of its size passes or not by its pixels.
        bits = zlib.crc32(record.image)
        key = (record.name, len(record.image), bits, size_is_known)
        found = self._centres.get(key)
        if found is None:
            found = self._make_centre(record, size_is_known)
            if len(self._centres) < self.most_kept:
                self._centres[key] = found
        return found

    def _make_centre(self, record: Record, size_is_known: bool) -> np.ndarray:
        return images.resize_and_crop(
            self._decode(record, size_is_known), self.image_size
        )

    def decode(self, record: Record) -> Image.Image:
        """Decodes the whole image, RGB and upright, if the filters let it pass."""
        # Before the image: what metadata refuse is not decoded.
        return self._decode(record, self._check(record))

    def _decode(self, record: Record, size_is_known: bool) -> Image.Image:
        image = images.decode(record.image, record.name, self.max_pixels)
        if not size_is_known:
            self.filters.check_size(record.name, *image.size)
        return image

    def _check(self, record: Record) -> bool:
        """Checks all but pixels; returns whether the metadata tell the image's size."""
        if record.image is None:
            raise BadRecord("missing_image", record.name)
        return self.filters.check_metadata(record)


@dataclasses.dataclass(eq=False)
class MomentsTransform:
    """Transform of latents to {"moments": float16 [n, 2 * c], "caption": str}."""

    shape: tuple[int, int]
    recaption_rate: float = 0.95

    def __call__(self, record: Record, rng: random.Random) -> dict[str, Any]:
        moments = record.moments
        if moments is None or moments.shape != self.shape:
            raise BadRecord("wrong_shape", record.name)
        # Infinity and NaN are the largest bit patterns once the sign is masked out;
        # np.isfinite is slower.
        if (moments.view(np.uint16) & 0x7FFF).max() >= 0x7C00:
            raise BadRecord("not_finite", record.name)
        return {
            "moments": moments,
            "caption": choose_caption(record, rng, self.recaption_rate),
        }
