"""Texts, profiles and other chunks of PNG files that no pixel depends on."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from flowtok_jax.data import images
from flowtok_jax.data.png import strip_png
from tests import memory
from tests.data import made

LONG = zlib.compress(b"x" * 5_000_000)  # 5 kB; Pillow unpacks at most 1 MB
SHORT = zlib.compress(b"x" * 1_000_000)
XMP = '<rdf:Description tiff:Orientation="6"/>'


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def with_chunks(data: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    """Puts chunks before and after the pixels of a PNG file."""
    pixels, end = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    return data[:pixels] + before + data[pixels:end] + after + data[end:]


def decode(data: bytes) -> np.ndarray:
    return np.asarray(images.decode(data, "it"))


BOMBS = {
    "zTXt of 5 MB": made.chunk(b"zTXt", b"workflow\0\0" + LONG),
    "iTXt of 5 MB": made.chunk(b"iTXt", b"prompt\0\1\0\0\0" + LONG),
    "XMP of 5 MB": made.chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG),
    "EXIF of 5 MB": made.chunk(b"zTXt", b"Raw profile type exif\0\0" + LONG),
    "profile of 5 MB": made.chunk(b"iCCP", b"icc\0\0" + LONG),
    "tEXt of 2 MB": made.chunk(b"tEXt", b"history\0" + b"x" * 2_000_000),
    "200 zTXt": made.chunk(b"zTXt", b"history\0\0" + SHORT) * 200,
    "200 XMP": made.chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + SHORT) * 200,
    # Pillow keeps texts and what it knows of the pixels under the same names.
    "transparency": made.chunk(b"tEXt", b"transparency\0none"),
    "bbox": made.chunk(b"tEXt", b"bbox\0none"),
    "unknown packing": made.chunk(b"zTXt", b"workflow\0\5x"),
    "false checksum": made.chunk(b"tEXt", b"a\0b")[:-1] + b"?",
    "frames that lack": made.chunk(b"acTL", bytes(8)),
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("name", BOMBS)
def test_texts_and_profiles_are_neither_read_nor_unpacked(name, place):
    whole = made.encode(made.picture())
    odd = with_chunks(whole, **{place: BOMBS[name]})
    with memory.at_most(8 + 3 * len(odd) / 1e6):
        found = decode(odd)
    np.testing.assert_array_equal(found, decode(whole))


def test_a_workflow_as_generators_write_it_costs_nothing():
    texts = PngImagePlugin.PngInfo()
    texts.add_text("prompt", '{"nodes": []}' * 200_000, zip=True)
    texts.add_itxt("workflow", "é" * 2_000_000, zip=True)
    data = made.encode(made.picture(), pnginfo=texts, icc_profile=b"p" * 3_000_000)
    stripped = strip_png(data)
    assert len(stripped) < 5000
    np.testing.assert_array_equal(decode(data), np.asarray(made.picture()))


def test_what_changes_pixels_stays():
    palette = made.picture().quantize(8)
    for data in (
        made.encode(made.picture(), exif=exif(6)),
        made.encode(palette, transparency=bytes([0, 255] * 4)),
        made.encode(made.picture(), "JPEG", comment=b"x"),
        b"",
    ):
        assert strip_png(data) is data


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("key", ["XML:com.adobe.xmp", "Raw profile type exif"])
def test_an_orientation_in_a_short_text_is_applied(key, packed):
    texts = PngImagePlugin.PngInfo()
    if key.startswith("XML"):
        texts.add_itxt(key, XMP, zip=packed)
    else:
        block = exif(6).tobytes()
        texts.add_text(key, f"\nexif\n{len(block):8}\n{block.hex()}", zip=packed)
    texts.add_text("prompt", "x" * 2_000_000, zip=True)
    data = made.encode(made.picture(), pnginfo=texts)
    assert decode(data).shape == (40, 30, 3)


@pytest.mark.parametrize("kind", [b"tEXt", b"IDAT"])
def test_a_file_cut_within_a_chunk_stays_cut(kind):
    whole = made.encode(made.picture(200, 200))
    data = with_chunks(whole, BOMBS["tEXt of 2 MB"])
    data = data[: data.index(kind) + 1000]
    with pytest.raises(images.BadRecord) as found:
        decode(data)
    assert found.value.reason == "truncated_image"


def test_what_follows_the_end_is_kept_apart():
    whole = made.encode(made.picture())
    trailing = whole + struct.pack(">I4s", 5, b"tEXt") + b"PK\3\4"
    assert strip_png(trailing) is trailing
    np.testing.assert_array_equal(decode(trailing), decode(whole))
