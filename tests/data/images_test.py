import io
import struct
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image

from flowtok_jax.data import images
from flowtok_jax.data.records import BadRecord
from flowtok_jax.runtime.errors import UserError
from tests import memory
from tests.data import made


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(images.decode(data, "it")).astype(int)


def reason(data: bytes, **options) -> str:
    with pytest.raises(BadRecord) as found:
        images.decode(data, "it", **options)
    assert found.value.name == "it"
    return found.value.reason


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = made.picture()
    stored = upright
    if orientation in images.UPRIGHT:
        undo = {
            Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
            Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
        }
        turn = images.UPRIGHT[orientation]
        stored = upright.transpose(undo.get(turn, turn))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = made.encode(stored, "PNG", exif=exif)
    np.testing.assert_array_equal(pixels(data), np.asarray(upright))


def test_orientation_6_means_the_top_row_is_on_the_right():
    # By the EXIF standard: row 0 is the visual right, column 0 the visual top.
    stored = np.zeros((2, 4, 3), np.uint8)
    stored[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    found = pixels(made.encode(Image.fromarray(stored), exif=exif))
    assert found.shape == (4, 2, 3)
    assert (found[:, 1] == 255).all()
    assert (found[:, 0] == 0).all()


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGB", "RGBA", "LA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode):
    grey = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.array([[0, 65535], [65535, 0]], np.uint16))
    else:
        image = grey.convert(mode)
    found = pixels(made.encode(image, "TIFF"))
    assert np.abs(found[..., 0] - np.asarray(grey)).max() <= 1
    assert (found == found[..., :1]).all()


def test_sixteen_bits_keep_their_middle_values():
    grey = np.array([[0, 257, 32896, 65535]], np.uint16)
    found = pixels(made.encode(Image.fromarray(grey)))
    assert found[0, :, 0].tolist() == [0, 1, 128, 255]


def test_a_transparent_grey_of_sixteen_bits_is_white():
    grey = Image.fromarray(np.array([[0, 1234, 65535, 257]], np.uint16))
    found = pixels(made.encode(grey, transparency=1234))
    assert found[0, :, 0].tolist() == [0, 255, 255, 1]


