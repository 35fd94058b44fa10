"""Trained weights to hand on: a directory that loads by itself.

config.json        sizes of all the networks, sampling options, the groups it holds
vocabulary.json    captions to ids
GROUP.safetensors  parameters of a group, by their path NETWORK/LAYER/...; as float32,
                   or as float16, which is half as large and read as float32; of groups
                   that the config lists as `derived` adapters (weights/derived.py)
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from flowtok_jax.array_types import Params
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.models.build import Nets
from flowtok_jax.runtime.config import OF_NETWORKS, add_new_keys, config_from_json
from flowtok_jax.runtime.errors import StoreError, UserError, reason_of
from flowtok_jax.runtime.files import (
    Place,
    local_file,
    new_directory,
    read_bytes,
    write_json,
)
from flowtok_jax.weights.derived import Derived
from flowtok_jax.weights.lora import read_lora
from flowtok_jax.weights.safetensors import (
    check_file,
    check_tree,
    file_of,
    read_copies,
    shapes_of,
    stored_arrays,
    write_safetensors,
)
from flowtok_jax.weights.workdir import CONFIG, VOCABULARY_SHA256

# Fields of networks that `make_nets` fills from other sections of a config.
SHARED = ("tokens", "channels", "context", "dtype", "remat", "attention", "layout")
DERIVED = "derived"  # key of a stored config
STORED = ("float32", "float16")  # types that files may have
_OF_DIT = ("width", "depth", "heads", "mlp_ratio")
_SHARED = {
    "text_decoder": (*SHARED, "vocab_size", "width"),
    "student": (*SHARED, *_OF_DIT),
    "shared_dit": (*SHARED, *_OF_DIT),
}


def describe_nets(nets: Nets) -> dict[str, Any]:
    """Returns the config sections from which `make_nets` makes these networks."""
    sections: dict[str, Any] = {
        "latent": {"tokens": nets.dit.tokens, "channels": nets.dit.channels},
        "compute": {
            "dtype": jnp.dtype(nets.dit.dtype).name,
            "remat": nets.dit.remat,
            "layout": nets.dit.layout,
            "attention": nets.dit.attention,
        },
    }
    for name, net in nets._asdict().items():
        left_out = ("parent", "name", *_SHARED.get(name, SHARED))
        fields = (f.name for f in dataclasses.fields(net) if f.name not in left_out)
        sections[name] = {field: _plain(getattr(net, field)) for field in fields}
    return sections


def make_stored_config(
    nets: Nets,
    *,
    sample: Mapping,
    caption: Mapping,
    text_scale: float,
    losses: Mapping[str, Mapping] | None = None,
) -> dict[str, Any]:
    """Returns the config of a trained model, as `FlowTok.from_config` reads it.

    Args:
        losses: sections of config.loss that the weights were trained by, so that they
            are trained further by the same ones.
    """
    kept = {name: dict(own) for name, own in (losses or {}).items()}
    kept["i2t"] = kept.get("i2t", {}) | {"text_scale": text_scale}
    sampling = {"sample": dict(sample), "caption": dict(caption)}
    return describe_nets(nets) | sampling | {"loss": kept}


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def read_stored_config(directory: Place) -> ConfigDict:
    """Reads the config that `save` stored.

    Raises:
        UserError: where it cannot be read, or is not of such a directory.
    """
    path = directory / CONFIG
    try:
        config = config_from_json(read_bytes(path).decode())
    except StoreError:  # a ValueError too, and no fault of the file
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)})") from error
    if "groups" not in config:
        raise UserError(
            f"{path} lists no groups; expected a directory written by save_pretrained "
            "or by `python -m flowtok_jax.convert`"
        )
    add_new_keys(config, *OF_NETWORKS)
    return config


def read_group(
    directory: Place, group: str, wanted: Mapping[str, Params], config: ConfigDict
) -> Params:
    """Reads the parameters of a group into this machine's memory.

    Args:
        wanted: shapes of the parameters, by network.
        config: of the directory.

    Raises:
        UserError: where the file does not exist, is damaged or does not fit.
    """
    path = directory / file_of(group)
    check_file(path)
    what = f"{path} does not fit the config"
    if over := config.get(DERIVED, {}).get(group):
        found = Derived(read_lora(path), over).read(directory)
        check_tree(what, found, wanted)
        return found
    with local_file(path) as file:
        arrays = read_copies(file, shapes_of(wanted), what)
    return unflatten_dict(arrays, sep="/")


def save(
    directory: Place,
    config: Mapping[str, Any],
    groups: Mapping[str, Callable[[], Params] | Derived],
    vocabulary: Vocabulary | None,
    dtype: str = "float32",
) -> None:
    """Writes a directory, whole or not at all.

    Args:
        config: what `make_stored_config` returns.
        groups: functions that make the parameters of a group, called one after the
            other, so that no two groups have to be in memory together; or what groups
            are derived from.
        dtype: of the files: "float32" or "float16".

    Raises:
        UserError: where the directory has something in it already, or float16 cannot
            hold a parameter.
    """
    if dtype not in STORED:
        raise UserError(f"dtype is {dtype!r}; expected one of {', '.join(STORED)}")
    derived = {name: g for name, g in groups.items() if isinstance(g, Derived)}
    with new_directory(directory) as part:
        stored = {**config, "groups": sorted(groups)}
        if derived:
            stored[DERIVED] = {name: group.over for name, group in derived.items()}
        if vocabulary is not None:
            vocabulary.save(part)
            stored[VOCABULARY_SHA256] = vocabulary.sha256()
        write_json(part / CONFIG, stored)
        for group, make in groups.items():
            if group not in derived:
                arrays = stored_arrays(group, make(), dtype)
                write_safetensors(part / file_of(group), arrays)
                del arrays  # before the next group is made
        for group in derived.values():  # after what they are over
            group.save(part, dtype)
