"""Source strings: KIND[:ARGUMENTS][@WEIGHT], several joined by `,`.

    shapes[:SPLIT]                 generated scenes: train (default), seen, held_out or
                                   open, whose captions leave things open
    folder:DIR                     a.jpg + a.txt, or metadata.jsonl, metadata.csv
    tars:GLOB                      WebDataset tars, here or on gs:// and the like
    arrayrecord:GLOB               shards of `python -m flowtok_jax.data.prepare`
    latents:GLOB                   pretokenised: our shards, or the release's *.tar
    tfds:NAME:SPLIT                prepared by TensorFlow Datasets
    karpathy:JSON:IMAGEDIR:SPLIT   dataset_coco.json and the folder of its images

GLOB takes `*`, `?`, `[...]`, `**` for any folders, number ranges `{000..127}` and
alternatives `{cats,dogs}`. Without weights one epoch sees each record of all the
sources once; if any has a weight, sources without one have weight 1, and each is drawn
in proportion.

A path of this machine that exists goes before all of these characters: folder:/x/a, b@2
is one folder, if there is one of that name. Where two readings exist, the string is
refused. Quotes around the beginning of a path settle it: folder:"/x/a, b"@2, or
tars:"/x/[2024] a"/*.tar. `~`, `~user` and file:// are replaced.
"""

import difflib
import glob
import itertools
import math
import os
import re
from typing import NamedTuple

from flowtok_jax.data import globs
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.paths import expand_path

KINDS = ("shapes", "folder", "tars", "arrayrecord", "latents", "tfds", "karpathy")
OF_FILES = ("folder", "tars", "arrayrecord", "latents", "karpathy")
START = re.compile(rf"\s*(?:(?:{'|'.join(KINDS)}):|shapes\s*(?:[@,]|$))")  # of a source
QUOTED = re.compile(rf"^\s*(?:{globs.QUOTED.pattern})")
QUOTED_FIELDS = re.compile(rf"(?:^\s*|(?<=:))(?:{globs.QUOTED.pattern})")  # karpathy's
QUOTES = "\"'`\u201c\u201d\u2018\u2019"  # of a keyboard, and of a word processor
BRACES = re.compile(r"\{(?:[^{}]|\{[^{}]*\})*\}")  # one pair may stand in another
WEIGHT = re.compile(r"(.*)@([-+.\w]*)\s*", re.DOTALL)  # no `/`: a path may hold an @


class SourceSpec(NamedTuple):
    """One source of a source string."""

    kind: str
    arguments: str
    weight: float | None

    @property
    def spec(self) -> str:
        """Source string of this source, without its weight."""
        return f"{self.kind}:{self.arguments}" if self.arguments else self.kind


def parse_sources(spec: str) -> list[SourceSpec]:
    """Splits a source string into its sources.

    Raises:
        UserError: for an unknown kind, for a weight that is no number above 0, and for
            a string that means two things that exist.
    """
    parts = []
    start = 0
    spec = spec.lstrip("\ufeff")  # a file's mark, where a script read the string
    while start <= len(spec):
        kind = _find_kind(spec, start)
        begin = spec.index(kind, start) + len(kind)
        begin += spec[begin : begin + 1] == ":"
        reading = _read_arguments(kind, spec[begin:])
        if kind != "shapes" and not reading.arguments:
            raise UserError(f"source {kind!r} says not of what; expected {kind}:...")
        parts.append(SourceSpec(kind, reading.arguments, reading.weight))
        start = begin + reading.end + 1  # after the comma
    return parts


def _find_kind(spec: str, start: int) -> str:
    """Returns the kind of the source that begins at a place of a source string."""
    text = spec[start:]
    kind = re.split("[:@,]", text)[0].strip()
    if kind in KINDS:
        return kind
    kinds = ", ".join(KINDS)
    if not kind:
        raise UserError(
            f"no source of data named; expected KIND:ARGUMENTS with one of {kinds}, as "
            "in folder:photos"
        )
    no_path = f", and {spec!r} names no path that exists" if start else ""
    text = text.strip()
    if not os.path.lexists(text):  # what follows the path is no part of it
        text = re.sub(r",.*|@[-+.\w]*$", "", text, flags=re.DOTALL)
    if re.match(rf"[\[({QUOTES}]+\s*(?:{'|'.join(KINDS)}):", text):
        raise UserError(
            f"source {text!r} begins with a quote or bracket; expected KIND:PATH, with "
            "quotes, if any, around PATH alone"
        )
    # A drive letter and file: are no kinds, nor is what has a slash.
    is_path = re.match(r"\w:[/\\]|file:/|\w+://|[^:]*[/\\]|~", text)
    if is_path or os.path.lexists(text):
        raise UserError(
            f"source {text!r} has no kind{no_path}; expected {guess_source(text)}, or "
            f"another one of {kinds}"
        )
    near = difflib.get_close_matches(kind.lower(), KINDS, 1, 0.75)
    rest = text.partition(":")[2]
    hint = f" (is it {near[0]}:{rest}?)" if near and rest else ""
    raise UserError(
        f"source {text!r} is of kind {kind!r}{hint}{no_path}; expected one of {kinds}, "
        "as in folder:photos"
    )


def guess_source(text: str) -> str:
    """Returns the source string that a path without a kind probably means."""
    path = expand_path(text)
    endings = {".tar": "tars", ".arrayrecord": "arrayrecord"}
    for ending, kind in endings.items():
        if path.endswith(ending):
            return f"{kind}:{text}"
        if glob.glob(f"{glob.escape(path)}/*{ending}"):
            return f"{kind}:{text.rstrip('/')}/*{ending}"
    if globs.is_remote(path):
        return f"tars:{text.rstrip('/')}/*.tar"
    if path.endswith(".json"):
        return f"karpathy:{text}:IMAGEDIR:SPLIT"
    # Of image files the folder that they are in.
    is_of_files = os.path.isfile(path) or re.search(r"[*?][^/]*$", path)
    return f"folder:{(os.path.dirname(text) or '.') if is_of_files else text}"


