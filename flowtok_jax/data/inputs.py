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


def _read_pictures(pictures: list, side: int) -> np.ndarray:
    """Reads files and images of Pillow as captioning does, to floats [b, s, s, 3]."""
    centre = CentreReader(side)
    found = []
    for i, picture in enumerate(pictures):
        try:
            if isinstance(picture, Image.Image):
                upright = to_rgb(ImageOps.exif_transpose(picture), f"images[{i}]")
                found.append(resize_and_crop(upright, side))
            else:
                found.append(
                    centre(file_record(pathlib.Path(expand_path(str(picture)))))
                )
        except BadRecord as bad:
            reason = bad.reason
        except Exception as error:  # decoders raise anything
            reason = reason_of(error)[:200]
        else:
            continue
        raise UserError(
            f"images[{i}] is {_shown(picture)}, which cannot be read: {reason}"
        )
    return np.stack(found).astype(np.float32) / 255


def _advise(shape: tuple[int, ...], side: int) -> str:
    """Returns what to do about images of another shape, where that is known."""
    if shape == (side, side, 3):
        return "; of one image, give images[None]"
    if shape[1:] == (3, side, side):
        return "; of channels first, give np.moveaxis(images, 1, -1)"
    return ""


def check_images(images: object, side: int) -> np.ndarray:
    """Returns images as float32 [b, side, side, 3] in [0, 1].

    Args:
        images: an array of such floats, of any library; or a list of paths and of
            images of Pillow, which are read as `--mode=caption` reads files.

    Raises:
        UserError: saying what they are instead, or which file cannot be read.
    """
    is_list = isinstance(images, (list, tuple)) and len(images) > 0
    if is_list and all(isinstance(image, Picture) for image in images):
        return _read_pictures(list(images), side)
    expected = f"expected (b, {side}, {side}, 3) with b at least 1"
    is_one = isinstance(images, bytes | Picture)
    try:
        array = None if is_one else np.asarray(images)
    except Exception as error:  # each library raises its own
        raise UserError(
            f"images are of type {type(images).__name__} and make no array "
            f"({reason_of(error)[:200]}); {expected}"
        ) from error
    if array is None or array.dtype.kind in "OUSMm":
        raise UserError(
            f"images are {_shown(images)}; expected an array (b, {side}, {side}, 3) of "
            "floats in [0, 1], or a list of paths or of images of Pillow"
        )
    if array.ndim != 4 or array.shape[1:] != (side, side, 3) or not len(array):
        raise UserError(
            f"images have shape {array.shape}; {expected}{_advise(array.shape, side)}"
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(
            f"images are {array.dtype}; expected floats in [0, 1]: divide uint8 by 255"
        )
    if not (array.min() >= -0.01 and array.max() <= 1.01):
        raise UserError(
            f"images go from {array.min():g} to {array.max():g}; expected [0, 1]"
        )
    return array.astype(np.float32)
