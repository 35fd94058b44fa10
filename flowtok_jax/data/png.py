"""Chunks of PNG files that decide no pixel: left out before decoding, or one read.

Generators and editors of images keep prompts, workflows and histories in a PNG, of
megabytes and compressed. Pillow unpacks them when it opens the file, and refuses the
whole image where they are long. Here nothing is unpacked but the two short texts that
may say how the image is turned.
"""

import struct
import zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
FRAME = 12  # bytes of a chunk's length, kind and checksum
# Of the chunks that a decoder may skip, those that change what is seen.
SEEN = (b"tRNS", b"eXIf")
# Texts with the orientation: XMP, and EXIF before PNG had a chunk for it.
TURNING = (b"XML:com.adobe.xmp", b"Raw profile type exif")
TEXT_BYTES = 1 << 20  # of a turning text, packed and unpacked; Pillow's limit too


def read_text(data: bytes, keyword: str, most: int) -> str | None:
    """Returns the text of the first tEXt chunk of a keyword, None where none is.

    Args:
        most: bytes that the text may have.

    Raises:
        ValueError: if the file is no PNG, ends early, or the chunk is damaged or long.
    """
    if not data.startswith(SIGNATURE):
        raise ValueError("it is no PNG")
    start = keyword.encode("latin-1") + b"\0"
    place = len(SIGNATURE)
    while place + FRAME <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + FRAME + length
        if end > len(data):
            break
        # No more of a long chunk than tells that it is long.
        content = data[place + 8 : min(end - 4, place + 8 + len(start) + most + 1)]
        if kind == b"tEXt" and content.startswith(start):
            text = content[len(start) :]
            if len(text) > most:
                raise ValueError(f"its text {keyword} has more than {most} bytes")
            if zlib.crc32(kind + content) != int.from_bytes(data[end - 4 : end]):
                raise ValueError(f"the checksum of its text {keyword} is wrong")
            return text.decode("latin-1")
        if kind == b"IEND":
            return None
        place = end
    raise ValueError("it ends early")


def strip_png(data: bytes) -> bytes:
    """Returns a PNG file without what decides no pixel; other files as they are."""
    if not data.startswith(SIGNATURE):
        return data
    view = memoryview(data)
    kept = bytearray()
    done = 0  # all before it is kept or left out
    place = len(SIGNATURE)
    known: set[bytes] = set()
    while place + FRAME <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + FRAME + length
        # A chunk cut short stays, so that the file is known as truncated.
        if end > len(data) or kind == b"IEND":
            break
        # The bit of a lower-case first letter: a decoder may skip the chunk.
        if kind[0] & 0x20 and kind not in SEEN:
            key = _turning_key(kind, view[place + 8 : end - 4])
            if key is None or key in known:  # of many, one is enough
                kept += view[done:place]
                done = end
            else:
                known.add(key)
        place = end
    if not done:
        return data
    kept += view[done:]
    return bytes(kept)


def _turning_key(kind: bytes, content: memoryview) -> bytes | None:
    """Returns the keyword of a short text that may tell the orientation, else None."""
    if kind not in (b"tEXt", b"zTXt", b"iTXt") or len(content) > TEXT_BYTES:
        return None
    key, _, text = bytes(content).partition(b"\0")
    if key not in TURNING:
        return None
    packed = text[1:] if kind == b"zTXt" else b""
    if kind == b"iTXt" and text[:1] == b"\1":
        packed = text[2:].split(b"\0", 2)[-1]
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(packed, TEXT_BYTES)
    except zlib.error:
        return None
    return None if unpacker.unconsumed_tail else key
