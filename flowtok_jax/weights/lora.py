"""Adapters in files of their own, and on top of weights that are loaded.

DIR/GROUP.safetensors has the adapters of a group by their path, and in its metadata
what they are: the options of models/lora.py, and a digest of the weights that they were
trained over. A run writes WORKDIR/lora; either folder, or a file, is a place of them.
"""

import functools
import logging
import math
import numbers
import os
import pathlib
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import unflatten_dict

from flowtok_jax.array_types import Params
from flowtok_jax.models.lora import LoraOptions, abstract_adapters, merge_on_host
from flowtok_jax.runtime.digests import params_sha256
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import (
    Place,
    absolute,
    local_file,
    to_place,
    write_bytes,
)
from flowtok_jax.weights.safetensors import (
    check_file,
    check_tree,
    file_of,
    read_metadata,
    read_safetensors,
    stored_arrays,
    write_safetensors,
)

FOLDER = "lora"  # of a run's workdir
FORMAT = "flowtok_lora"
EXPECTED = (
    "expected the workdir of a run of --config=configs/finetune.py:lora that came to "
    "its end, or the folder `lora` in it"
)
# DIR, several of them, or DIR -> weight of its adapters.
Loras = str | Place | Iterable[str | Place] | Mapping[str | Place, Any]


class Lora(NamedTuple):
    """Adapters of one group, read from a file.

    Attributes:
        base_sha256: digest of the group that they were trained over.
        weight: factor of all that they add.
    """

    path: Place
    group: str
    options: LoraOptions
    adapters: Params
    base_sha256: str
    weight: float = 1.0

    def check(self, params: Params) -> None:
        """Refuses a group's parameters, or their shapes, that the adapters do not fit.

        Raises:
            UserError: naming the arrays.
        """
        what = f"{self.path} does not fit these weights"
        try:
            wanted = abstract_adapters(params, self.options)
        except UserError as error:
            raise UserError(f"{what}: {error}") from error
        check_tree(what, self.adapters, wanted)


def merge_loras(params: Params, loras: Iterable[Lora]) -> Params:
    """Adds adapters, each with its weight, to the parameters of their group.

    Raises:
        UserError: where they do not fit.
    """
    found = params
    digest = functools.cache(lambda: params_sha256(params))
    for lora in loras:
        lora.check(params)
        if digest() != lora.base_sha256:
            logging.info(
                "%s was trained over other weights of %s than these, which it fits",
                lora.path,
                lora.group,
            )
        scale = lora.weight * lora.options.scale
        found = merge_on_host(found, lora.adapters, scale)
    return found


def lora_file(workdir: Place, group: str) -> Place:
    """Returns the path of the file in which a run hands on adapters of a group."""
    return workdir / FOLDER / file_of(group)


def save_lora(
    path: Place,
    group: str,
    adapters: Params,
    options: LoraOptions,
    base: Params,
    dtype: str = "float32",
) -> None:
    """Writes the adapters of a group, whole or not at all.

    Args:
        base: the group's parameters that they were trained over.
        dtype: of the file, float32 or float16.

    Raises:
        UserError: where float16 cannot hold one.
    """
    metadata = {
        "format": FORMAT,
        "group": group,
        **{name: str(value) for name, value in options._asdict().items()},
        "base_sha256": params_sha256(base),
    }
    arrays = stored_arrays(group, adapters, dtype)
    with tempfile.TemporaryDirectory() as made:  # the path may be of a store
        file = pathlib.Path(made, path.name)
        write_safetensors(file, arrays, metadata)
        write_bytes(path, file.read_bytes())


def open_loras(loras: Loras) -> list[Lora]:
    """Reads the adapters of one or several places.

    Args:
        loras: a folder or file; or several, each with its weight, or with 1.

    Raises:
        UserError: where there are none, a file holds something else or is named twice,
            or a weight is no number.
    """
    found = {}
    for source, weight in _weighted(loras):
        if not isinstance(weight, numbers.Real) or not math.isfinite(weight):
            raise UserError(f"lora {source} has weight {weight!r}; expected 0.7, say")
        for path in _find_files(to_place(source)):
            # A copy elsewhere may be added to another one, with a weight of its own.
            if (name := absolute(path)) in found:
                raise UserError(f"lora {path} is given twice; give one weight")
            found[name] = read_lora(path)._replace(weight=float(weight))
    return list(found.values())


def _weighted(loras: Loras) -> list[tuple[str | Place, Any]]:
    if isinstance(loras, Mapping):
        return list(loras.items())
    is_one = isinstance(loras, str | os.PathLike)
    return [(place, 1.0) for place in ([loras] if is_one else loras)]


def _find_files(place: Place) -> list[Place]:
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise UserError(f"lora {place} does not exist; {EXPECTED}")
    folder = place / FOLDER if (place / FOLDER).is_dir() else place
    paths = sorted(p for p in folder.iterdir() if p.name.endswith(".safetensors"))
    if not paths:
        raise UserError(f"lora {place} has no adapters; {EXPECTED}")
    return paths


def read_lora(path: Place) -> Lora:
    """Reads a file of adapters, as float32.

    Raises:
        UserError: where it is damaged or holds something else.
    """
    check_file(path)
    with local_file(path) as file:
        arrays = {k: np.array(x, np.float32) for k, x in read_safetensors(file).items()}
        metadata = read_metadata(file)
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} holds no adapters; {EXPECTED}")
    try:
        options = LoraOptions(
            rank=int(metadata["rank"]),
            alpha=float(metadata["alpha"]),
            pattern=metadata["pattern"],
        )
        group = metadata["group"]
        digest = metadata["base_sha256"]
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path} does not say what its adapters are ({error}); {EXPECTED}"
        ) from error
    return Lora(path, group, options, unflatten_dict(arrays, sep="/"), digest)


def parse_loras(given: list[str]) -> dict[str, float]:
    """Reads values of --lora, DIR or DIR:WEIGHT.

    Raises:
        UserError: where one is given twice.
    """
    found = {}
    for text in given:
        place, _, weight = text.rpartition(":")
        try:
            pair = (place, float(weight)) if place else (text, 1.0)
        except ValueError:  # gs://BUCKET/DIR
            pair = text, 1.0
        if pair[0] in found:
            raise UserError(f"--lora={pair[0]} is given twice; give one weight")
        found[pair[0]] = pair[1]
    return found
