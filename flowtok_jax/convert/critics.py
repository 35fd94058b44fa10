"""Conversion of the networks that judge images: critics.

"inception", "lpips", "convnext" and "discriminator" have one size each; "clip" is CLIP
with both towers, by its Hugging Face names. Every name of a state dict must be used, or
dropped for a stated reason. `convert_metrics` writes those that metrics need into a
directory.
"""

import argparse
import logging
import math
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flowtok_jax.array_types import Params
from flowtok_jax.convert import rules, state_dicts
from flowtok_jax.convert.layout import (
    check_rules,
    count_blocks,
    find_dropped,
    log_dropped,
    source_shapes,
    to_ours,
)
from flowtok_jax.convert.state_dicts import naming
from flowtok_jax.models import critics
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import file_sha256, new_directory, to_place, write_json
from flowtok_jax.runtime.paths import expand_path
from flowtok_jax.weights.nets import METRICS, make_module, net_shapes
from flowtok_jax.weights.safetensors import Shape, check_shapes, write_safetensors

# Fixed arrays that files may hold and we compute: compared if present, then dropped.
_BLUR = np.outer(critics.BLUR, critics.BLUR).astype(np.float32)
_IMAGENET = {"shift": critics.SHIFT, "scale": critics.SCALE}
TABLES: dict[str, dict[str, np.ndarray]] = {
    "lpips": {
        f"scaling_layer.{name}": np.array(values, np.float32)[None, :, None, None]
        for name, values in _IMAGENET.items()
    },
    "discriminator": {f"blocks.{i}.1.kernel": _BLUR[None, None] for i in (0, 1, 2)},
}

# Flags of the converter that go to a directory of networks that judge.
METRIC_FLAGS = ("inception", "lpips", "convnext", "clip_score")
LPIPS_FILES = "VGG16 and LPIPS may be two files: --lpips=vgg16-397923af.pth,vgg.pth"

# Field of CLIP's towers -> (source name, axis) whose length it is.
_EMBEDDINGS = "{}_model.embeddings.{}_embedding.weight"
CLIP_AXES = {
    "text.width": (_EMBEDDINGS.format("text", "token"), 1),
    "text.vocab_size": (_EMBEDDINGS.format("text", "token"), 0),
    "text.context": (_EMBEDDINGS.format("text", "position"), 0),
    "vision.width": (_EMBEDDINGS.format("vision", "patch"), 0),
    "vision.patch": (_EMBEDDINGS.format("vision", "patch"), 2),
    "vision.places": (_EMBEDDINGS.format("vision", "position"), 0),
    "features": ("text_projection.weight", 0),
}


def convert_critic(
    name: str, state: Mapping[str, Any], targets: Mapping[str, Shape]
) -> Params:
    """Converts a critic's state dict to float32 parameters.

    Args:
        state: what `prepare_critic` returned.
        targets: shapes of our parameters, by path.

    Raises:
        UserError: naming arrays that are not used, missing or of a wrong shape.
    """
    table = rules.CRITICS[name]
    check_rules(name, table, targets)
    got = {key: np.shape(array) for key, array in state.items()}
    check_shapes(f"this state dict is no {name}", got, source_shapes(table, targets))
    return to_ours(table, targets, state)


def prepare_critic(name: str, state: Mapping[str, Any]) -> dict[str, Any]:
    """Drops what conversion does not need, and renames torchvision's VGG16 layers.

    Dropped names are logged.

    Raises:
        UserError: if a fixed array has other values than ours.
    """
    dropped = find_dropped(rules.CRITICS_IGNORED[name], state)
    log_dropped(name, dropped)
    kept = {}
    tables = TABLES.get(name, {})
    for key, array in state.items():
        if key in tables:
            _check_table(key, array, tables[key])
        elif key not in dropped:
            kept[_rename(name, key)] = array
    return kept


def _rename(name: str, key: str) -> str:
    """Renames torchvision's `features.N.*` to LPIPS's `net.sliceL.N.*`."""
    match = re.fullmatch(r"features\.(\d+)\.(\w+)", key) if name == "lpips" else None
    for layer, places in enumerate(rules.VGG_PLACES):
        if match and int(match[1]) in places:
            return f"net.slice{layer + 1}.{match[1]}.{match[2]}"
    return key


def _check_table(key: str, array: Any, ours: np.ndarray) -> None:
    array = np.asarray(array, np.float32)
    if array.shape != ours.shape or not np.allclose(array, ours, rtol=0, atol=1e-5):
        raise UserError(
            f"{key} of this state dict is {array.ravel()[:4].tolist()}, ours is "
            f"{ours.ravel()[:4].tolist()}: it is another model's"
        )


