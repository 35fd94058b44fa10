"""Captions as every reader of records finds, decodes and cleans them."""

import codecs
import dataclasses
import functools
import logging
import re
from collections.abc import Mapping
from typing import Any

from flowtok_jax.data import images
from flowtok_jax.data.records import BadRecord
from flowtok_jax.runtime.errors import UserError

READINGS = ("whole", "first_line")
KEYS = ("caption", "text", "prompt")
FURTHER = "texts"  # key of further captions of the same image
EXTENSIONS = ("txt", "caption")
RECAPTION = "recap_txt"
MAX_BYTES = 1 << 20  # of a caption's file; what is longer is some other text
# UTF-32 first: its mark begins as that of UTF-16 does.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
LINE_END = re.compile(r"\r\n|\r|\n")
# White space, without two that may be the last byte of a letter decoded wrongly.
SPACES = "".join(
    c for c in map(chr, range(0x3001)) if c.isspace() and c not in "\x85\xa0"
)
# White space and control characters, and marks that show nothing by themselves: soft
# hyphens, fillers, zero-width characters, marks of direction, the blank Braille cell.
INVISIBLE = SPACES + "".join(map(chr, (*range(0x20), *range(0x7F, 0xA1))))
INVISIBLE += "\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u2800\u3164\ufeff\uffa0"
INVISIBLE += "".join(map(chr, (*range(0x200B, 0x2010), *range(0x202A, 0x2030))))
INVISIBLE += "".join(map(chr, range(0x2060, 0x2070)))


@functools.cache
def log_once(text: str, level: int = logging.INFO) -> None:
    """Logs a line the first time that this process has it to say."""
    logging.log(level, text)


def find_encoding(head: bytes) -> str:
    """Returns the encoding that a text's first bytes mark; UTF-8 without a mark."""
    return next((name for mark, name in MARKS if head.startswith(mark)), "utf-8-sig")


def decode_text(data: bytes, name: str) -> str:
    """Decodes UTF-8, or UTF-16 and UTF-32 that begin with a byte-order mark.

    Raises:
        BadRecord: if the bytes are of another encoding.
    """
    try:
        return data.decode(find_encoding(data))
    except UnicodeDecodeError as error:
        raise BadRecord("bad_text_encoding", name) from error


def _names(value: Any, key: str, leading: str = "") -> tuple[str, ...]:
    """Returns the names in a value: a tuple, or a text with commas between them.

    Args:
        leading: characters that names may begin with, and lose.
    """
    given = (value,) if isinstance(value, str) else tuple(value or ())
    if all(isinstance(text, str) for text in given):
        parts = (part.strip() for text in given for part in text.split(","))
        found = (part.lstrip(leading) for part in parts)
        if names := tuple(filter(None, found)):
            return names
    raise UserError(f"{key} is {value!r}; expected names, as in caption,text")


@dataclasses.dataclass(frozen=True)
class CaptionOptions:
    """Options of how captions are read, the same ones for every kind of source.

    Attributes:
        reading: the `whole` text, or its `first_line` that is not blank.
        keys: keys of JSON and columns of metadata, the first that has a text wins; also
            as a text with commas between them.
        extensions: of caption files and of members of tars, the first wins; likewise.
    """

    reading: str = READINGS[0]
    keys: tuple[str, ...] | str = KEYS
    extensions: tuple[str, ...] | str = EXTENSIONS

    def __post_init__(self):
        if self.reading not in READINGS:
            raise UserError(
                f"data.captions is {self.reading!r}; expected one of "
                f"{', '.join(READINGS)}"
            )
        found = _names(self.extensions, "data.caption_extensions", leading=".")
        endings = tuple(name.lower() for name in found)
        if RECAPTION in endings or "json" in endings:
            raise UserError(
                f"data.caption_extensions is {', '.join(endings)}; {RECAPTION} and "
                "json are read by themselves: leave them out"
            )
        if taken := [name for name in endings if name in images.EXTENSIONS]:
            raise UserError(
                f"data.caption_extensions is {', '.join(endings)}; files of "
                f"{', '.join(taken)} are images"
            )
        object.__setattr__(self, "extensions", endings)
        object.__setattr__(self, "keys", _names(self.keys, "data.caption_keys"))

    def describe(self) -> str:
        """Describes on one line how captions are read."""
        endings = ", ".join(f".{name}" for name in self.extensions)
        keys = ", ".join(self.keys)
        return f"captions: {self.reading} (data.captions) of {endings}, or keys {keys}"

    def clean(self, text: str, name: str = "") -> str:
        """Returns the part of a text that is its caption; "" if nothing can be seen.

        Args:
            name: of the record, to say once that a caption has several lines.
        """
        text = text.replace("\0", "").replace("\ufeff", "").strip(SPACES)
        # Only whole captions: at the end of a word such a mark may have a meaning.
        if not text.strip(INVISIBLE):
            return ""
        if "\n" not in text and "\r" not in text:
            return text
        if self.reading == "first_line":
            lines = (line.strip(SPACES) for line in LINE_END.split(text))
            return next(line for line in lines if line.strip(INVISIBLE))
        _say_lines(name)
        return text

    def texts(self, value: Any, name: str) -> tuple[str, ...]:
        """Returns the captions in a JSON value: a text or a list of texts.

        Raises:
            BadRecord: if there is none, or none that can be seen.
        """
        given = [value] if isinstance(value, str) else value
        if not isinstance(given, list) or not all(isinstance(x, str) for x in given):
            raise BadRecord("missing_caption", name)
        found = tuple(filter(None, (self.clean(text, name) for text in given)))
        try:
            "".join(found).encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, as "\\ud800"
            raise BadRecord("bad_text_encoding", name) from error
        if not found:
            raise BadRecord("empty_caption" if given else "missing_caption", name)
        return found

    def decode(self, data: bytes, name: str) -> str:
        """Returns the caption in the bytes of a file; "" if nothing can be seen."""
        if len(data) > MAX_BYTES:
            raise BadRecord("too_large", name)
        return self.clean(decode_text(data, name), name)

    def pick(self, row: Mapping[str, Any]) -> Any:
        """Returns the value in a row that `texts` takes; "" if its keys are empty.

        A list of texts under FURTHER is added to it.
        """
        found = [row[key] for key in self.keys if key in row]
        value = next(filter(None, found), "" if found else None)
        further = row.get(FURTHER)
        # Somebody else's column of that name may hold anything.
        if not isinstance(further, list) or not isinstance(value, str):
            return value
        if not all(isinstance(text, str) for text in further):
            return value
        return [value, *further] if value else further

    def rivals(self, row: Mapping[str, Any]) -> list[str]:
        """Returns the keys of a row that hold different captions, if nobody chose.

        Who names keys has chosen: the first of them.
        """
        if self.keys != KEYS:
            return []
        found = {key: row[key] for key in self.keys if row.get(key)}
        # As text: NaN, which pandas writes for no caption, is not equal to itself.
        return list(found) if len(set(map(repr, found.values()))) > 1 else []


_told: set[str] = set()  # "lines", once a caption of several was read


def _say_lines(name: str) -> None:
    """Warns of the first caption of several lines that this process reads whole."""
    if not name or _told:
        return
    _told.add("lines")
    logging.warning(
        "%s has a caption of several lines, and all are read as one caption: "
        "data.captions=first_line takes the first alone",
        name,
    )
