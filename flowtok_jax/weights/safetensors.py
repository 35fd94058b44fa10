"""Named arrays in safetensors files, and the check of their names and shapes."""

import contextlib
import json
import pathlib
import types
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from flax.traverse_util import flatten_dict

from flowtok_jax.array_types import Params
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place

Shape = tuple[int, ...]
# Names of the format's types; numpy has no bfloat16 of its own.
DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def file_of(group: str) -> str:
    """Returns the name of a group's file in a directory."""
    return f"{group}.safetensors"


def check_file(path: Place) -> None:
    """Refuses a path that holds no weights at all, whatever its name.

    Raises:
        UserError: for a path without a file, an empty file, or what a browser or git
            leaves in place of one.
    """
    if not path.is_file():
        what = "is a directory" if path.is_dir() else "does not exist"
        raise UserError(f"{path} {what}; expected a file of weights")
    with path.open("rb") as file:
        head = file.read(256).lstrip().lower()
    if not head:
        raise UserError(f"{path} is empty; download it again")
    if head.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise UserError(
            f"{path} is a web page, not weights: the page that shows the file was "
            "saved; download the file itself"
        )
    if head.startswith(b"version https://git-lfs"):
        raise UserError(
            f"{path} is a git-lfs pointer, not weights; run `git lfs pull` there"
        )


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Any]:
    """Opens a file by the library, which checks the whole header and the file's size.

    Raises:
        UserError: where the file is damaged or of another format.
    """
    try:
        file = safetensors.safe_open(path, framework="numpy")
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path} is not a whole safetensors file ({error}); download it again"
        ) from error
    with file as opened:
        yield opened


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Maps the arrays of a file into memory; what is not used is not read.

    Raises:
        UserError: where the file is damaged or of another format.
    """
    check_file(path)
    # The library would copy every array, and numpy does not know bfloat16.
    with _opened(path), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    data = np.memmap(path, np.uint8, "r")[8 + length :]
    arrays = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise UserError(
                f"{path}: {name} is of type {entry['dtype']}; expected one of "
                f"{', '.join(DTYPES)}"
            )
        begin, end = entry["data_offsets"]
        array = data[begin:end].view(DTYPES[entry["dtype"]])
        arrays[name] = array.reshape(entry["shape"])
    return arrays


def read_copies(
    path: pathlib.Path, shapes: Mapping[str, Shape], what: str
) -> dict[str, np.ndarray]:
    """Reads float32 copies of a file's arrays, which outlast the file.

    Args:
        what: as of `check_shapes`.

    Raises:
        UserError: where the file is damaged, or its arrays are not those of `shapes`.
    """
    arrays = read_safetensors(path)
    check_shapes(what, {name: x.shape for name, x in arrays.items()}, shapes)
    return {name: np.array(x, np.float32) for name, x in arrays.items()}


def read_metadata(path: pathlib.Path) -> dict[str, str]:
    """Reads the texts that a file has about its arrays.

    Raises:
        UserError: where the file is damaged or of another format.
    """
    with _opened(path) as file:
        return file.metadata() or {}


def stored_arrays(group: str, params: Params, dtype: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a tree by their path, in the type of a file.

    Raises:
        UserError: as of `as_stored`.
    """
    leaves = flatten_dict(params, sep="/")
    return {
        name: as_stored(f"{group}: {name}", np.asarray(leaf), dtype)
        for name, leaf in leaves.items()
    }


def as_stored(name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    """Returns parameters in the type of a file.

    float16 rounds by at most 2**-11 of a value, and by 2**-25 below 2**-14.

    Raises:
        UserError: where float16 has no such number, which would become infinite.
    """
    with np.errstate(over="ignore"):
        stored = array.astype(dtype)
    if (lost := np.isfinite(array) & ~np.isfinite(stored)).any():
        raise UserError(
            f"{name} has {array[lost][0]:g}; float16 goes up to "
            f"{np.finfo(np.float16).max:g}: save as float32"
        )
    return stored


def write_safetensors(
    path: pathlib.Path,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] = types.MappingProxyType({}),
) -> None:
    """Writes a file of arrays, one after the other.

    The library's own writer would hold contiguous copies of all arrays at once.

    Args:
        metadata: texts about the arrays.
    """
    names = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
    header = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, array in arrays.items():
        begin = end
        end = begin + array.nbytes
        entry = {"dtype": names[array.dtype], "shape": array.shape}
        header[name] = entry | {"data_offsets": (begin, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the arrays are aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            np.ascontiguousarray(array).tofile(file)


def shapes_of(params: Params) -> dict[str, Shape]:
    """Returns the shapes of a tree's arrays by their path."""
    leaves = flatten_dict(params, sep="/")
    return {name: tuple(leaf.shape) for name, leaf in leaves.items()}


def check_tree(what: str, got: Params, wanted: Params) -> None:
    """Compares paths and shapes of two trees of arrays, as `check_shapes` does.

    Raises:
        UserError: where they differ.
    """
    check_shapes(what, shapes_of(got), shapes_of(wanted))


def check_shapes(
    what: str,
    got: Mapping[str, Shape],
    wanted: Mapping[str, Shape],
    note: str = "",
) -> None:
    """Compares names and shapes, and raises one error that lists all that differs.

    Args:
        what: the start of the error's line, such as "FILE does not fit the config".
        note: the end of the error's line.

    Raises:
        UserError: where names or shapes differ.
    """
    shared = [name for name in got if name in wanted]
    faults = {
        "not used": [name for name in got if name not in wanted],
        "missing": [name for name in wanted if name not in got],
        "wrong shape": [
            f"{name} is {got[name]}, expected {wanted[name]}"
            for name in shared
            if got[name] != wanted[name]
        ],
    }
    parts = [_list(kind, names) for kind, names in faults.items() if names]
    if parts:
        parts += [note] if note else []
        raise UserError(f"{what}: {'; '.join(parts)}")


def _list(kind: str, names: list[str], shown: int = 12) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{kind} ({len(names)}): {', '.join(sorted(names)[:shown])}{more}"
