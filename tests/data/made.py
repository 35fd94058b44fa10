"""Image files and tars that tests make."""

import io
import pathlib
import struct
import tarfile
import zlib
from collections.abc import Iterable

import numpy as np
from PIL import Image


def picture(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    """A smooth picture, so that JPEG and resizing keep it nearly as it is."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (3, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(seed: int = 0, width: int = 40, height: int = 30) -> bytes:
    """A JPEG file."""
    return encode(picture(width, height, seed), "JPEG", quality=95)


def png_header(width: int, height: int) -> bytes:
    """A PNG file that claims a size and holds nothing of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


def write_tar(path: pathlib.Path, members: Iterable[tuple[str, bytes]]) -> pathlib.Path:
    """A tar of these members, in their order."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pairs(count: int, start: int = 0) -> list[tuple[str, bytes]]:
    """Members of a tar: whole images with captions."""
    members = []
    for i in range(start, start + count):
        key = f"{i:05d}"
        members += [(f"{key}.jpg", jpeg(i)), (f"{key}.txt", f"picture {i}".encode())]
    return members
