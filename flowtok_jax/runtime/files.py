"""Paths of this machine and of gs://BUCKET/PATH: whole files and folders,
digests, JSON, PNG.

Remote paths go through epath, which reads them with gcsfs. Orbax, which writes the
checkpoints, knows no other store, so neither does this module.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import pathlib
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import fsspec
import numpy as np
from etils import epath
from PIL import Image, PngImagePlugin

from flowtok_jax.runtime.errors import PlaceError, StoreError, UserError, WriteError
from flowtok_jax.runtime.paths import expand_path

Place = pathlib.Path | epath.Path
LOCK = "lock.json"  # in a folder that a run has for itself, see runtime/lock.py
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
# What an open file meets that was writable: a limit, a disk that fails or is remounted.
BAD_DISK = (errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE)


def to_place(path: str | Place) -> Place:
    """Makes a path of this machine or of a store, and tries out a remote one.

    Raises:
        UserError: if the path is of another store, or the store cannot be reached.
    """
    # A drive letter of Windows is one letter, a scheme has more.
    text = expand_path(str(path))
    if not re.match(r"\w{2,}:/", text):
        return pathlib.Path(text)
    if not re.match("gs://[^/]", text):
        raise UserError(
            f"{text} is no place; expected a local path or gs://BUCKET/PATH"
        )
    # Orbax writes past gcsfs, whose cache of listings would not know its files.
    settings = fsspec.config.conf.setdefault("gcs", {})
    settings.setdefault("use_listings_cache", False)
    place = epath.Path(text)
    try:
        place.exists()
    except ImportError as error:
        raise UserError(
            f"{text} needs gcsfs, which is not installed; run `pip install gcsfs`"
        ) from error
    except Exception as error:  # gcsfs, google.auth and aiohttp share no class
        raise UserError(_complaint(place, error)) from error
    return place


def is_remote(place: str | Place) -> bool:
    """Says whether a path is on a store, not on this machine's disks."""
    return "://" in str(place)  # pathlib makes one slash of two


def absolute(place: Place) -> Place:
    """Returns the place from the root; a remote one always is."""
    return place if is_remote(place) else place.resolve()


@contextlib.contextmanager
def reaching(place: Place) -> Iterator[None]:
    """Turns whatever a remote store's client raises into a StoreError."""
    try:
        yield
    except Exception as error:  # gcsfs, google.auth and aiohttp share no class
        if isinstance(error, UserError) or not is_remote(place):
            raise
        raise StoreError(_complaint(place, error)) from error


def _complaint(place: Place, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [""])[0][:300]
    return (
        f"{place} cannot be read or written ({type(error).__name__}: {reason}); check "
        "the bucket's name, and that `gcloud auth application-default login` or the "
        "machine's service account gives access to it"
    )


def _write_error(place: Place, error: OSError) -> UserError:
    """Makes the one line that says why a local place cannot be written."""
    # By its last name, also while a folder above it is still being made.
    place = pathlib.Path(re.sub(r"\.([^/]+)\.[0-9a-f]{8}\.part\b", r"\1", str(place)))
    if error.errno in NO_ROOM or "requested and" in str(error):  # by numpy, no number
        return WriteError(
            f"{place} cannot be written ({os.strerror(error.errno or errno.ENOSPC)}); "
            "make room, and the same command goes on"
        )
    # What is a file, and was expected to be a folder, is not told by every error.
    nearest = next((p for p in place.parents if os.path.lexists(p)), place.parent)
    if not nearest.is_dir():
        return PlaceError(
            f"{place} cannot be written: {nearest} is a file; expected a directory"
        )
    reason = error.strerror or str(error)
    cure = "give another place"
    if isinstance(error, FileNotFoundError):
        reason = "nothing can be made there"
    elif isinstance(error, PermissionError):
        cure += ", or get the right to write there"
    return PlaceError(f"{place} cannot be written ({reason}); {cure}")


@contextlib.contextmanager
def writing(place: Place) -> Iterator[None]:
    """Turns a failure to write a local place into a PlaceError or WriteError.

    The block may read other files: errors that name one of them pass as they are.
    """
    try:
        yield
    except (PlaceError, WriteError):
        raise
    except OSError as error:
        named = pathlib.Path(str(error.filename or ""))
        part = f".{place.name}."  # its name while it is being made
        is_ours = named in place.parents or any(
            name == place.name or name.startswith(part) for name in named.parts
        )
        if error.filename is None:  # a write into an open file, or a read of another
            is_ours = error.errno in (*NO_ROOM, *BAD_DISK)
            is_ours = is_ours or "requested and" in str(error)  # numpy's, on no room
        if not is_ours:
            raise
        raise _write_error(place, error) from error
    except RuntimeError as error:  # as ArrayRecord's writer calls a full disk
        for number in NO_ROOM:
            if os.strerror(number) in str(error):
                raise _write_error(place, OSError(number, "")) from error
        raise


