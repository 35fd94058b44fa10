"""A record to a training example, deterministic in (seed, position)."""

import math
import random
import re
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from flowtok_jax.data import images
from flowtok_jax.data.records import BadRecord, Record
from flowtok_jax.runtime.errors import UserError

CROPS = ("center", "random")
# Columns with an image's size before somebody made it smaller.
ORIGINAL_SIZE = ("original_width", "original_height")
# How recaptions begin, which the release cuts off.
LEADING = re.compile(r"^The image (?:depicts|displays|showcases|features|shows)\s+")


class Filters(NamedTuple):
    """Which records of images are wanted, by their size and their metadata.

    Attributes:
        aspect: range of height / width.
        min_side: fewest pixels of the longer side, before resizing.
        min_aesthetic: lowest score in the column of that name; None: any.
        max_watermark: highest probability in the column of that name; None: any.
    """

    aspect: tuple[float, float] = (0.0, math.inf)
    min_side: int = 0
    min_aesthetic: float | None = None
    max_watermark: float | None = None
    aesthetic_column: str = "aesthetic_score"
    watermark_column: str = "pwatermark"

    def check_metadata(self, record: Record) -> bool:
        """Refuses a record by what its metadata says; whether that holds its size.

        Raises:
            BadRecord: saying which filter, or that a column is missing.
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
            return False
        self.check_size(name, *(_column(record, column) for column in ORIGINAL_SIZE))
        return True

    def check_size(self, name: str, width: int | float, height: int | float) -> None:
        """Refuses an image by its size in pixels.

        Raises:
            BadRecord: saying which filter.
        """
        low, high = self.aspect
        if width <= 0 or height <= 0:
            raise BadRecord("missing_metadata", name)
        if not low <= height / width <= high:
            raise BadRecord("filtered_aspect", name)
        if max(width, height) < self.min_side:
            raise BadRecord("filtered_size", name)


def _column(record: Record, column: str) -> float:
    """A number of the metadata; what is none, or not there, cannot be judged."""
    try:
        value = float(record.metadata[column])
    except (KeyError, TypeError, ValueError) as error:
        raise BadRecord("missing_metadata", record.name) from error
    if math.isnan(value):
        raise BadRecord("missing_metadata", record.name)
    return value


def clean_recaption(text: str) -> str:
    """A recaption without the words that all of them begin with, capitalised."""
    text = LEADING.sub("", text.strip())
    return text[:1].upper() + text[1:]


def choose_caption(record: Record, rng: random.Random, recaption_rate: float) -> str:
    """One of the captions; a recaption with that probability where there is one.

    Raises:
        BadRecord: where there is no caption.
    """
    if len(record.captions) == 1 and not record.recaptions:
        text = record.captions[0]
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


class ImageTransform:
    """Records of images to {"image": uint8 [s, s, 3], "caption": str}.

    Args:
        crop: of the longer side: center or random.
        flip: whether half of the images are mirrored; captions that speak of left and
            right are wrong then.
        recaption_rate: share of captions that a recaption replaces, where there is one.
        max_pixels: width times height above which an image is refused.
    """

    def __init__(
        self,
        image_size: int,
        crop: str = "center",
        flip: bool = False,
        recaption_rate: float = 0.95,
        max_pixels: int = images.MAX_PIXELS,
        filters: Filters = Filters(),  # noqa: B008 (immutable)
    ):
        if crop not in CROPS:
            raise UserError(
                f"data.transform.crop is {crop!r}; wanted one of {', '.join(CROPS)}"
            )
        self.image_size, self.crop, self.flip = image_size, crop, flip
        self.recaption_rate, self.max_pixels = recaption_rate, max_pixels
        self.filters = filters

    def __call__(self, record: Record, rng: random.Random) -> dict[str, Any]:
        across, down, mirror = rng.random(), rng.random(), rng.random()
        caption = choose_caption(record, rng, self.recaption_rate)
        image = self.decode(record)
        if self.crop == "center":
            across = down = 0.5
        pixels = images.resize_and_crop(image, self.image_size, across, down)
        if self.flip and mirror < 0.5:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        return {"image": pixels, "caption": caption}

    def decode(self, record: Record) -> Image.Image:
        """The whole image, RGB and upright, if the filters want it."""
        if record.image is None:
            raise BadRecord("missing_image", record.name)
        size_is_known = self.filters.check_metadata(record)
        image = images.decode(record.image, record.name, self.max_pixels)
        if not size_is_known:
            self.filters.check_size(record.name, *image.size)
        return image


class MomentsTransform:
    """Records of latents to {"moments": float16 [n, 2 * c], "caption": str}."""

    def __init__(self, shape: tuple[int, int], recaption_rate: float = 0.95):
        self.shape, self.recaption_rate = shape, recaption_rate

    def __call__(self, record: Record, rng: random.Random) -> dict[str, Any]:
        moments = record.moments
        if moments is None or moments.shape != self.shape:
            raise BadRecord("wrong_shape", record.name)
        # Without the sign, infinity and NaN are the largest. np.isfinite is slower.
        if (moments.view(np.uint16) & 0x7FFF).max() >= 0x7C00:
            raise BadRecord("not_finite", record.name)
        return {
            "moments": moments,
            "caption": choose_caption(record, rng, self.recaption_rate),
        }
