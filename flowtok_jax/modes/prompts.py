"""Prompts of a command line: --prompt, --prompts and --prompts_file."""

import html.entities
import logging
import pathlib
import re
import sys
import unicodedata
from collections.abc import Sequence

from flowtok_jax.data.captions import find_encoding
from flowtok_jax.data.inputs import check_prompts
from flowtok_jax.data.records import printable
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import read_bytes, to_place

STDIN = "-"
UNSEEN = ("Cc", "Cf", "Zl", "Zp", "Zs")  # controls, formats and separators
TABLES = (".csv", ".json", ".jsonl", ".toml", ".tsv", ".yaml", ".yml")
# As sd-scripts and the web UI of Stable Diffusion take them, at the end of a line.
OPTION = re.compile(r"(?:^|\s)(--[A-Za-z]\w*)")
# The end of a text that a semicolon would make an entity; escaped twice, &amp;lt;
ENTITY = re.compile(r"&(?:amp;)*(?:#[0-9]+|#[xX][0-9a-fA-F]+|(\w+))$")


def collect_prompts(
    verbatim: Sequence[str], prompts: str | None, prompts_file: str | None
) -> list[str]:
    """Returns the prompts of whichever of the three flags is given.

    Args:
        verbatim: values of --prompt, each of them a prompt.
        prompts: --prompts, split at `;`.
        prompts_file: --prompts_file, with one prompt a line; `-` is the standard input.

    Raises:
        UserError: if there is no prompt, or more than one of the flags, or if a prompt
            may be meant in two ways.
    """
    flags = ("--prompt", "--prompts", "--prompts_file")
    values = (verbatim, prompts, prompts_file)
    given = [flag for flag, value in zip(flags, values, strict=True) if value]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} are both given; give one of them")
    found = list(verbatim)
    if not all(prompt.strip() for prompt in found):
        raise UserError(
            "--prompt is blank; expected a caption, as in --prompt='a red circle' (in "
            'Python, text_to_image([""]) draws the empty one)'
        )
    if prompts:
        found = split_prompts(prompts)
    if prompts_file:
        found = _read_file(prompts_file)
    if not found:
        raise UserError(
            "no prompts; expected --prompts='a red circle at the top left;...', "
            "--prompt='a red circle' once or more, or --prompts_file=FILE with one a "
            "line"
        )
    return check_prompts(found)


def split_prompts(text: str) -> list[str]:
    """Splits prompts at `;`, but for those that end an entity of HTML.

    Raises:
        UserError: if there is a line break inside a prompt.
    """
    found = [""]
    for piece in text.split(";"):
        found[-1] += piece
        entity = ENTITY.search(found[-1])
        # Any number is an entity, of the names only those that HTML knows.
        if entity and (not entity[1] or f"{entity[1]};" in html.entities.html5):
            found[-1] += ";"
        else:
            found.append("")
    found = [prompt.strip() for prompt in found if _has_ink(prompt)]
    for prompt in found:
        if "\n" in prompt:
            raise UserError(
                f"--prompts has a line break inside {prompt[:60]!r}; separate prompts "
                "by ';', or give --prompts_file=- for one a line, or --prompt=TEXT for "
                "one of several lines"
            )
    return found


def _has_ink(text: str) -> bool:
    """Says whether something of a text can be seen: not zero-width characters alone."""
    # Not by isprintable, which is False of characters newer than Python's tables.
    return any(unicodedata.category(c) not in UNSEEN for c in text)


def _read_file(name: str) -> list[str]:
    """Reads the lines of a file that are neither blank nor comments.

    Raises:
        UserError: if the file cannot be read, or is no text with one prompt a line.
    """
    flag = f"--prompts_file={printable(name)}"
    if pathlib.PurePath(name).suffix.lower() in TABLES:
        raise UserError(
            f"{flag} would be read as one prompt a line, and not by columns or keys; "
            "give it another ending, such as .txt, if its lines are prompts"
        )
    text = _decode(_read(name), flag)
    lines = [line.strip() for line in text.split("\n")]
    for number, line in enumerate(lines, 1):
        if "\r" in line:
            raise UserError(
                f"{flag}: line {number} has a carriage return inside; expected lines "
                'that end in "\\n" or "\\r\\n"'
            )
    found = [line for line in lines if _has_ink(line)]
    prompts = [line for line in found if not line.startswith("#")]
    if comments := len(found) - len(prompts):
        logging.info(
            "%s: lines skipped as comments, since they begin with #: %d", flag, comments
        )
    if options := [match[1] for line in prompts if (match := OPTION.search(line))]:
        logging.warning(
            "%s: prompts with options, such as %s, that are taken as words of the "
            "caption: %d (--config.sample.* sets ours)",
            flag,
            options[0],
            len(options),
        )
    return prompts


def _read(name: str) -> bytes:
    flag = f"--prompts_file={printable(name)}"
    expected = "expected a text file with one prompt a line, or - for standard input"
    try:
        if name != STDIN:
            return read_bytes(to_place(name))
        if sys.stdin is None:
            raise UserError(f"{flag}: the standard input is closed; {expected}")
        return sys.stdin.buffer.read()
    except UserError:
        raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{flag} cannot be read ({reason}); {expected}") from error


def _decode(data: bytes, flag: str) -> str:
    """Decodes a file by its byte-order mark, else as UTF-8, and drops such marks.

    Raises:
        UserError: saying the line that is something else.
    """
    encoding = find_encoding(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = 1 + error.object[: error.start].count(b"\n")
        kind = encoding.removesuffix("-sig").upper()
        raise UserError(
            f"{flag} cannot be read: line {line} is no {kind} "
            f"({error.reason}); expected a text file, saved as UTF-8"
        ) from error
    if "\0" in text:
        raise UserError(
            f"{flag} cannot be read: it has zero bytes, as in UTF-16 without a "
            "byte-order mark; expected a text file, saved as UTF-8"
        )
    # Also those inside, of several files that were joined.
    return text.replace("\ufeff", "")
