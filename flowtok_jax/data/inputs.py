"""Prompts and images as callers of FlowTok hand them over, checked and made uniform."""

import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageOps

from flowtok_jax.data.centre import CentreReader, file_record
from flowtok_jax.data.images import resize_and_crop, to_rgb
from flowtok_jax.data.records import BadRecord
from flowtok_jax.runtime.errors import UserError, reason_of, short_repr
from flowtok_jax.runtime.paths import expand_path

Picture = str | os.PathLike | Image.Image
CHANNELS = (1, 3, 4)  # of an array: grey, RGB, and RGB with transparency
EXPECTED = (
    "expected paths, images of Pillow, or arrays (h, w, 3) of uint8 or of floats in "
    "[0, 1], one or a list of them"
)


def _shown(value: object) -> str:
    return f"{short_repr(value)} ({type(value).__name__})"


def _iterate(values: object) -> Iterator[Any]:
    """Iterates over the values of a list, a generator, an array or a column.

    Raises:
        TypeError: if they are no sequence of values, or have no order.
    """
    # A table gives the names of its columns, a dict its keys, bytes numbers.
    if isinstance(values, (str, bytes, bytearray, Mapping, set, frozenset)):
        raise TypeError
    if getattr(values, "ndim", 1) != 1:
        raise TypeError
    return iter(values)


def check_prompts(prompts: object) -> list[str]:
    """Returns prompts as a list of plain strings; an empty one is a caption too.

    Args:
        prompts: strings in a list, a tuple, a generator, an array or a column.

    Raises:
        UserError: naming the first that is no text, or if there is none.
    """
    try:
        values = _iterate(prompts)
    except TypeError as error:
        raise UserError(
            f"prompts are {_shown(prompts)}; expected a list of captions, such as "
            "['a red circle']"
        ) from error
    found = []
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise UserError(f"prompts[{i}] is {_shown(value)}; expected a string")
        try:
            # Joins the halves of a pair, which some readers of JSON leave apart.
            text = value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise UserError(
                f"prompts[{i}] is {ascii(value[:60])}, which has half a character; "
                "expected text that was not cut inside one, and that was read as UTF-8"
            ) from error
        found.append(text)
    if not found:
        raise UserError("no prompts; expected at least one")
    return found


def check_tokens(tokens: object, expected: tuple[int, int, int]) -> None:
    """Refuses tokens of another shape than [b, n, c].

    Raises:
        UserError: with both shapes.
    """
    if np.shape(tokens) != expected:
        raise UserError(
            f"tokens have shape {np.shape(tokens)}; expected {expected}, as many as "
            "there are prompts"
        )


def _read_picture(picture: Any, side: int) -> np.ndarray:
    """Reads one file, image of Pillow or array as a float image [side, side, 3].

    Raises:
        BadRecord: if a file or an image of Pillow cannot be read.
        ValueError: if it is an array that is no image, saying why.
    """
    if isinstance(picture, Image.Image):
        upright = to_rgb(ImageOps.exif_transpose(picture), "image")
        pixels = resize_and_crop(upright, side)
    elif isinstance(picture, Picture):
        path = pathlib.Path(expand_path(os.fspath(picture)))
        if path.is_dir():
            raise ValueError(
                "it is a directory; expected the files in it, such as "
                f"list(pathlib.Path({str(path)!r}).glob('*.png'))"
            )
        pixels = CentreReader(side)(file_record(path))
    else:
        return _read_array(np.asarray(picture), side)
    return pixels.astype(np.float32) / 255


def _read_array(array: np.ndarray, side: int) -> np.ndarray:
    """Makes a float image [side, side, 3] of an array [h, w], or [h, w, c] with c of 1,
    3 or 4, of bytes or of floats in [0, 1].

    Floats of the very size stay as they are; of another size they are rounded to bytes,
    as files have them, and then resized and cropped as files are.

    Raises:
        ValueError: if it is no such array.
    """
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in CHANNELS or not array.size:
        # Channels first are what PyTorch has.
        turned = array.ndim == 3 and array.shape[0] in CHANNELS
        cure = "; of channels first, give np.moveaxis(image, 0, -1)" if turned else ""
        raise ValueError(f"its shape is {array.shape}; expected (h, w, 3){cure}")
    is_float = jnp.issubdtype(array.dtype, jnp.floating)
    if not is_float and array.dtype != np.uint8:
        raise ValueError(f"it is {array.dtype}; expected uint8, or floats in [0, 1]")
    if is_float and not (array.min() >= -0.01 and array.max() <= 1.01):
        raise ValueError(
            f"its values go from {array.min():g} to {array.max():g}; expected floats "
            "in [0, 1], or uint8"
        )
    if is_float and array.shape == (side, side, 3):
        return array.astype(np.float32)
    pixels = to_uint8(array.astype(np.float32)) if is_float else array
    if channels == 1:
        pixels = pixels.reshape(pixels.shape[:2])
    upright = to_rgb(Image.fromarray(pixels), "image")
    return resize_and_crop(upright, side).astype(np.float32) / 255


def _split(images: object) -> list | None:
    """Splits what callers hand over into single images; None for what has none."""
    if isinstance(images, Iterator):
        images = list(images)
    if isinstance(images, (bytes, bytearray, Mapping, set, frozenset)):
        return None
    if isinstance(images, (list, tuple)):
        are_images = all(isinstance(x, Picture) or np.ndim(x) > 1 for x in images)
        return list(images) if are_images else None
    array = np.asarray(images)
    if array.dtype.kind in "OUSMm" or array.ndim < 2:
        return None
    # Three axes are one image: as many grey ones they could be one of channels first.
    return [array] if array.ndim < 4 else list(array)


def load_images(images: object, side: int) -> np.ndarray:
    """Returns images as float32 [b, side, side, 3] in [0, 1].

    Args:
        images: one or several, in a list, a generator or an array [b, h, w, 3]: paths,
            images of Pillow, or arrays of any library, of bytes or of floats in [0, 1].
            Those of another size are resized and cropped as `--mode=caption` does.

    Raises:
        UserError: saying what they are instead, or which one cannot be read.
    """
    try:
        pictures = [images] if isinstance(images, Picture) else _split(images)
    except Exception as error:  # each library raises its own
        raise UserError(
            f"images are of type {type(images).__name__} and make no array "
            f"({reason_of(error)[:200]}); {EXPECTED}"
        ) from error
    if not pictures:
        what = "no images" if pictures == [] else f"images are {_shown(images)}"
        raise UserError(f"{what}; {EXPECTED}")
    found = []
    for i, picture in enumerate(pictures):
        try:
            found.append(_read_picture(picture, side))
        except BadRecord as bad:
            reason = bad.reason
        except Exception as error:  # decoders raise anything
            reason = reason_of(error)[:200]
        else:
            continue
        raise UserError(
            f"images[{i}] is {_shown(picture)}, which cannot be read: {reason}"
        )
    return np.stack(found)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Rounds images in [0, 1], clamped, to bytes."""
    return np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)
