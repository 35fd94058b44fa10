"""Image files, tars and latents that tests make."""

import io
import pathlib
import struct
import tarfile
import zlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

from flowtok_jax.data.records import Record
from flowtok_jax.data.sources import Shapes


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


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def png_header(width: int, height: int) -> bytes:
    """A PNG file that claims a size and holds nothing of it."""
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


# Ten ways to be broken: the members of a key, and what is said of it.
PLANTED = {
    "truncated": ({"jpg": jpeg(1)[:300], "txt": b"a"}, "truncated_image"),
    "html": ({"jpg": b"<html>404</html>", "txt": b"a"}, "not_an_image"),
    "blank": ({"jpg": jpeg(2), "txt": b" \n"}, "empty_caption"),
    "alone": ({"jpg": jpeg(3)}, "missing_caption"),
    "orphan": ({"txt": b"a"}, "missing_image"),
    "json": ({"jpg": jpeg(4), "txt": b"a", "json": b"{"}, "bad_json"),
    "zero": ({"jpg": b"", "txt": b"a"}, "empty_file"),
    "ending": ({"dat": jpeg(5), "txt": b"a"}, "wrong_extension"),
    "bomb": ({"png": png_header(60_000, 60_000), "txt": b"a"}, "too_large"),
    "latin": ({"jpg": jpeg(6), "txt": "é".encode("latin-1")}, "bad_text_encoding"),
    "../../x": ({"jpg": jpeg(7), "txt": b"a"}, "unsafe_name"),
}
WHOLE = 60


def write_planted(folder: pathlib.Path) -> pathlib.Path:
    """A set of two tars with every kind of broken record."""
    folder.mkdir(parents=True)
    members = pairs(WHOLE)
    for key, (parts, _) in PLANTED.items():
        members += [(f"{key}.{ending}", data) for ending, data in parts.items()]
    write_tar(folder / "0.tar", members[:50])
    write_tar(folder / "1.tar", members[50:])
    return folder


def write_folder(folder: pathlib.Path, count: int) -> pathlib.Path:
    """PNG files, wider than high, with captions that the demo's vocabulary knows."""
    folder.mkdir()
    source = Shapes("train", 8, seed=5)
    for i in range(count):
        (folder / f"{i:04d}.png").write_bytes(encode(picture(44, 40, seed=i)))
        (folder / f"{i:04d}.txt").write_text(source[i]["caption"])
    return folder


def write_ducks(folder: pathlib.Path) -> pathlib.Path:
    """Pictures whose captions have words that the demo lacks, and "the" and "red"."""
    folder.mkdir()
    for i in range(24):
        (folder / f"{i}.png").write_bytes(encode(picture(32, 32)))
        (folder / f"{i}.txt").write_text(f"the red duck swims, number {i % 3}")
    return folder


def latents(count: int, start: int = 0) -> list[Record]:
    """Records of latents; every second one has a recaption as well."""
    found = []
    for i in range(start, start + count):
        rng = np.random.default_rng(i)
        moments = rng.standard_normal((77, 32)).astype(np.float16)
        recaptions = (f"The image shows number {i}.",) if i % 2 else ()
        found.append(Record(f"r{i}", (f"caption {i}",), recaptions, moments=moments))
    return found


def snapshot(root: pathlib.Path) -> set[str]:
    """All that lies below a folder."""
    return {str(path.relative_to(root)) for path in root.rglob("*")}
