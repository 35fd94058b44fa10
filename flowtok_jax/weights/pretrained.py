"""Trained weights to hand on: a directory, or a hub repository, that loads by itself.

config.json        sizes of all the networks, sampling options, the groups it holds
vocabulary.json    captions to ids
GROUP.safetensors  float32 parameters of a group of models/build.py, by their path
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from flowtok_jax.array_types import Params
from flowtok_jax.data.vocabulary import VOCABULARY, Vocabulary
from flowtok_jax.models import build
from flowtok_jax.models.build import Nets
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import (
    Place,
    local_file,
    new_directory,
    to_place,
    write_json,
)
from flowtok_jax.weights import workdir
from flowtok_jax.weights.safetensors import (
    check_file,
    check_shapes,
    read_safetensors,
    write_safetensors,
)
from flowtok_jax.weights.workdir import CONFIG, config_from_json

FILES = (CONFIG, VOCABULARY, "*.safetensors")

# Fields of modules that `make_nets` fills from other sections of a config.
SHARED = ("tokens", "channels", "context", "dtype", "remat", "attention")
_SHARED = {"text_decoder": (*SHARED, "vocab_size", "width")}

# What no shape tells: the same arrays mean another function under another value.
UNSEEN = {
    "clip": ("clip.heads",),
    "tokenizer": (
        "tokenizer.encoder.heads",
        "tokenizer.decoder.heads",
        "tokenizer.image_size",
    ),
    "projector": ("projector.heads",),
    "text_decoder": ("text_decoder.heads",),
    "dit": ("dit.heads", "tokenizer.latent_scale"),
}

# Sections of a config that belong to weights, as a run or `save` stores them.
NETS = ("clip", "tokenizer", "projector", "align_head", "dit", "text_decoder")
OF_WEIGHTS = ("latent", *NETS, "text", "loss", "sample", "caption")


def describe(nets: Nets) -> dict[str, Any]:
    """The config sections from which `make_nets` makes these networks."""
    sections: dict[str, Any] = {
        "latent": {"tokens": nets.dit.tokens, "channels": nets.dit.channels},
        "compute": {
            "dtype": jnp.dtype(nets.dit.dtype).name,
            "remat": nets.dit.remat,
            "attention": nets.dit.attention,
        },
    }
    for name, net in nets._asdict().items():
        left_out = ("parent", "name", *_SHARED.get(name, SHARED))
        fields = (f.name for f in dataclasses.fields(net) if f.name not in left_out)
        sections[name] = {field: _plain(getattr(net, field)) for field in fields}
    return sections


def make_config(
    nets: Nets, *, sample: Mapping, caption: Mapping, text_scale: float
) -> dict[str, Any]:
    """The sections that a trained model needs, as `FlowTok.from_config` reads them."""
    sampling = {"sample": dict(sample), "caption": dict(caption)}
    return describe(nets) | sampling | {"loss": {"i2t": {"text_scale": text_scale}}}


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def is_pretrained(directory: Place) -> bool:
    """Whether `save` wrote this directory, and not a run."""
    return bool(list(directory.glob("*.safetensors")))


def find(
    source: str | Place,
    *,
    local_files_only: bool = False,
    files: Iterable[str] = FILES,
) -> Place:
    """A directory as it is, or where the files of a hub repository were put.

    Args:
        local_files_only: take a hub repository from the cache, without the network.
        files: patterns of the files wanted from the hub.

    Raises:
        UserError: where there is neither.
    """
    path = to_place(source)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{source} is a file; wanted the directory it is in")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise UserError(
            f"{source} does not exist; wanted a directory, or a hub id OWNER/NAME"
        )
    import huggingface_hub  # slow to import, and needed only here

    try:
        found = huggingface_hub.snapshot_download(
            str(source), allow_patterns=list(files), local_files_only=local_files_only
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        where = "the hub's cache" if local_files_only else "the hub"
        raise UserError(
            f"{source} is no directory here and was not found in {where} ({reason})"
        ) from error
    return pathlib.Path(found)


def read_groups(directory: Place) -> list[str]:
    """The groups whose parameters the directory holds."""
    return list(read_config(directory).groups)


def read_config(directory: Place) -> ConfigDict:
    """The config that `save` stored."""
    path = directory / CONFIG
    try:
        config = config_from_json(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if "groups" not in config:
        raise UserError(
            f"{path} lists no groups; wanted a directory written by save_pretrained or "
            "by `python -m flowtok_jax.convert`"
        )
    return config


def make_nets(directory: Place) -> Nets:
    """The networks of the config that `save` stored."""
    try:
        return build.make_nets(read_config(directory))
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{directory / CONFIG} is not that of this version's networks: {error}"
        ) from error


def adopt(config: ConfigDict, place: Place, overrides: Mapping[str, Any]) -> None:
    """Puts what is stored with weights into a config: sizes of the networks, losses,
    options of sampling.

    Args:
        place: a directory of pretrained weights, or a run's.
        overrides: keys given on the command line, which win.

    Raises:
        UserError: where the place has no config, or one of another version.
    """
    stored, (stage, *_) = workdir.read_config(place), config.stages
    try:
        if "per_stage" in stored and stage in stored.per_stage:
            stored = workdir.for_stage(stored, stage)
        for section in OF_WEIGHTS:
            if section in stored and section in NETS:
                config[section] = stored[section]  # `describe` lists every field
            elif section in stored:
                config[section].update(stored[section])
        config.update_from_flattened_dict(overrides)
        build.make_nets(config)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{place / CONFIG} is not that of this version's networks: {error}"
        ) from error


def read_vocabulary(directory: Place, context: int) -> Vocabulary:
    """The vocabulary that `save` stored."""
    path = directory / VOCABULARY
    if not path.is_file():
        raise UserError(f"{path} is not there; FlowTok needs it to read captions")
    return Vocabulary.load(str(path), context)


def read_group(directory: Place, group: str, wanted: Params) -> Params:
    """The parameters of a group, in this machine's memory.

    Raises:
        UserError: where they are not there, are damaged or do not fit the networks.
    """
    path = directory / f"{group}.safetensors"
    check_file(path)
    wanted = flatten_dict(wanted, sep="/")
    with local_file(path) as file:
        arrays = read_safetensors(file)
        check_shapes(
            f"{path} does not fit the config",
            {name: array.shape for name, array in arrays.items()},
            {name: leaf.shape for name, leaf in wanted.items()},
        )
        # A copy: the file may go away under a mapped array.
        leaves = {name: np.array(x, np.float32) for name, x in arrays.items()}
    return unflatten_dict(leaves, sep="/")


def check_unseen(
    place: Place, nets: Nets, group: str, wanted: Params, *, is_start: bool = False
) -> None:
    """Refuses parameters made for other networks of the same shapes.

    Args:
        place: a directory with a config.json; without one there is nothing to compare.
        is_start: training goes on from them, at another image size or scale if it may.

    Raises:
        UserError: naming the first value of UNSEEN that differs.
    """
    if not (place / CONFIG).is_file():
        return
    there = flatten_dict(config_from_json((place / CONFIG).read_text()).to_dict())
    here = flatten_dict(describe(nets))
    for key in [key for net in wanted for key in UNSEEN.get(net, ())]:
        if is_start and not key.endswith(".heads"):
            continue
        path = tuple(key.split("."))
        if path in there and there[path] != here[path]:
            raise UserError(
                f"{group} in {place} was made with {key} = {there[path]}, this config "
                f"has {here[path]}; set --config.{key}={there[path]}, or start from "
                "other weights"
            )


def save(
    directory: Place,
    config: Mapping[str, Any],
    groups: Mapping[str, Callable[[], Params]],
    vocabulary: Vocabulary | None,
) -> None:
    """Writes a directory, whole or not at all.

    Args:
        config: as of `make_config`.
        groups: what makes a group's parameters, called one after the other, so that no
            two groups have to be in memory together.

    Raises:
        UserError: where there is something in the directory already.
    """
    with new_directory(directory) as part:
        write_json(part / CONFIG, {**config, "groups": sorted(groups)})
        if vocabulary is not None:
            vocabulary.save(part)
        for group, make in groups.items():
            leaves = flatten_dict(make(), sep="/")
            arrays = {name: np.asarray(leaf) for name, leaf in leaves.items()}
            write_safetensors(part / f"{group}.safetensors", arrays)
            del leaves, arrays  # before the next group is made
