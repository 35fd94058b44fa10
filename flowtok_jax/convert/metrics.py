"""Weights of the networks that metrics judge with, to a directory of our own."""

import argparse
import logging
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from flowtok_jax.array_types import Params
from flowtok_jax.convert import files
from flowtok_jax.convert.critics import convert_critic, prepare, read_clip_sizes
from flowtok_jax.eval.nets import METRICS, make_module, shapes_of
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import file_sha256, new_directory, write_json
from flowtok_jax.weights.safetensors import write_safetensors

LPIPS_FILES = "VGG16 and LPIPS may be two files: --lpips=vgg16-397923af.pth,vgg.pth"


class Source(NamedTuple):
    """Files of a network, their arrays, and the sizes that these tell."""

    paths: list[pathlib.Path]
    state: Mapping[str, np.ndarray]
    sizes: dict[str, Any]


def convert_metrics(flags: argparse.Namespace) -> None:
    """Writes the networks that the flags name into --out, whole or not at all.

    Raises:
        UserError: naming the file, and what is missing, not used or of a wrong shape.
    """
    if flags.heads or flags.dtype != "float32":
        raise UserError(
            "--heads and --dtype are for the model's own weights; CLIP's config.json "
            "says its heads, and metrics compute in float32"
        )
    sources, vocabulary = {}, None
    if flags.inception:
        sources["inception"] = _read_files("inception", flags.inception)
    if flags.lpips:
        sources["lpips"] = _read_files("lpips", flags.lpips)
    if flags.clip_score:
        place = files.find_clip(flags.clip_score, flags.local_files_only)
        sources["clip"] = _read_clip(place)
        text = sources["clip"].sizes["text"]
        vocabulary = files.read_clip_vocabulary(
            place, text["context"], text["vocab_size"]
        )
    entries = {}
    with new_directory(pathlib.Path(flags.out)) as part:
        for name, source in sources.items():
            leaves = flatten_dict(_convert(name, source), sep="/")
            path = part / f"{name}.safetensors"
            write_safetensors(path, leaves)
            entries[name] = {
                "sizes": source.sizes,
                "sources": {file.name: _digest(file) for file in source.paths},
                "sha256": file_sha256(path),
            }
        if vocabulary is not None:
            vocabulary.save(part)
        write_json(part / METRICS, entries)


def _digest(path: pathlib.Path) -> str:
    """SHA-256 of a file; warns where its name says another, as PyTorch's do."""
    digest, named = file_sha256(path), re.search(r"-([0-9a-f]{8,})\.\w+$", path.name)
    if named and not digest.startswith(named[1]):
        logging.warning(
            "%s has sha256 %s..., its name says %s...: it may be damaged or changed",
            path,
            digest[:8],
            named[1],
        )
    return digest


def _read_files(name: str, given: str) -> Source:
    """The arrays of one or several files, joined by commas, together."""
    paths, state = [pathlib.Path(p) for p in given.split(",")], {}
    for path in paths:
        read = files.read_state(path)
        try:
            found = prepare(name, read)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        if twice := sorted(found.keys() & state):
            raise UserError(f"{path} has {twice[0]}, which a file before it has too")
        state |= found
    return Source(paths, state, {})


def _read_clip(directory: pathlib.Path) -> Source:
    state, heads = files.read_clip(directory, ("text", "vision"))
    path = files.find_clip_weights(directory)
    state = prepare("clip", state)
    shapes = {name: np.shape(array) for name, array in state.items()}
    try:
        sizes = read_clip_sizes(shapes, heads)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Source([path], state, sizes)


def _convert(name: str, source: Source) -> Params:
    shapes = shapes_of(name, make_module(name, source.sizes))
    try:
        return convert_critic(name, source.state, shapes)
    except UserError as error:
        named = ", ".join(map(str, source.paths))
        hint = f"; {LPIPS_FILES}" if name == "lpips" and len(source.paths) == 1 else ""
        raise UserError(f"{named}: {error}{hint}") from error
