"""Paths of this machine and of gs://BUCKET/PATH: whole files and folders, claims,
digests, JSON.

Remote paths go through epath, which reads them with gcsfs. Orbax, which writes the
checkpoints, knows no other store, so neither does this module.
"""

import contextlib
import hashlib
import json
import pathlib
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import fsspec
from etils import epath

from flowtok_jax.runtime.errors import StoreError, UserError
from flowtok_jax.runtime.paths import expand_path

Place = pathlib.Path | epath.Path
NAMED = 4  # values that a message about differing ones shows


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
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _part_of(path)
    try:
        yield part
        # Within one folder, so that it is a rename and atomic.
        part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def check_new_directory(directory: Place) -> None:
    """Refuses a directory that `new_directory` would not make.

    Raises:
        UserError: if the directory is remote, or has something in it.
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
    made = [parent for parent in directory.parents if not parent.exists()]
    part = _part_of(directory)
    try:
        part.mkdir(parents=True)
        yield part
        part.replace(directory)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # somebody else wrote there
                parent.rmdir()
        if isinstance(error, OSError):
            raise UserError(f"{directory} cannot be written: {error}") from error
        raise


def write_bytes(place: Place, data: bytes) -> None:
    """Writes a file, whole or not at all; an object of a store appears whole.

    Raises:
        StoreError: if a remote file cannot be written.
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


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "absent"


def check_claim(
    marker: Place,
    made_by: Mapping[str, Any],
    *,
    complaint: str = "was made otherwise",
    cure: str,
    is_free: Callable[[str], bool] = lambda key: False,
) -> bool:
    """Refuses a folder whose marker says that something else made it.

    Args:
        marker: JSON file in the folder; without one there is nothing to refuse.
        made_by: what the folder's content depends on.
        complaint: what to say of a folder that is refused.
        cure: what to do about it.
        is_free: says of a dotted key that its value may differ.

    Returns:
        Whether there is a marker.

    Raises:
        UserError: naming the values that differ.
    """
    if not marker.is_file():
        return False
    # Through JSON, which has lists for tuples and texts for keys.
    there = flatten(read_json(marker))
    here = flatten(json.loads(json.dumps(made_by)))
    differing = [
        f"{key} is {_shown(there, key)} there, {_shown(here, key)} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key) and not is_free(key)
    ]
    if differing:
        more = len(differing) - NAMED
        named = "; ".join(differing[:NAMED]) + (f" and {more} more" * (more > 0))
        raise UserError(f"{marker.parent} {complaint}: {named}; {cure}")
    return True


def claim(
    marker: Place,
    made_by: Mapping[str, Any],
    *,
    cure: str,
    must_be_new: bool = False,
) -> None:
    """Makes the marker's folder that of `made_by`; see `check_claim`.

    Args:
        must_be_new: refuse a folder that has no marker but something else.

    Raises:
        UserError: if the folder is something else's.
    """
    if check_claim(marker, made_by, cure=cure):
        return
    folder = marker.parent
    # An empty folder may be claimed.
    is_taken = must_be_new and folder.exists()
    if is_taken and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already and has no {marker.name}; {cure}")
    write_json(marker, made_by)
