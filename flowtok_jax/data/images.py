"""Decoding, resizing and cropping of image files to square RGB images.

The shorter side is resized to s by bicubic interpolation with antialiasing, and a
square s x s is cut out; lengths are rounded as in torchvision, which the release uses.
Both happen in one step that touches only the part cut out: to resize a sliver of
2 x 60,000 pixels first would take 23 GB.
"""

import io

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from flowtok_jax.data.png import strip_png
from flowtok_jax.data.records import BadRecord
from flowtok_jax.runtime.errors import UserError

# Formats that Pillow decodes by itself: EPS, for one, would run another program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000")
EXTENSIONS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2")
# Pictures that are not decoded, whatever their extension: place and bytes of a mark.
FOREIGN = (
    (4, b"ftyphei", "HEIC"),  # iPhones' photos, often renamed to .jpg
    (4, b"ftypmif1", "HEIF"),
    (4, b"JXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"8BPS", "PSD"),
    (0, b"gimp xcf", "XCF"),
    (0, b"%!PS", "EPS"),
    (0, b"%PDF", "PDF"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"icns", "ICNS"),
    (0, b"DDS ", "DDS"),
    (0, b"qoif", "QOI"),
    (0, b"\x76\x2f\x31\1", "OpenEXR"),
    (0, b"#?RADIANCE", "HDR"),
)
POINTER = b"version https://git-lfs"  # in place of a file that was not fetched
MAX_PIXELS = 89_478_485  # Pillow's own limit: 256 MB as RGB
STRIP = 256  # rows that are put on white paper at a time
TO_8_BITS = (np.arange(65536) / 257).round().astype(np.uint8)  # 65535 = 257 * 255
# EXIF orientation -> transposition that turns the image upright; 1 needs none.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Reads the header of an image file, but no pixels.

    Args:
        max_pixels: width times height above which the image is refused.

    Raises:
        BadRecord: if the file is no image, or too large.
    """
    if not data:
        raise BadRecord("empty_file", name)
    try:
        image = Image.open(io.BytesIO(strip_png(data)), formats=FORMATS)
    # The warning is caught for programs that turn warnings into errors.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadRecord("too_large", name) from error
    except UnidentifiedImageError as error:
        raise _not_an_image(data, name) from error
    except MemoryError as error:
        raise _no_memory(name) from error
    except Exception as error:  # decoders raise anything
        raise BadRecord(_reason(error), name) from error
    if image.width * image.height > max_pixels:
        raise BadRecord("too_large", name)
    return image


def decode(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes an image file to RGB, upright, with white behind transparent pixels.

    Raises:
        BadRecord: if the file cannot be decoded.
    """
    image = open_image(data, name, max_pixels)
    try:
        image.load()
        return to_rgb(_upright(image), name)
    except BadRecord:
        raise
    # No fault of the image: to reject it would lose data, now these, now others.
    except MemoryError as error:
        raise _no_memory(f"{name} of {image.width} x {image.height} pixels") from error
    except Exception as error:  # decoders raise anything
        raise BadRecord(_reason(error), name) from error


def _no_memory(what: str) -> UserError:
    return UserError(
        f"no memory left to decode {what}; lower data.threads or "
        "data.transform.max_pixels"
    )


def _not_an_image(data: bytes, name: str) -> BadRecord:
    """Names what a file is that Pillow does not know, as far as its bytes tell."""
    for place, mark, kind in FOREIGN:
        if data.startswith(mark, place):
            return BadRecord("unsupported_image", f"{name} ({kind})")
    if b"<svg" in data[:4096]:
        return BadRecord("unsupported_image", f"{name} (SVG)")
    if data.startswith(POINTER):
        return BadRecord("not_an_image", f"{name} (a git-lfs pointer)")
    return BadRecord("not_an_image", name)


def _reason(error: Exception) -> str:
    text = str(error).lower()
    # The second is what WebP and AVIF say of a file cut short.
    signs = ("truncated", "could not create decoder")
    return "truncated_image" if any(s in text for s in signs) else "broken_image"


def _upright(image: Image.Image) -> Image.Image:
    """Turns an image as its EXIF orientation says, if that can be read."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF data, of an image that is whole
        return image
    turn = UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Converts any mode but float to RGB, with white behind transparent pixels."""
    if image.mode == "F":  # nothing says which value is white
        raise BadRecord("unsupported_image", name)
    if image.mode.startswith("I"):  # 16 bits: `convert` would clip at 255
        grey = np.asarray(image)
        if grey.dtype != np.uint16:
            grey = np.clip(grey, 0, 65535).astype(np.uint16)
        found = TO_8_BITS[grey]
        if "transparency" in image.info:
            found[grey == image.info["transparency"]] = 255
        image = Image.fromarray(found)
    if image.has_transparency_data:
        return _on_paper(image)
    # `convert` would copy what is RGB already.
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_paper(image: Image.Image) -> Image.Image:
    """Puts white behind an image, some rows at a time: it would be held four times."""
    found = Image.new("RGB", image.size)
    for top in range(0, image.height, STRIP):
        box = (0, top, image.width, min(top + STRIP, image.height))
        rows = image.crop(box).convert("RGBA")
        paper = Image.new("RGBA", rows.size, "white")
        found.paste(Image.alpha_composite(paper, rows).convert("RGB"), box)
    return found


def resize_and_crop(
    image: Image.Image, side: int, across: float = 0.5, down: float = 0.5
) -> np.ndarray:
    """Resizes an RGB image by its shorter side and crops [side, side, 3], uint8.

    Args:
        across, down: place of the crop in [0, 1]; 0.5 is the centre.
    """
    shorter = min(image.size)
    starts = []
    ends = []
    for length, place in zip(image.size, (across, down), strict=True):
        # The crop in whole pixels of the resized image, then back in source pixels.
        resized = side if length == shorter else side * length // shorter
        start = round((resized - side) * place)
        starts.append(start * length / resized)
        ends.append((start + side) * length / resized)
    box = (*starts, *ends)  # left, top, right, bottom
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=box))