def _part_of(path: pathlib.Path) -> pathlib.Path:
    """Returns the passing name, new in each call, of a file or folder in the making."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")


def remove_parts(path: pathlib.Path) -> None:
    """Removes what killed writers of a file left behind."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def new_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a file to write, which gets its name if the block ends well.

    Otherwise the file is removed, also from a full disk, which would stay full.

    Raises:
        UserError: if it cannot be written.
    """
    part = _part_of(path)
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield part
            # Within one folder, so that it is a rename and atomic.
            part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def check_writable(place: Place) -> None:
    """Refuses a local place that cannot be written, before the work for it begins.

    Raises:
        UserError: saying why.
    """
    if is_remote(place):
        return
    made = absent_folders(place.parent)
    part = _part_of(place)
    try:
        # Tried, not asked: root may write anywhere, says the system, also where
        # nothing can be written.
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            part.touch()
            part.unlink()
    finally:
        remove_empty(made)


def check_new_directory(directory: Place) -> None:
    """Refuses a directory that `new_directory` would not make.

    Raises:
        UserError: if the directory is remote, cannot be written, or has something in
            it.
    """
    if is_remote(directory):
        raise UserError(
            f"{directory} is remote; write to a local directory, then copy it there: "
            "gcloud storage cp --recursive"
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(
            f"{directory} exists already and is not empty; give another directory, or "
            "remove it"
        )
    check_writable(directory)


@contextlib.contextmanager
def new_directory(directory: Place) -> Iterator[pathlib.Path]:
    """Yields a directory to fill, which gets its name if the block ends well.

    Otherwise the directory is removed, with the parents that were made for it.

    Raises:
        UserError: if the directory is remote, cannot be written, or has something in
            it.
    """
    check_new_directory(directory)
    directory = directory.absolute()
    # To be removed again if nothing comes of it.
    made = absent_folders(directory.parent)
    part = _part_of(directory)
    try:
        with writing(directory):
            part.mkdir(parents=True)
            yield part
            part.replace(directory)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        remove_empty(made)
        raise


def absent_folders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists a folder and those above it that do not exist, the innermost first."""
    return [path for path in (folder, *folder.parents) if not path.exists()]


def remove_empty(folders: Iterable[pathlib.Path]) -> None:
    """Removes the folders that nobody wrote into."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def write_bytes(place: Place, data: bytes) -> None:
    """Writes a file, whole or not at all; an object of a store appears whole.

    Raises:
        StoreError: if a remote file cannot be written.
        UserError: if a local one cannot.
    """
    if is_remote(place):  # no mkdir: a store has no directories, and gcsfs would make
        with reaching(place):  # a bucket of that name
            place.write_bytes(data)
        return
    with new_file(place) as part:
        part.write_bytes(data)


def read_bytes(place: Place) -> bytes:
    """Reads a file.

    Raises:
        StoreError: if a remote file cannot be read.
        OSError: if a local file cannot be read, or a file of either does not exist.
    """
    with reaching(place):
        try:
            return place.read_bytes()
        except FileNotFoundError as error:
            missing = error  # an answer of the store, and no failure
    raise missing


def write_json(path: Place, value: Any) -> None:
    """Writes indented JSON, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Place) -> Any:
    """Reads the value of a JSON file."""
    return json.loads(read_bytes(path))


@contextlib.contextmanager
def local_file(place: Place) -> Iterator[pathlib.Path]:
    """Yields the file; of a remote one a copy, which the end of the block removes."""
    if not is_remote(place):
        yield place
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder, place.name)
        with reaching(place), place.open("rb") as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 24)
        yield copy


def file_sha256(path: pathlib.Path) -> str:
    """Computes the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_sha256(value: Any) -> str:
    """Computes the SHA-256 of a value's JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Returns the leaves of nested objects by their dotted key."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat = {}
    for name, part in value.items():
        flat |= flatten(part, f"{prefix}.{name}" if prefix else name)
    return flat


def text_chunks(text: Mapping[str, str]) -> PngImagePlugin.PngInfo:
    """Makes chunks of text for a PNG file, by keyword."""
    chunks = PngImagePlugin.PngInfo()
    for key, value in text.items():
        chunks.add_text(key, value)
    return chunks


def save_png(
    path: Place, image: np.ndarray, text: Mapping[str, str] | None = None
) -> None:
    """Writes an uint8 image [h, w, 3], whole or not at all.

    Args:
        text: chunks of text, by keyword.
    """
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="png", pnginfo=text_chunks(text or {}))
    write_bytes(path, file.getvalue())
