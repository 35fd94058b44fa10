"""Where files lie: a path of this machine, or gs://BUCKET/PATH on Google Cloud Storage.

Remote paths go through epath, which reads them with gcsfs. Orbax, which writes the
checkpoints, knows no other store, so neither does this.
"""

import contextlib
import json
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import fsspec
from etils import epath

from flowtok_jax.runtime.errors import StoreError, UserError

Place = pathlib.Path | epath.Path


def to_place(path: str | Place) -> Place:
    """A path as what reads and writes it; a remote one is tried out.

    Raises:
        UserError: where it is of another store, or the store cannot be reached.
    """
    text = str(path)
    if not re.match(r"\w{2,}:/", text):
        return pathlib.Path(text)
    if not re.match("gs://[^/]", text):
        raise UserError(f"{text} is no place; wanted a local path or gs://BUCKET/PATH")
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


def is_remote(place: Place) -> bool:
    """Whether it is on a store, not on this machine's disks."""
    return str(place).startswith("gs://")


def absolute(place: Place) -> Place:
    """The place from the root; a remote one always is."""
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


def write_bytes(place: Place, data: bytes) -> None:
    """Writes a file, whole or not at all.

    An object of a store appears whole; a local file is written under a passing name
    and moved to its own.

    Raises:
        StoreError: where a remote one cannot be written.
    """
    if is_remote(place):  # no mkdir: a store has no directories, and gcsfs would make
        with reaching(place):  # a bucket of that name
            place.write_bytes(data)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    part = place.with_name(place.name + ".part")
    try:
        part.write_bytes(data)
        part.replace(place)
    except OSError:
        part.unlink(missing_ok=True)  # of a full disk, which would stay full
        raise


def write_json(path: Place, value: Any) -> None:
    """Writes indented JSON, whole or not at all."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


def read_json(path: Place) -> Any:
    """The value of a JSON file."""
    return json.loads(path.read_text())


@contextlib.contextmanager
def local_file(place: Place) -> Iterator[pathlib.Path]:
    """The file; of a remote one a copy, there until the end of the block."""
    if not is_remote(place):
        yield place
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder, place.name)
        with reaching(place), place.open("rb") as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 24)
        yield copy


def _complaint(place: Place, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [""])[0][:300]
    return (
        f"{place} cannot be read or written ({type(error).__name__}: {reason}); check "
        "the bucket's name, and that `gcloud auth application-default login` or the "
        "machine's service account gives access to it"
    )
