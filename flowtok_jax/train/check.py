"""Checks before a run: numbers, devices, data, weights; all faults are said at once."""

import functools
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any

import jax
from ml_collections import ConfigDict

from flowtok_jax.data.loader import open_source, training_side
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.models.build import (
    find_provider,
    has_group,
    make_nets,
)
from flowtok_jax.runtime.errors import UserError, raise_together
from flowtok_jax.runtime.files import Place
from flowtok_jax.runtime.mesh import make_mesh
from flowtok_jax.tasks import abstract_group, networks_of, task_of
from flowtok_jax.tasks.base import Task, preview_nets
from flowtok_jax.tasks.step import make_trainer
from flowtok_jax.train.start import find_starts
from flowtok_jax.weights.nets import check_metric_net
from flowtok_jax.weights.place import (
    Weights,
    find_holder,
    find_place,
    open_starts,
)
from flowtok_jax.weights.rows import ROWS
from flowtok_jax.weights.sizes import find_differing

SHOWN = 3  # sizes in a message
PRETOKENIZE = (
    "if its images are not encoded yet: `python -m flowtok_jax.main "
    "--mode=pretokenize --config=configs/finetune.py --checkpoint=WEIGHTS "
    "--config.data.train=folder:IMAGES --workdir=DIR`"
)


def check_run(
    stages: Mapping[str, ConfigDict],
    workdir: Place,
    opener: Callable[[str], Weights | None],
) -> None:
    """Refuses a run that lacks devices, data or weights, naming all that it lacks.

    Nothing is written, and no weights are read.

    Args:
        stages: the config of each stage, in order.
        opener: opens the weights at a stage's `init_from`, and those that these
            started from.

    Raises:
        UserError: with the command that gets each thing.
    """
    own = Weights(workdir) if workdir.is_dir() else None
    checks: dict[str, Callable[[], object]] = {}
    trained: list[str] = []  # groups of the stages before
    for stage, config in stages.items():
        task = task_of(config, stage)
        of = f" of {stage}" if len(stages) > 1 else ""
        checks[f"settings{of}"] = lambda c=config, t=task: check_stage(c, t)
        keys = ("train", "eval") if config.data.eval else ("train",)
        # Of a share both sides: one may have no record.
        keys += ("held_out",) if config.data.held_out else ()
        for key in keys:
            checks[f"data.{key}{of}"] = lambda c=config, t=task, k=key: check_data(
                c, t, k
            )
        needed = {g for g in task.frozen.values() if not has_group(g, trained)}
        if own is not None and own.steps.get(task.name, -1) >= config.train.num_steps:
            needed = set()  # a finished stage reads none
        if config.text.weights == "random":
            needed.discard("clip")
        if task.init is not None:  # adapters of a copy of a teacher
            needed.discard(task.group)
        if task.goes_on(config):
            needed.add(stage)
        for group in sorted(needed):
            checks[group] = lambda g=group, c=config: find_place(
                g, chain([own] if own else [], open_starts(c.init_from, opener))
            )
        for name in (*task.judges(config), *preview_nets(config, task)):
            checks[name] = lambda n=name, c=config: check_metric_net(n, c.eval.weights)
        trained.append(stage)
    raise_together(checks, "the run cannot start")


def check_fit(
    stages: Mapping[str, ConfigDict],
    workdir: Place,
    opener: Callable[[str], Weights | None],
    vocabulary: Vocabulary | None,
) -> None:
    """Refuses weights to start from that are of other sizes or words than the run.

    Args:
        stages, opener: as of `check_run`.
        vocabulary: that of the run where it is not that of the weights.

    Raises:
        UserError: naming what differs, and what to do.
    """
    own = Weights(workdir).steps if workdir.is_dir() else {}
    checks: dict[str, Callable[[], object]] = {}
    trained = set(own) - {"clip"}
    for stage, config in stages.items():
        task = task_of(config, stage)
        used = {g for g in task.frozen.values() if not has_group(g, trained)}
        trained.add(stage)
        if task.goes_on(config) and not config.init_trained:
            checks[f"settings of {stage}"] = lambda s=stage: _refuse_nothing(s)
        if own.get(task.name, -1) >= config.train.num_steps:
            continue
        starts = functools.partial(open_starts, config.init_from, opener)
        places = {group: find_holder(group, starts()) for group in sorted(used)}
        begun = find_starts(config, task, opener) if stage not in own else {}
        places |= begun
        if task.lora is not None and begun and task.group not in begun:
            checks[f"adapters of {stage}"] = lambda s=stage: _refuse_adapters(s)
        for group, weights in places.items():
            if weights is None:
                continue
            provider = find_provider(group, weights.groups)
            # What a stage begins with may be of another size, not of other heads.
            checks[provider] = functools.partial(
                _check_group,
                provider,
                config,
                stage,
                weights,
                opener(config.init_from),
                vocabulary,
                is_start=group in begun,
            )
    raise_together(checks, "the weights do not fit this config")


def _refuse_nothing(stage: str) -> None:
    raise UserError(
        f"stage {stage} goes on from trained weights, and init_trained is False; "
        "expected --config.init_trained=True"
    )


