"""Image files that are damaged, foreign, or claim sizes they do not have."""

import random
import struct
import zlib

import numpy as np
import pytest
from hypothesis import strategies as st

from flowtok_jax.data import images
from flowtok_jax.data.centre import CentreReader
from flowtok_jax.data.prepare import check_record
from flowtok_jax.data.records import BadRecord, Record, Records
from flowtok_jax.data.transforms import Filters, ImageTransform
from tests.data import made
from tests.fuzz.bounds import bounded, check_bad, odd
from tests.fuzz.strategies import WHOLE, image_bytes, mutated

SIDE = 8
CENTRE = CentreReader(SIDE)
TRANSFORM = ImageTransform(SIDE, crop="random", flip=True)


class One(Records):
    """A single record."""

    def __init__(self, record: Record):
        self._record = record

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Record:
        return self._record


def outcome(read, *arguments) -> str:
    """Returns the reason of a BadRecord, or "" where the image can be read."""
    try:
        found = read(*arguments)
    except BadRecord as bad:
        check_bad(bad)
        return bad.reason
    if isinstance(found, np.ndarray):
        assert found.shape == (SIDE, SIDE, 3)
        assert found.dtype == np.uint8
    return ""


def all_outcomes(data: bytes) -> set[str]:
    """Returns what every reader of images makes of a file."""
    record = Record("it", ("a fox",), image=data)
    rng = random.Random(0)
    return {
        outcome(CENTRE, record),
        outcome(lambda: TRANSFORM(record, rng)["image"]),
        outcome(check_record, One(record), 0, Filters(), images.MAX_PIXELS),
    }


@odd(250, data=image_bytes)
def test_every_reader_says_the_same_of_a_file(data):
    assert len(all_outcomes(data)) == 1


@odd(40, data=st.sampled_from(WHOLE), tail=st.binary(max_size=50))
def test_bytes_after_a_whole_image_do_no_harm(data, tail):
    # TIFF and AVIF may have their directory anywhere, but none at the end.
    if outcome(CENTRE, Record("it", image=data)) == "":
        assert all_outcomes(data + tail) == {""}


def claiming(kind: str, width: int, height: int) -> bytes:
    """A small file whose header claims a size."""
    if kind == "PNG":
        return made.png_header(width, height)
    data = bytearray(made.encode(made.picture(9, 9), kind))
    if kind == "GIF":
        sizes = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
        data[6:10] = sizes
        at = data.index(b"\x2c\x00\x00\x00\x00")
        data[at + 5 : at + 9] = sizes
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", width & 0x7FFFFFFF, height & 0x7FFFFFFF)
    elif kind == "JPEG":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
    elif kind == "TIFF":
        data = bytearray(_tiff(width, height))
    return bytes(data)


def _tiff(width: int, height: int) -> bytes:
    """A TIFF of one bit a pixel whose strip is one run of PackBits."""
    strip = b"\x81\x00" * 4
    tags = [(256, 4, width), (257, 4, height), (258, 3, 1), (259, 3, 32773)]
    tags += [(262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 4, height)]
    tags.append((279, 4, len(strip)))
    rows = b"".join(struct.pack("<HHII", tag, kind, 1, v) for tag, kind, v in tags)
    head = b"II*\x00" + struct.pack("<I", 8 + len(strip)) + strip
    return head + struct.pack("<H", len(tags)) + rows + bytes(4)


sizes = st.one_of(
    st.integers(0, 100_000),
    st.sampled_from((1, 9_459, 9_460, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1)),
)


@odd(
    60,
    kind=st.sampled_from(("PNG", "GIF", "BMP", "JPEG", "TIFF")),
    width=sizes,
    height=sizes,
)
def test_a_claimed_size_costs_no_memory(kind, width, height):
    data = claiming(kind, width, height)
    found = all_outcomes(data)
    assert len(found) == 1
    if kind == "PNG" and width * height > images.MAX_PIXELS:
        assert found & {"too_large", "broken_image", "not_an_image"}


def _black(width: int, height: int, kind: int, bits: int) -> bytes:
    """A whole PNG of zeros: kind 0 is grey, 2 RGB, 4 grey and alpha, 6 RGBA."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    row = bytes(1 + width * channels * bits // 8)
    packer = zlib.compressobj()
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(made.chunk(*chunk) for chunk in chunks)


kinds = st.sampled_from((0, 2, 4, 6))
depths = st.sampled_from((8, 16))


@odd(
    20, length=st.integers(1, 2_000_000), upright=st.booleans(), kind=kinds, bits=depths
)
def test_slivers_cost_no_more_than_their_pixels(length, upright, kind, bits):
    size = (2, length) if upright else (length, 2)
    assert all_outcomes(_black(*size, kind, bits)) == {""}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [0, 2, 4, 6])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_largest_image_that_is_read_fits_into_the_bound(kind, bits):
    data = _black(9459, 9459, kind, bits)
    assert len(data) < 1_000_000
    with bounded(seconds=60):
        assert outcome(CENTRE, Record("it", image=data)) == ""


@odd(60, data=mutated(), pixels=st.integers(1, 2000))
def test_a_limit_of_pixels_holds(data, pixels):
    try:
        image = images.decode(data, "it", pixels)
    except BadRecord as bad:
        check_bad(bad)
    else:
        assert image.mode == "RGB"
        assert image.width * image.height <= pixels