class _Reading(NamedTuple):
    """A way to read the arguments of one source, up to a comma or the end."""

    end: int
    arguments: str
    weight: float | None


def _read_arguments(kind: str, text: str) -> _Reading:
    """Reads the arguments of the source that a text begins with.

    Raises:
        UserError: for a weight that cannot be, and for a text that means two things.
    """
    # What stands in quotes or braces is no syntax, but keeps its place.
    quoted = QUOTED_FIELDS if kind == "karpathy" else QUOTED
    masked = quoted.sub(lambda found: "_" * len(found[0]), text)
    is_quoted = masked != text
    masked = BRACES.sub(lambda found: "_" * len(found[0]), masked)
    ends = [*(found.start() for found in re.finditer(",", masked)), len(text)]
    *others, default = _ways(kind, text, masked, ends[0])
    if kind not in OF_FILES or is_quoted:
        return _checked(kind, text, default)
    longer = [_ways(kind, text, masked, end) for end in reversed(ends[1:])]
    others = [*itertools.chain(*longer), *others]  # the longest path first
    found = [way for way in others if _is_there(kind, text, way)]
    if found and _is_there(kind, text, default):
        found.append(default)
    if len(found) > 1:
        first, second = (_quoted(kind, way) for way in found[:2])
        raise UserError(
            f"source {kind}:{found[0].arguments} means two things that exist; expected "
            f"quotes: {first} or {second}"
        )
    return found[0] if found else _checked(kind, text, default)


def _quoted(kind: str, reading: _Reading) -> str:
    """Returns the source string that can be read in this way only."""
    folder, slash, name = reading.arguments.rpartition("/")
    if kind != "folder" and globs.SPECIAL.search(name):  # in quotes it were a name
        path = f'"{folder}"{slash}{name}'
    else:
        path = f'"{reading.arguments}"'
    weight = f"@{reading.weight:g}" if reading.weight else ""
    return f"{kind}:{path}{weight}"


def _ways(kind: str, text: str, masked: str, end: int) -> list[_Reading]:
    """Returns the ways to read a text up to `end`: as it is, without the spaces around
    it, and with the weight that it ends in, NaN for a wrong one.
    """
    plain = text[:end]
    ways = [_Reading(end, plain, None), _Reading(end, plain.strip(), None)]
    if found := WEIGHT.fullmatch(masked[:end]):
        try:
            weight = float(found[2])
        except ValueError:
            weight = math.nan
        head = text[: found.end(1)]
        if kind == "karpathy":  # the name of a split is no path, and has no @
            ways.clear()
        ways += [_Reading(end, head, weight), _Reading(end, head.strip(), weight)]
    return list(dict.fromkeys(ways))


def _checked(kind: str, text: str, reading: _Reading) -> _Reading:
    """Returns a reading that no existing path confirms, if its weight can be."""
    if kind in OF_FILES and not QUOTED.match(text):
        _check_unquoted(kind, reading.arguments)
    if reading.weight is None or 0 < reading.weight < math.inf:
        return reading
    whole = text[: reading.end]
    # Only the store knows what it has.
    if kind in OF_FILES and globs.is_remote(whole) and math.isnan(reading.weight):
        return _Reading(reading.end, whole, None)
    given = whole[len(reading.arguments) :].strip().removeprefix("@")
    no_path = f", and {whole} does not exist" if kind in OF_FILES else ""
    raise UserError(
        f"source {f'{kind}:{whole}' if reading.arguments else kind + whole!r} has the "
        f"weight {given!r}; expected a number above 0{no_path}"
    )


def _check_unquoted(kind: str, path: str) -> None:
    """Refuses arguments that seem to have other quotes, or sources joined otherwise."""
    if globs.is_remote(path) or _exists(kind, path):
        return
    if path[:1] and path[0] in QUOTES:
        raise UserError(
            f"source {kind}:{path} has no closing quote; expected \"PATH\" or 'PATH', "
            "in straight quotes"
        )
    if re.search(rf"[;|\s]\s*(?:{'|'.join(KINDS)}):", path):
        raise UserError(
            f"source {kind}:{path} does not exist; several sources are joined by commas"
        )


def _is_there(kind: str, text: str, reading: _Reading) -> bool:
    """Says whether a reading is that of an existing path, with sources after it."""
    after = text[reading.end + 1 :]
    if reading.weight is not None and not 0 < reading.weight < math.inf:
        return False
    if reading.end < len(text) and not START.match(after):
        return False
    return _exists(kind, reading.arguments)


def _exists(kind: str, path: str) -> bool:
    """Says whether the arguments of a source name something on this machine."""
    if globs.is_remote(path):  # only the store knows
        return False
    try:
        if kind == "karpathy":
            file, *_ = [*globs.split_karpathy(path), ""]
            return os.path.isfile(file) and "," not in path.rpartition(":")[2]
        if os.path.lexists(expand_path(path)):
            return True
        # What follows a wildcard has no more sources in it: "*.tar,tars:b" is no name.
        fixed = os.path.dirname(globs.SPECIAL.split(path)[0])
        is_one = not any(map(START.match, path[len(fixed) :].split(",")[1:]))
        return kind != "folder" and is_one and globs.is_found(path)
    except UserError:  # of a path that cannot be, which its reader will say
        return False
