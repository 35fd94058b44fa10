"""The parameters that training starts from: of a task, and of the text tower."""

import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from itertools import islice

import jax
from ml_collections import ConfigDict

from flowtok_jax.array_types import Key, Params
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.models.build import Nets, find_provider
from flowtok_jax.runtime.files import Place
from flowtok_jax.tasks import abstract_group, init_group, pick_group
from flowtok_jax.tasks.base import Task
from flowtok_jax.weights import workdir
from flowtok_jax.weights.place import Weights, find_holder, open_starts
from flowtok_jax.weights.rows import ROWS, read_moved


def inherit_vocabulary(
    config: ConfigDict, start: Callable[[], Weights | None]
) -> Vocabulary | None:
    """Reads the vocabulary of the weights that training starts from, if they have one.

    Args:
        start: opens these weights.
    """
    weights = start()
    if weights is None or not weights.has_vocabulary:
        return None
    return weights.vocabulary(config.latent.tokens)


def find_starts(
    config: ConfigDict, task: Task, opener: Callable[[str], Weights | None]
) -> dict[str, Weights]:
    """Finds the groups that a task's first parameters are made of, and where they are:
    its own group, or else those that it can begin with.

    In sizes of its own a run takes them from the weights at `init_from` alone, unless
    it has to go on: what these started from may be of any size.

    Args:
        opener: opens weights by their name.

    Returns:
        Groups with their places; none to start from nothing.
    """
    if not config.init_trained:
        return {}
    must_go_on = task.goes_on(config) or task.lora is not None
    far = None if config.init_config or must_go_on else 1

    def find(group: str) -> Weights | None:
        starts = open_starts(config.init_from, opener, ends_at_missing=True)
        return find_holder(group, islice(starts, far))

    if (own := find(task.group)) is not None:
        return {task.group: own}
    found = {group: find(group) for group in task.begins_from}
    return {group: place for group, place in found.items() if place is not None}


def load_start(
    config: ConfigDict,
    task: Task,
    nets: Nets,
    opener: Callable[[str], Weights | None],
    frozen: Params,
    vocabulary: Vocabulary | None = None,
) -> Params | None:
    """Reads what training of a task starts from; None to start from nothing.

    Args:
        opener: opens weights by their name.
        frozen: parameters by role, of which a student's first ones are copies.
        vocabulary: that of the run where it is not that of the weights.
    """
    name = task.group
    found = find_starts(config, task, opener)
    read = {g: _read(config, g, nets, w, vocabulary) for g, w in found.items()}
    if name in found:
        logging.info("%s starts from %s", name, found[name].place)
        return read[name]
    # A student always has its teacher to copy; others begin so where they can.
    if task.init is not None and (found or not task.begins_from):
        key = jax.random.key(config.train.seed)
        begun = jax.jit(functools.partial(task.init, nets))({**frozen, **read}, key)
        if begun is not None:
            logging.info("%s starts as a copy of %s", name, _name_origin(found))
            return begun
    if config.init_from and config.init_trained:
        where = opener(config.init_from).place
        logging.info("%s starts afresh: %s does not have it", name, where)
    elif config.init_from:
        logging.info("%s starts from nothing (init_trained=False)", name)
    return None


def _name_origin(found: Mapping[str, Weights]) -> str:
    """Names groups that parameters are copied from, by their places."""
    groups: dict[str, list[str]] = {}
    for group, weights in found.items():
        groups.setdefault(str(weights.place), []).append(group)
    named = (f"{' and '.join(names)} in {place}" for place, names in groups.items())
    return " and ".join(named) or "its teacher"


def _read(
    config: ConfigDict,
    group: str,
    nets: Nets,
    start: Weights,
    vocabulary: Vocabulary | None,
) -> Params:
    """Reads a group to train further, or its part of another one."""
    # Files are read whole, as their shapes are checked whole.
    provider = find_provider(group, start.groups)
    wanted = abstract_group(nets, provider)
    if vocabulary is not None and provider in ROWS:
        logging.info("%s gets the run's vocabulary", provider)
        key = jax.random.key(config.train.seed)
        init = jax.jit(functools.partial(init_group, nets, provider, key))
        found = read_moved(start, provider, wanted, nets, vocabulary, init)
    else:
        found = start.read(provider, wanted, nets, is_start=True)
    return pick_group({provider: found}, group, nets)


def store_random_clip(
    config: ConfigDict,
    folder: Place,
    starts: Iterable[Weights],
    init: Callable[[Key], Params],
) -> None:
    """Stores the never-trained text tower of a run whose config asks for one.

    A tower that the weights to start from have goes before, as a tower that the run has
    already: weights trained on its features would not know another.

    Args:
        starts: the weights to start from, and what these started from.
        init: draws the tower's group of parameters.
    """
    if config.text.weights != "random" or workdir.steps_of(folder, "clip"):
        return
    if find_holder("clip", starts) is None:
        drawn = jax.jit(init)(jax.random.key(config.text.seed))
        workdir.store_group(folder, "clip", drawn)
