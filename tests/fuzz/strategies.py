"""Strategies of hypothesis for names, captions and image files as people have them."""

import io

from hypothesis import strategies as st
from PIL import Image

from tests.data import made

# Letters that mean something to shells, globs, source strings, CSV, JSON, URLs,
# Windows or Unicode, and bytes of a name that are no UTF-8.
ODD = (
    " .,;:@#%&+=~!?*[]{}()<>|'\"`$^\\\t\n\r\x01\x7f\x85\xa0\xad\ufeff\u200b\u200d\u2028"
    "\u202e\u0301éÉßıİ日本語😀🏳️‍🌈\udce9\udcff"
)
PLAIN = "abcXYZ019_-"
letters = st.one_of(st.sampled_from(PLAIN), st.sampled_from(ODD))
names = st.text(letters, min_size=1, max_size=24).filter(lambda x: x.strip("."))
# Of what a user types, an error repeats it all, and should be one line.
typed_names = names.filter(lambda x: "\n" not in x and "\r" not in x)
plain_names = st.text(st.sampled_from(PLAIN), min_size=1, max_size=12)


class Long(bytes):
    """Bytes that hypothesis need not print whole."""

    def __repr__(self) -> str:
        return f"{bytes(self[:12])!r} and so on, {len(self)} bytes"


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
# Texts that mean the same to every reader: no white space at an end, no controls.
plain_captions = st.text(
    st.sampled_from("abcdefgh ÉéßŁж日 ,;'\"&!?.-:"), min_size=1, max_size=60
).map(lambda x: "a " + " ".join(x.split()) + " z")
TEXTS = (
    b"",
    b" \t\r\n",
    b"\xef\xbb\xbf",
    b"\xef\xbb\xbfa fox",
    "\u200b\ufeff\u200d".encode(),
    b"\x00\x00",
    b"a\x00 fox",
    "a fox".encode("utf-16"),
    "a fox".encode("utf-16-be"),
    "un café".encode("latin-1"),
    b"\xff\xfe",
    b"\xff\xfea",
    b"first\nsecond\r\nthird\r",
    b"fr.utf8=un renard\nen.utf8=a fox",
    b"a,b;c\td",
    b"<|endoftext|> <|startoftext|> <unk> <pad>",
    Long(b"word " * 20_000),
    b"&amp;lt;b&amp;gt;",
)
caption_bytes = st.one_of(
    plain_captions.map(str.encode),
    words.map(str.encode),
    st.sampled_from(TEXTS),
    st.binary(max_size=60),
)


def _image(kind: str, mode: str, **options) -> bytes:
    image = made.picture(23, 17)
    image = image.convert("RGB").convert(mode) if mode != "I;16" else image
    return made.encode(image, kind, **options)


def _animated(kind: str, **options) -> bytes:
    frames = [made.picture(19, 13, seed) for seed in range(3)]
    out = io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:], **options)
    return out.getvalue()


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return made.encode(made.picture(23, 17), "JPEG", exif=exif)


# One whole file of each format, mode and kind of inside that decoders treat apart.
WHOLE = (
    _image("PNG", "RGB"),
    _image("PNG", "RGBA"),
    _image("PNG", "LA"),
    _image("PNG", "P", transparency=3),
    _image("PNG", "1"),
    made.encode(made.picture().convert("I;16"), "PNG"),
    _image("JPEG", "RGB"),
    _image("JPEG", "L", progressive=True),
    _image("JPEG", "CMYK"),
    _turned(),
    _image("WEBP", "RGBA"),
    _image("WEBP", "RGB", lossless=True),
    _animated("WEBP"),
    _image("GIF", "P"),
    _animated("GIF", disposal=2),
    _animated("PNG"),
    _image("TIFF", "RGB"),
    _image("TIFF", "RGB", compression="tiff_lzw"),
    _image("TIFF", "CMYK", compression="tiff_adobe_deflate"),
    _image("TIFF", "F"),
    _animated("TIFF"),
    _image("BMP", "RGB"),
    _image("PPM", "L"),
    _image("AVIF", "RGB"),
    _image("JPEG2000", "RGB"),
)
FOREIGN = (
    b"",
    b"<html>404</html>",
    b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic",
    b"%PDF-1.7\n",
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    b"8BPS\x00\x01" + bytes(30),
    b"II*\x00\x08\x00\x00\x00",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    made.png_header(60_000, 60_000),
    made.png_header(0, 5),
    made.png_header(2**31 - 1, 2**31 - 1),
    made.png_header(9000, 9000),
)


@st.composite
def mutated(draw, files=WHOLE) -> bytes:
    """A whole file with bytes changed, cut off, doubled, swapped or put in."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        # The header is where sizes, modes and offsets stand.
        at = at % 64 if draw(st.booleans()) else at
        change = draw(st.integers(0, 4))
        if change == 0:
            del data[at:]
        elif change == 1:
            size = draw(st.integers(1, 8))
            data[at : at + size] = draw(st.binary(min_size=size, max_size=size))
        elif change == 2:
            value = draw(st.sampled_from((b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff")))
            data[at : at + 4] = value
        elif change == 3:
            data[at:at] = draw(st.binary(max_size=12))
        else:
            data += data[at:]
    return bytes(data)


image_bytes = st.one_of(
    st.sampled_from(WHOLE), mutated(), st.sampled_from(FOREIGN), st.binary(max_size=99)
)