@pytest.mark.parametrize("colour", ["RGB", "RGBA"])
def test_sixteen_bits_of_colour_keep_their_upper_half(colour):
    values = 4000 * np.arange(4 * len(colour)).reshape(4, -1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    kind = 2 if colour == "RGB" else 6
    header = struct.pack(">IIBBBBB", 1, 4, 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    body = b"".join(made.chunk(*parts) for parts in chunks)
    found = pixels(b"\x89PNG\r\n\x1a\n" + body)[:, 0]
    upper = Image.fromarray((values[:, None] >> 8).astype(np.uint8))
    np.testing.assert_array_equal(found, np.asarray(images.to_rgb(upper, "it"))[:, 0])


def test_a_cmyk_jpeg_keeps_its_colours():
    # Red as ink: no cyan, all magenta, all yellow.
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red, green, blue = pixels(made.encode(ink, "JPEG", quality=95))[8, 8]
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_white_stands_behind_transparent_pixels(kind):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    found = pixels(made.encode(image, kind, lossless=True))
    assert found[0, 0].tolist() == [0, 0, 255]
    assert found[0, 7].tolist() == [255, 255, 255]


def test_a_transparent_palette_colour_is_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    found = pixels(made.encode(image, "PNG", transparency=1))
    assert found[0].tolist() == [[10, 20, 30], [255, 255, 255]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_file_cut_short_is_refused(kind):
    data = made.encode(made.picture(200, 200), kind)
    images.decode(data, "it")
    assert reason(data[: int(0.7 * len(data))]) in ("truncated_image", "not_an_image")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF", "MPO"])
def test_of_several_pictures_the_first_is_taken(kind):
    pictures = [made.picture(64, 64, seed=i) for i in range(3)]
    data = made.encode(pictures[0], kind, save_all=True, append_images=pictures[1:])
    assert np.abs(pixels(data) - np.asarray(pictures[0])).mean() < 6
    assert np.abs(pixels(data) - np.asarray(pictures[1])).mean() > 20


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "AVIF", "TIFF", "MPO"])
def test_every_format_that_has_exif_is_turned_upright(kind):
    exif = Image.Exif()
    exif[0x0112] = 6
    found = pixels(made.encode(made.picture(64, 48), kind, exif=exif))
    upright = made.picture(64, 48).rotate(-90, expand=True)
    assert np.abs(found - np.asarray(upright)).mean() < 6


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_the_orientation_of_xmp_is_applied_where_exif_has_none(kind):
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    assert pixels(made.encode(made.picture(), kind, xmp=xmp)).shape == (40, 30, 3)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF", "BMP", "TIFF", "PPM"])
def test_a_file_without_its_last_byte_is_truncated(kind):
    assert reason(made.encode(made.picture(), kind)[:-1]) == "truncated_image"


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_file_without_its_end_mark_has_all_its_pixels(kind):
    whole = made.encode(made.picture(), kind)
    np.testing.assert_array_equal(pixels(whole[:-1]), pixels(whole))


def test_an_image_of_no_pixels_is_none():
    gif = b"GIF89a" + bytes(7) + b";"
    for data in (gif, made.png_header(0, 9), made.png_header(9, 0), b"P6 0 0 255\n"):
        assert reason(data) == "not_an_image"


@pytest.mark.skipif(PIL.__version__ < "13", reason="Pillow 13 was the first to do so")
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow, at damaged EXIF
def test_exif_that_refers_to_itself_does_not_fill_the_memory(kind):
    """Each of many tags is the same block of bytes: 4 GB of a file of 0.4 MB."""
    count, size = (20_000, 200_000) if kind != "JPEG" else (2700, 32_000)
    tags = [struct.pack("<HHII", i, 7, size, 0) for i in range(1, count + 1)]
    block = b"II*\0" + struct.pack("<IH", 8, count) + b"".join(tags) + bytes(size)
    data = made.encode(made.picture(), kind, exif=b"Exif\0\0" + block)
    with memory.at_most(30):
        assert pixels(data).shape == (30, 40, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_a_large_transparent_image_is_held_twice_at_most(mode):
    data = made.encode(Image.new("RGBA", (3000, 3000), (0, 0, 255, 128)).convert(mode))
    if mode == "P":
        data = made.encode(Image.new("P", (3000, 3000)), transparency=0)
    with memory.at_most(2 * 4 * 9 + 16):
        found = images.decode(data, "it")
    white = {"RGBA": (127, 127, 255), "P": (255, 255, 255), "RGB": (0, 0, 255)}
    grey = 255 - round(128 / 255 * (255 - 29))  # 29: blue's share of grey
    expected = white.get(mode, (grey, grey, grey))
    assert np.abs(np.subtract(found.getpixel((2999, 2999)), expected)).max() <= 1


def test_transparency_varies_over_rows_of_any_number():
    image = made.picture(7, 700).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    paper = Image.new("RGBA", image.size, "white")
    whole = Image.alpha_composite(paper, image).convert("RGB")
    np.testing.assert_array_equal(pixels(made.encode(image)), np.asarray(whole))


def test_sixteen_bits_are_held_in_few_copies():
    data = made.encode(Image.fromarray(np.full((3000, 3000), 257, np.uint16)))
    with memory.at_most(9 * (2 + 2 + 1 + 1 + 4) + 8):
        found = images.decode(data, "it")
    assert found.getpixel((2999, 0)) == (1, 1, 1)


def test_want_of_memory_is_no_fault_of_the_image(monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(images, "to_rgb", full)
    with pytest.raises(UserError, match="decode it of 40 x 30 pixels; lower d"):
        images.decode(made.jpeg(), "it")
    monkeypatch.setattr(Image, "open", full)
    with pytest.raises(UserError, match="no memory left to decode it; lower d"):
        images.open_image(made.jpeg(), "it")


def test_reasons():
    assert reason(b"") == "empty_file"
    assert reason(b"<html><body>404</body></html>") == "not_an_image"
    assert reason(made.jpeg()[:300]) == "truncated_image"
    assert reason(made.png_header(60_000, 60_000)) == "too_large"
    assert reason(made.jpeg(), max_pixels=40 * 30 - 1) == "too_large"
    floats = Image.fromarray(np.zeros((4, 4), np.float32))
    assert reason(made.encode(floats, "TIFF")) == "unsupported_image"


def test_damaged_pixels_are_no_truncation():
    data = bytearray(made.encode(made.picture(200, 200)))
    place = bytes(data).index(b"IDAT") + 30
    data[place : place + 40] = bytes(40)
    assert reason(bytes(data)) == "broken_image"


FOREIGN = {
    "EPS": made.encode(made.picture(), "EPS"),  # Pillow would give it to Ghostscript
    "ICO": made.encode(made.picture(32, 32), "ICO"),
    "PDF": made.encode(made.picture(), "PDF"),
    "ICNS": made.encode(made.picture(32, 32), "ICNS"),
    "DDS": made.encode(made.picture(), "DDS"),
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
    "HEIF": b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(100),
    "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(100),
    "PSD": b"8BPS\0\1" + bytes(100),
    "SVG": b'\xef\xbb\xbf<?xml version="1.0"?><!-- x --><svg/>',
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_pictures_of_other_formats_are_named(kind):
    with pytest.raises(BadRecord) as found:
        images.decode(FOREIGN[kind], "photo.jpg")
    assert found.value.reason == "unsupported_image"
    assert found.value.name == f"photo.jpg ({kind})"


def test_a_pointer_of_git_lfs_is_named():
    data = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    with pytest.raises(BadRecord) as found:
        images.decode(data, "photo.jpg")
    assert found.value.reason == "not_an_image"
    assert found.value.name == "photo.jpg (a git-lfs pointer)"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_cost_the_image():
    data = made.encode(made.picture(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert pixels(data).shape == (30, 40, 3)


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (64, 64), (641, 427), (20, 333)])
@pytest.mark.parametrize("side", [32, 17])
def test_crops_equal_those_of_the_whole_image_resized(size, side):
    image = made.picture(*size)
    lengths = [side if x == min(size) else side * x // min(size) for x in size]
    whole = image.resize(lengths, Image.Resampling.BICUBIC)
    left, top = (round((length - side) / 2) for length in lengths)
    wanted = np.asarray(whole.crop((left, top, left + side, top + side))).astype(int)
    found = images.resize_and_crop(image, side)
    assert found.shape == (side, side, 3)
    assert found.dtype == np.uint8
    assert np.abs(found - wanted).max() <= 2  # both passes round


def test_shrinking_averages_instead_of_picking():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    found = images.resize_and_crop(Image.fromarray(stripes), 32)
    assert np.abs(found[:, 2:-2].astype(int) - 127.5).max() < 8


def test_places_move_the_crop():
    ramp = np.tile(np.arange(90, dtype=np.uint8)[:, None], (1, 30))
    image = Image.fromarray(ramp).convert("RGB")
    top, bottom = (images.resize_and_crop(image, 30, 0.5, d) for d in (0.0, 1.0))
    assert top[0, 0, 0] == 0
    assert bottom[-1, 0, 0] == 89
    np.testing.assert_array_equal(images.resize_and_crop(image, 30, 0.0, 0.0), top)


def test_a_sliver_does_not_fill_the_memory():
    image = Image.new("RGB", (2, 60_000), "red")
    found = images.resize_and_crop(image, 256)  # resized whole: 256 x 7,680,000
    assert (found == (255, 0, 0)).all()


def test_opening_reads_no_pixels():
    data = made.png_header(9000, 9000)
    assert images.open_image(data, "it").size == (9000, 9000)
    assert reason(data) in ("truncated_image", "broken_image")


def test_formats_match_their_names():
    for extension in images.EXTENSIONS:
        kind = Image.registered_extensions()[f".{extension}"]
        assert kind in images.FORMATS
        saved = made.encode(made.picture(), kind)
        assert Image.open(io.BytesIO(saved)).format == kind