def _refuse_adapters(stage: str) -> None:
    # Its decoder would read another projector's tokens, which they could not mend.
    raise UserError(
        f"lora.rank asks for adapters of {stage}, and the weights have none, only what "
        f"it could be made of; train it first, by --config=configs/finetune.py:{stage}"
    )


def _check_group(
    group: str,
    config: ConfigDict,
    stage: str,
    weights: Weights,
    first: Weights,
    vocabulary: Vocabulary | None,
    is_start: bool,
) -> None:
    """Refuses weights of a group that a stage cannot use or start from.

    Args:
        first: the weights at `init_from`, whose vocabulary the run takes.
        vocabulary: another one that it takes.
    """
    has_words = group in ROWS and weights.has_vocabulary and first.has_vocabulary
    if vocabulary is None and has_words and weights is not first:
        _check_words(group, weights, first, config.latent.tokens)
    if vocabulary is not None and group == "text_tokenizer" and not is_start:
        there = weights.vocabulary(config.latent.tokens)
        if there.sha256() != vocabulary.sha256():
            raise UserError(
                f"the text tokenizer in {weights.place} writes other words than those "
                f"of init_vocabulary = {config.init_vocabulary}; expected it to be "
                "trained before i2t, by --config.stages="
                f"{','.join(('text_tokenizer', *config.stages))}"
            )
    if not weights.has_config:
        return
    nets = make_nets(config)
    networks = networks_of(group, nets)
    differing = find_differing(config, weights, group, networks)
    if vocabulary is not None:
        differing.pop("clip.vocab_size", None)
    there = abstract_group(weights.make_nets(), group) if differing else None
    # Not each key has a shape; what no shape tells is checked by the weights.
    if not differing or there == abstract_group(nets, group):
        weights.check(group, dict.fromkeys(networks), nets, is_start=is_start)
        return
    listed = [f"{k} is {a} there, {b} here" for k, (a, b) in differing.items()]
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    raise UserError(
        f"{group} in {weights.place} does not fit the config: "
        f"{', '.join(listed[:SHOWN])}{more}; expected "
        f"{_size_cure(config, stage, differing)}"
    )


def _check_words(group: str, weights: Weights, first: Weights, context: int) -> None:
    there, here = (place.vocabulary(context).sha256() for place in (weights, first))
    if there != here:
        raise UserError(
            f"{group} in {weights.place} has other words than {first.place}, whose "
            f"vocabulary the run takes; expected --config.init_vocabulary={first.place}"
            ", which moves it to these"
        )


def _size_cure(
    config: ConfigDict, stage: str, differing: Mapping[str, tuple[Any, Any]]
) -> str:
    """Returns what to do about sizes that differ."""
    cures = []
    if len(differing) <= SHOWN:
        flags = [f"--config.{key}={there}" for key, (there, _) in differing.items()]
        cures.append(" ".join(flags))
    if config.init_trained:
        cures.append(
            f"--config.init_trained=False to train {stage} from nothing in its own "
            "sizes, with theirs for what it only uses"
        )
    if config.init_trained and not config.init_config:
        cures.append("--config.init_config=True for all sizes of the weights")
    return ", or ".join(cures or ["other weights"])


def check_stage(
    config: ConfigDict, task: Task, devices: Sequence[jax.Device] | None = None
) -> None:
    """Refuses numbers that can be told wrong before anything is written or computed.

    Raises:
        UserError: naming the key.
    """
    mesh = make_mesh(**config.mesh, devices=devices)
    counts = ("num_steps", "batch_size", "accumulate", "steps_per_call")
    for name in (*counts, "max_skipped_in_a_row"):
        if config.train[name] < 1:
            raise UserError(
                f"train.{name} is {config.train[name]}; expected at least 1"
            )
    parts = mesh.shape["data"] * mesh.shape["fsdp"] * config.train.accumulate
    if config.checkpoint.keep < 1:
        raise UserError(
            f"checkpoint.keep is {config.checkpoint.keep}; expected at least 1"
        )
    if config.train.batch_size % parts:
        raise UserError(
            f"train.batch_size is {config.train.batch_size}; expected a multiple of "
            f"{parts}, the parts into which mesh.data, mesh.fsdp and train.accumulate "
            "split it"
        )
    # A trainer refuses the schedules and optimisers that it cannot make.
    make_trainer(task, config, make_nets(config))


def check_data(config: ConfigDict, task: Task, key: str) -> None:
    """Refuses a source that cannot be opened, or without what the task needs.

    Args:
        key: "train", "eval" or "held_out", of config.data.

    Raises:
        UserError: naming the source.
    """
    spec = config.data.eval if key == "eval" else config.data.train
    side = None if key == "eval" else training_side(config)
    if key == "held_out":
        side = side._replace(is_held_out=True)
    try:
        content = open_source(config, spec, side=side).content
    except UserError as error:
        if spec.startswith("latents:"):
            raise UserError(f"{error}; {PRETOKENIZE}") from error
        raise
    if content not in task.contents:
        raise UserError(
            f"stage {task.name} needs {' or '.join(task.contents)} data; "
            f"{spec} has {content}"
        )
