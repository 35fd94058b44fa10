"""Images that strangers upload, from bytes to a model's input; no file is touched."""

import base64
import binascii
from typing import Any

import numpy as np
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from flowtok_jax.data.images import decode, resize_and_crop
from flowtok_jax.data.records import BadRecord
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.serve.faults import RequestError
from flowtok_jax.serve.limits import Limits

IMAGE = "image"  # the field
MOST_FIELDS = 12
# What to say of a file, by the reason for which data of training would be rejected.
REASONS_SAID = {
    "empty_file": "the file is empty",
    "not_an_image": "the file is no image",
    "too_large": "the image has too many pixels",
    "truncated_image": "the file ends early",
    "unsupported_image": "images of this kind are not read",
}


def decode_base64(text: str, limits: Limits) -> bytes:
    """Decodes base64, or a data URL of it.

    Raises:
        RequestError: where it is none, or larger than an upload may be.
    """
    # As canvases of browsers give them: data:image/png;base64,iVBOR...
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not (comma and head.endswith(";base64")):
            raise RequestError(
                400, "image is a data URL without base64; expected ...;base64,", IMAGE
            )
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RequestError(
            400, "image is no base64; expected the bytes of an image file in it", IMAGE
        ) from error
    if len(data) > limits.upload:
        raise _too_large(data, limits)
    return data


def read_upload(data: bytes, side: int, limits: Limits) -> np.ndarray:
    """Decodes an image file, and cuts out its centre as `--mode=caption` does.

    Returns:
        A float image [side, side, 3] in [0, 1].

    Raises:
        RequestError: where it is no image, or one of too many pixels.
    """
    try:
        # The header alone is read of an image that would be too large unpacked.
        image = decode(data, IMAGE, limits.pixels)
    except BadRecord as bad:
        told = REASONS_SAID.get(bad.reason, "the file is damaged")
        if bad.reason == "too_large":
            told += f"; expected {limits.pixels} at most"
        raise RequestError(400, f"image cannot be read: {told}", IMAGE) from bad
    except UserError as error:  # no memory is left
        raise RequestError(503, "no memory is left to read the image", IMAGE) from error
    return resize_and_crop(image, side).astype(np.float32) / 255


async def read_form(request: Request, limits: Limits) -> tuple[dict[str, Any], bytes]:
    """Reads a multipart form with one file: its other fields, and the file's bytes.

    Raises:
        RequestError: where it is broken, or has no file or several.
    """
    parser = MultiPartParser(
        request.headers, request.stream(), max_files=1, max_fields=MOST_FIELDS
    )
    parser.spool_max_size = limits.body + 1  # in memory: never on the disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError) as error:
        told = getattr(error, "message", "it has no boundary")
        raise RequestError(400, f"the form cannot be read: {told}") from error
    try:
        upload = form.get(IMAGE)
        if not isinstance(upload, UploadFile):
            raise RequestError(
                400,
                f"{IMAGE} is missing; expected a file in a field of this name",
                IMAGE,
            )
        data = await upload.read()  # from memory
    finally:
        await form.close()
    if len(data) > limits.upload:
        raise _too_large(data, limits)
    return {key: value for key, value in form.items() if key != IMAGE}, data


def _too_large(data: bytes, limits: Limits) -> RequestError:
    return RequestError(
        413, f"image has {len(data)} bytes; expected {limits.upload} at most", IMAGE
    )
