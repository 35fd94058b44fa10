"""Files below a folder, grouped by name, with a count of all that are of no record."""

import collections
import os
import pathlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from flowtok_jax.data import images
from flowtok_jax.data.captions import RECAPTION, CaptionOptions

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
# Pictures by their extensions that images.py does not decode: they are named as such.
PICTURES = (  # noqa: SIM905 (46 lines would be no easier to read)
    "heic heif hif svg svgz psd psb xcf kra ai eps pdf ico icns tga dds exr hdr jxl "
    "jxr qoi pcx emf wmf raw cr2 cr3 crw nef nrw arw sr2 srf dng orf rw2 raf pef srw "
    "x3f 3fr erf kdc mrw iiq rwl"
).split()
# Folders of thumbnails, resource forks and deleted files that systems make unasked.
SYSTEM = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information")
HIDDEN = "hidden files"


class FoundFile(NamedTuple):
    """A file with its extension in lower case, and what that says of it: `image`,
    `picture`, `caption`, `recaption` or `other`.
    """

    kind: str
    extension: str
    path: pathlib.Path


class Listing:
    """All files below a folder, read once.

    Attributes:
        groups: images, pictures and captions by their path from the root up to the
            last dot.
        beside: other files by the same path.
        metadata: metadata files, parents before children.
        passed_over: count of what is of no record, by kind.

    Args:
        root: an existing directory; links to folders are followed, each folder once.
    """

    def __init__(self, root: pathlib.Path, captions: CaptionOptions):
        self.root = root
        self._prefix = len(os.path.join(root, ""))
        self.groups: dict[str, list[FoundFile]] = {}
        self.beside: dict[str, list[FoundFile]] = {}
        self.metadata: list[pathlib.Path] = []
        self.passed_over: collections.Counter[str] = collections.Counter()
        kinds = dict.fromkeys(PICTURES, "picture")
        kinds |= dict.fromkeys(images.EXTENSIONS, "image")
        kinds |= dict.fromkeys(captions.extensions, "caption")
        self._kinds = kinds | {RECAPTION: "recaption"}
        self._paths: set[str] = set()
        self._folded: dict[str, list[pathlib.Path]] = {}
        for path in self._walk():
            self._add(path)

    def _walk(self) -> Iterator[pathlib.Path]:
        """Yields all files, a folder's own before those of its folders."""
        stack = [self.root]
        seen = set()
        while stack:
            folder = stack.pop()
            try:
                status = folder.stat()
                # Device and inode: a link into a parent would go round for ever.
                identity = (status.st_dev, status.st_ino)
                with os.scandir(folder) as found:
                    entries = sorted(found, key=lambda entry: entry.name)
            except OSError:
                self.passed_over["folders that cannot be read"] += 1
                continue
            if identity in seen:
                self.passed_over["links to folders already read"] += 1
                continue
            seen.add(identity)
            inner = []
            for entry in entries:
                if entry.name.startswith(".") or entry.name in SYSTEM:
                    self.passed_over[HIDDEN] += 1
                elif _is(entry.is_dir):
                    inner.append(folder / entry.name)
                elif _is(entry.is_file) or entry.is_symlink():
                    yield folder / entry.name  # reading names a dead link
                else:
                    self.passed_over["pipes, sockets or devices"] += 1
            stack += reversed(inner)

    def _add(self, path: pathlib.Path) -> None:
        if path.name.lower() in METADATA:
            self.metadata.append(path)
            return
        stem, _, extension = path.name.rpartition(".")
        if not stem:
            self.passed_over["files without extension"] += 1
            return
        extension = extension.lower()
        # As text: of a million files pathlib would take half a minute.
        key = f"{os.fspath(path.parent)}/{stem}"[self._prefix :]
        if not key.isascii():  # macOS writes é as two characters, others as one
            key = unicodedata.normalize("NFC", key)
        kind = self._kinds.get(extension, "other")
        where = self.beside if kind == "other" else self.groups
        where.setdefault(key, []).append(FoundFile(kind, extension, path))

    def pass_over(self, files: Iterable[FoundFile]) -> None:
        """Counts files that belong to no record."""
        self.passed_over.update(f".{file.extension}" for file in files)

    def find(self, path: pathlib.Path) -> pathlib.Path:
        """Returns the file that a path of metadata means, itself if nothing is alike.

        Systems write one name in several ways: in capitals, or `é` as two characters.
        """
        if not self._paths:
            self._paths.update(map(str, self._grouped()))
        if str(path) in self._paths or os.path.exists(path):
            return path
        if not self._folded:
            for known in self._grouped():
                self._folded.setdefault(_fold(known), []).append(known)
        found = self._folded.get(_fold(path), [])
        return found[0] if len(found) == 1 else path

    def _grouped(self) -> Iterator[pathlib.Path]:
        return (file.path for files in self.groups.values() for file in files)

    def is_picture(self, path: pathlib.Path) -> bool:
        """Returns whether a file's extension is of a format that cannot be decoded."""
        return self._kinds.get(path.suffix[1:].lower()) == "picture"


def _is(ask: Callable[[], bool]) -> bool:
    """Asks an entry of a folder what it is; a link to itself is neither."""
    try:
        return ask()
    except OSError:
        return False


def _fold(path: pathlib.Path) -> str:
    return unicodedata.normalize("NFC", str(path)).casefold()
