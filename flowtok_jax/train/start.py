"""The parameters that training starts from: of a task, and of the text tower."""

import functools
import logging
from collections.abc import Callable, Iterable
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
from flowtok_jax.weights.place import Weights, find_holder
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


def find_start(
    config: ConfigDict, task: Task, starts: Iterable[Weights]
) -> Weights | None:
    """Returns the weights that training of a task starts from: the first that have what
    it begins with, or just the first; None where there are none.

    In sizes of its own a run looks no further than the first: what that started from
    may be of any.

    Args:
        starts: the weights at `init_from`, and what these started from.
    """
    first = None
    for weights in starts if config.init_config else islice(starts, 1):
        first = first or weights
        if task.starts_of(weights.groups):
            return weights
    return first


def load_start(
    config: ConfigDict,
    task: Task,
    nets: Nets,
    start: Weights | None,
    frozen: Params,
    vocabulary: Vocabulary | None = None,
) -> Params | None:
    """Reads what training of a task starts from; None to start from nothing.

    Args:
        start: the weights to start from, if any.
        frozen: parameters by role, of which a student's first ones are copies.
        vocabulary: that of the run where it is not that of the weights.
    """
    name = task.group
    is_read = start is not None and config.init_trained
    groups = task.starts_of(start.groups) if is_read else []
    if name in groups:
        logging.info("%s starts from %s", name, start.place)
        return _read(config, name, nets, start, vocabulary)
    # A student always has its teacher to copy; others begin so where they can.
    if task.init is not None and (groups or not task.begins_from):
        of = f"{' and '.join(groups)} in {start.place}" if groups else "its teacher"
        logging.info("%s starts as a copy of %s", name, of)
        read = {g: _read(config, g, nets, start, vocabulary) for g in groups}
        key = jax.random.key(config.train.seed)
        return jax.jit(functools.partial(task.init, nets))({**frozen, **read}, key)
    if is_read:
        logging.info("%s starts afresh: %s does not have it", name, start.place)
    elif start is not None:
        logging.info("%s starts from nothing (init_trained=False)", name)
    return None


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
