"""Sizes of networks, as trained weights have them and as a config has them."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from flowtok_jax.flow.average_velocity import teacher_options
from flowtok_jax.flow.samplers import AVERAGE
from flowtok_jax.models.build import STANDS_FOR, Nets, make_nets
from flowtok_jax.runtime.config import for_stage
from flowtok_jax.runtime.files import flatten
from flowtok_jax.weights.place import Weights, find_value, of_this_version

# The keys that the parameters of a network depend on: sections, and single keys of the
# sections of others.
SIZES = {
    "clip": ("clip", "latent.tokens"),
    "tokenizer": ("tokenizer", "latent", "clip.width"),
    "projector": ("projector", "latent", "clip.width"),
    "align_head": ("align_head", "latent", "clip.width"),
    "dit": ("dit", "latent"),
    "student": ("dit", "student", "latent"),
    "shared_dit": ("dit", "shared_dit", "latent"),
    "text_decoder": ("text_decoder", "latent", "clip.width", "clip.vocab_size"),
}
# Keys of these sections that fit any weights: training may change them.
LOOSE = (
    "clip.embedding_std",
    "tokenizer.image_size",
    "tokenizer.latent_scale",
    "tokenizer.token_std",
    "tokenizer.kernel_std",
    "projector.dropout",
    "text_decoder.dropout",
)

# Sections of a config that belong to weights, beside the losses.
OF_WEIGHTS = ("latent", *Nets._fields, "text", "sample", "caption")


def adopt_sizes(
    config: ConfigDict,
    weights: Weights,
    networks: Iterable[str],
    overrides: Mapping[str, Any],
) -> None:
    """Puts the sizes of some networks, as weights have them, into a config.

    Args:
        networks: their names.
        overrides: keys given on the command line, which win.

    Raises:
        UserError: where the weights have no config, or one of another version.
    """
    stored = weights.config
    with of_this_version(weights):
        for key in {key for name in networks for key in SIZES[name]}:
            *path, last = key.split(".")
            section = find_value(config, ".".join(path)) if path else config
            if (size := find_value(stored, key)) is not None:
                section[last] = size
        config.update_from_flattened_dict(overrides)
        make_nets(config)


def find_differing(
    config: ConfigDict, weights: Weights, group: str, networks: Iterable[str]
) -> dict[str, tuple[Any, Any]]:
    """Finds the sizes of a group that weights and a config do not share.

    Args:
        networks: names of the group's networks.

    Returns:
        The values there and here, by their key.
    """
    stored = weights.config
    if group in stored.get("per_stage", {}):
        stored = for_stage(stored, group)
    there = flatten(stored.to_dict())
    here = flatten(config.to_dict())
    wanted = tuple({key for name in networks for key in SIZES[name]})
    differing = {}
    for key, value in here.items():
        is_size = key in wanted or key.startswith(tuple(f"{w}." for w in wanted))
        # Configs of versions that lacked the key say nothing.
        if is_size and key not in LOOSE and there.get(key, value) != value:
            differing[key] = (there[key], value)
    return differing


def adopt(
    config: ConfigDict,
    weights: Weights,
    overrides: Mapping[str, Any],
    *,
    trains: bool = False,
) -> None:
    """Puts what is stored with weights into a config: sizes of networks, losses, and
    options of sampling.

    Args:
        overrides: keys given on the command line, which win.
        trains: whether the config is for training, so that distilled flows which the
            weights sample with would not be those of what it trains.

    Raises:
        UserError: where the weights have no config, or one of another version.
    """
    stored = weights.config
    stage = config.stages[0]
    with of_this_version(weights):
        if "per_stage" in stored and stage in stored.per_stage:
            stored = for_stage(stored, stage)
        for section in OF_WEIGHTS:
            if section in stored and section in Nets._fields:
                config[section] = stored[section]  # every field of the network is there
            elif section in stored:
                config[section].update(stored[section])
        losses = stored.get("loss", ConfigDict())
        own = set(losses)
        if trains:
            own = set(filter(weights.holds, own)).difference(config.stages)
        _adopt_losses(config, losses, own)
        if trains:
            _sample_without_students(config)
        config.update(config.init_changes)
        config.update_from_flattened_dict(overrides)
        make_nets(config)


def _adopt_losses(config: ConfigDict, stored: ConfigDict, own: Collection[str]) -> None:
    """Puts losses into a config.

    Args:
        own: stages whose losses are as weights were trained by. In others a key that
            follows another one, as loss.both.kl does loss.t2i.kl, goes on to follow it,
            unless the stored one has a value of its own.
    """
    # Those first that others follow.
    for stage in sorted(stored, key=lambda stage: stage not in STANDS_FOR):
        section = config.loss[stage]
        for key, value in stored[stage].items():
            if stage in own or section.get(key) != value:
                section.update({key: value})


def _sample_without_students(config: ConfigDict) -> None:
    losses = config.loss.to_dict()
    for section, student in (("sample", "t2i_distilled"), ("caption", "i2t_distilled")):
        if config[section].solver == AVERAGE:
            config[section].update(teacher_options(losses, student))