def read_clip_sizes(
    shapes: Mapping[str, Shape], heads: Mapping[str, int]
) -> dict[str, Any]:
    """Reads the arguments of `make_clip_scorer` off the shapes of a state dict.

    Args:
        heads: tower ("text", "vision") -> heads, as far as CLIP's config.json says; the
            default is 64 channels a head, as in all published towers.

    Raises:
        UserError: if an array that tells a size is missing, or sizes do not go
            together.
    """
    flat: dict[str, int] = {}
    for key, (source, axis) in CLIP_AXES.items():
        if len(shapes.get(source, ())) <= axis:
            raise UserError(
                f"no CLIP with both towers: {source} is {shapes.get(source, 'missing')}"
            )
        flat[key] = shapes[source][axis]
    # One place is the class token's.
    grid = math.isqrt(max(flat.pop("vision.places") - 1, 1))
    flat["vision.image_size"] = grid * flat["vision.patch"]
    for tower in ("text", "vision"):
        template = f"{tower}_model.encoder.layers.{{}}."
        flat[f"{tower}.depth"] = count_blocks(template, shapes)
        width = flat[f"{tower}.width"]
        number = heads.get(tower) or width // rules.CLIP_HEAD_DIM
        if not number or width % number:
            raise UserError(
                f"the {tower} tower is {width} wide and has {number} heads; expected "
                "heads that divide it, in its config.json"
            )
        flat[f"{tower}.heads"] = number
    return unflatten_dict(flat, sep=".")


class CriticSource(NamedTuple):
    """Files of a critic, their arrays, and the sizes that the arrays tell."""

    paths: list[pathlib.Path]
    state: Mapping[str, np.ndarray]
    sizes: dict[str, Any]


def convert_metrics(flags: argparse.Namespace) -> None:
    """Writes the critics that the flags name into --out, whole or not at all.

    Raises:
        UserError: naming the file, and arrays missing, not used or of a wrong shape.
    """
    if flags.heads or flags.dtype != "float32":
        raise UserError(
            "--heads and --dtype are for the model's own weights; CLIP's config.json "
            "says its heads, and metrics compute in float32"
        )
    sources = {}
    vocabulary = None
    if flags.inception:
        sources["inception"] = _read_files("inception", flags.inception)
    if flags.lpips:
        sources["lpips"] = _read_files("lpips", flags.lpips)
    if flags.convnext:
        sources["convnext"] = _read_files("convnext", flags.convnext)
    if flags.clip_score:
        place = state_dicts.find_clip(flags.clip_score, flags.local_files_only)
        sources["clip"] = _read_clip(place)
        text = sources["clip"].sizes["text"]
        vocabulary = state_dicts.read_clip_vocabulary(
            place, text["context"], text["vocab_size"]
        )
    # All files are open by now, so most mistakes show before the first is written.
    entries = {}
    with new_directory(to_place(flags.out)) as part:
        for name, source in sources.items():
            leaves = flatten_dict(_convert(name, source), sep="/")
            path = part / f"{name}.safetensors"
            write_safetensors(path, leaves)
            entries[name] = {
                "sizes": source.sizes,
                "sources": {file.name: _digest(file) for file in source.paths},
                # weights/nets.py refuses a file with another digest.
                "sha256": file_sha256(path),
            }
        if vocabulary is not None:
            vocabulary.save(part)
        write_json(part / METRICS, entries)


def _digest(path: pathlib.Path) -> str:
    """Computes the SHA-256 of a file; warns if its name states another."""
    digest = file_sha256(path)
    # Files of PyTorch's hub end in the first digits: vgg16-397923af.pth.
    named = re.search(r"-([0-9a-f]{8,})\.\w+$", path.name)
    if named and not digest.startswith(named[1]):
        logging.warning(
            "%s has sha256 %s..., its name says %s...: it may be damaged or changed",
            path,
            digest[:8],
            named[1],
        )
    return digest


def _read_files(name: str, given: str) -> CriticSource:
    """Reads the arrays of one or several files, given with commas between."""
    # A name may have a comma of its own.
    names = [given] if os.path.lexists(expand_path(given)) else given.split(",")
    paths = [pathlib.Path(expand_path(name)) for name in names]
    state = {}
    for path in paths:
        read = state_dicts.read_state(path)
        with naming(path):
            found = prepare_critic(name, read)
        if twice := sorted(found.keys() & state):
            raise UserError(f"{path} has {twice[0]}, which a file before it has too")
        state |= found
    return CriticSource(paths, state, {})


def _read_clip(directory: pathlib.Path) -> CriticSource:
    state, heads = state_dicts.read_clip(directory, ("text", "vision"))
    path = state_dicts.find_clip_weights(directory)
    state = prepare_critic("clip", state)
    shapes = {name: np.shape(array) for name, array in state.items()}
    with naming(path):
        sizes = read_clip_sizes(shapes, heads)
    return CriticSource([path], state, sizes)


def _convert(name: str, source: CriticSource) -> Params:
    shapes = net_shapes(name, make_module(name, source.sizes))
    try:
        return convert_critic(name, source.state, shapes)
    except UserError as error:
        named = ", ".join(map(str, source.paths))
        hint = f"; {LPIPS_FILES}" if name == "lpips" and len(source.paths) == 1 else ""
        raise UserError(f"{named}: {error}{hint}") from error
