"""--mode=train: all stages of a config in one workdir, and a summary at the end.

    python -m flowtok_jax.main --config=configs/demo.py --workdir=runs/demo

Finished stages are skipped; one that was interrupted goes on.
"""

import functools
import logging
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import jax
from ml_collections import ConfigDict

from flowtok_jax.array_types import Params
from flowtok_jax.data.loader import (
    check_captions,
    make_new_vocabulary,
    make_vocabulary,
)
from flowtok_jax.data.vocabulary import VOCABULARY, Vocabulary
from flowtok_jax.eval import ending, pictures
from flowtok_jax.eval.previews import make_preview
from flowtok_jax.models.build import (
    find_provider,
    has_group,
    init_networks,
    make_nets,
)
from flowtok_jax.modes.arguments import Arguments
from flowtok_jax.modes.eval import check_options
from flowtok_jax.modes.pretokenize import encode_first
from flowtok_jax.modes.survey import fit_config
from flowtok_jax.runtime.cli import join_processes, say, typed_command
from flowtok_jax.runtime.config import for_stage
from flowtok_jax.runtime.errors import StoreError, UserError
from flowtok_jax.runtime.files import Place, reaching, read_json, write_json
from flowtok_jax.runtime.lock import locked
from flowtok_jax.runtime.mesh import make_mesh
from flowtok_jax.runtime.processes import Preemption, first_does, is_first
from flowtok_jax.tasks import (
    abstract_group,
    abstract_groups,
    find_task,
    networks_of,
    pick_frozen,
    task_of,
)
from flowtok_jax.tasks.base import Task
from flowtok_jax.tasks.lora import BASE
from flowtok_jax.train import loop
from flowtok_jax.train.check import check_fit, check_run
from flowtok_jax.train.progress import Progress
from flowtok_jax.train.start import (
    find_starts,
    inherit_vocabulary,
    load_start,
    store_random_clip,
)
from flowtok_jax.train.summary import describe_start, merge_summary, show_summary
from flowtok_jax.weights.groups import first_places
from flowtok_jax.weights.lora import lora_file, save_lora
from flowtok_jax.weights.nets import load_metric_net
from flowtok_jax.weights.place import (
    Weights,
    find_holder,
    load_groups,
    open_start,
    open_starts,
)
from flowtok_jax.weights.rows import (
    describe_match,
    match_tokens,
    store_moved_clip,
)
from flowtok_jax.weights.sizes import adopt_sizes
from flowtok_jax.weights.workdir import (
    CONFIG,
    PREEMPTED,
    SAMPLES,
    SUMMARY,
    open_workdir,
    read_vocabulary,
    steps_of,
    store_group,
)

INTERRUPTED = 130  # exit status


class InterruptedRunError(loop.PreemptedError):
    """The end of a run that Ctrl-C asked to end, and that saved."""


def run(arguments: Arguments) -> int:
    """Trains what the config asks for."""
    config = arguments.training_config()
    join_processes(arguments.flags)  # from here on process 0 alone speaks
    workdir = arguments.workdir()
    if config.init_from and not config.init_trained:
        _adopt_used(config, workdir, arguments.overrides)
    if config.own.size:
        for line in fit_config(config, workdir, arguments.overrides):
            logging.info(line)
    try:
        train_stages(config, workdir)
    except loop.PreemptedError as error:
        stage, step, num_steps = error.args
        logging.warning(
            "asked to end: %s saved at step %d of %d (%s); this goes on:\n  %s",
            stage,
            step,
            num_steps,
            workdir / PREEMPTED,
            typed_command(),
        )
        # As a shell expects, a script that Ctrl-C ends in does not go on to the next.
        return INTERRUPTED if isinstance(error, InterruptedRunError) else 0
    return 0


def _adopt_used(
    config: ConfigDict, workdir: Place, overrides: Mapping[str, Any]
) -> None:
    """Takes the sizes of what the run uses and does not train from its start."""
    trained = set(Weights(workdir).groups) if workdir.is_dir() else set()
    trained.discard("clip")  # nobody trains it: the folder's own is a copy
    used = set()
    for stage in config.stages:
        frozen = find_task(stage).frozen.values()
        used |= {group for group in frozen if not has_group(group, trained)}
        trained.add(stage)
    opener = functools.cache(open_start)
    held: dict[Weights, set[str]] = {}
    for group in sorted(used):
        place = find_holder(group, open_starts(config.init_from, opener))
        if place is not None:
            held.setdefault(place, set()).add(find_provider(group, place.groups))
    for place, groups in held.items():
        nets = place.make_nets()
        networks = [name for group in groups for name in networks_of(group, nets)]
        adopt_sizes(config, place, networks, overrides)
        said = ", ".join(sorted(groups))
        logging.info("sizes of %s are those in %s", said, place.place)


def train_stages(config: ConfigDict, workdir: Place) -> None:
    """Trains every stage of the config that is not finished, then sums up.

    Raises:
        UserError: where another run uses the workdir, or this one cannot be.
    """
    with locked(workdir):
        _train_stages(config, workdir)


def _train_stages(config: ConfigDict, workdir: Place) -> None:
    opened = functools.cache(open_start)  # each place once, whatever stage names it
    starts = functools.partial(open_starts, config.init_from, opened)
    start = functools.partial(opened, config.init_from)
    renewed = _renew_vocabulary(config, workdir, start)
    stages = {stage: for_stage(config, stage) for stage in config.stages}
    check_run(stages, workdir, opened)  # mistakes show before anything is written
    check_fit(stages, workdir, opened, renewed)
    if config.eval.after_training:
        check_options(config)
        ending.check_ending(config)
    first_does(lambda: _open(config, workdir, start, renewed))
    # Made by process 0 above.
    vocabulary = read_vocabulary(
        workdir / VOCABULARY, config.latent.tokens, read_json(workdir / CONFIG)
    )
    nets = make_nets(config)
    init_clip = functools.partial(init_networks, nets, ("clip",))
    if renewed is not None:
        key = jax.random.key(config.text.seed)
        fresh = jax.jit(functools.partial(init_clip, key))
        store_moved_clip(workdir, starts(), nets, vocabulary, fresh)
    for line in describe_start(stages, workdir, len(vocabulary)):
        logging.info(line)
    # A tower that is never trained is stored too: weights trained on it depend on it.
    store_random_clip(config, workdir, starts(), init_clip)
    results = {}
    try:
        with Preemption() as asked:
            for stage, own in stages.items():
                task = task_of(own, stage)
                results[stage] = _train_stage(
                    own, task, workdir, vocabulary, opened, asked
                )
            if asked.noted:  # at the very end, before what is measured takes minutes
                raise loop.PreemptedError(stage, *[own.train.num_steps] * 2)
    except loop.PreemptedError as error:
        where = dict(zip(("stage", "step"), error.args[:2], strict=True))
        first_does(lambda: write_json(workdir / PREEMPTED, where))
        if asked.interrupted:
            raise InterruptedRunError(*error.args) from error
        raise
    _summarize(config, workdir, results)


def _renew_vocabulary(
    config: ConfigDict, workdir: Place, start: Callable[[], Weights | None]
) -> Vocabulary | None:
    """Makes the vocabulary that replaces that of the weights, where the config asks for
    one, and sizes the networks for it.

    Raises:
        UserError: where there are no weights to start from.
    """
    if not config.init_vocabulary:
        return None
    own = workdir / VOCABULARY
    if own.is_file():
        vocabulary = Vocabulary.read(own, config.latent.tokens)
    elif (weights := start()) is None:
        raise UserError(
            f"init_vocabulary is {config.init_vocabulary!r}, and no weights are named "
            "whose vocabulary it would replace; expected --checkpoint=DIR, or "
            "--config.text.vocabulary in training from nothing"
        )
    else:
        old = weights.vocabulary(config.latent.tokens)
        vocabulary = make_new_vocabulary(config, old)
        said = describe_match(old, match_tokens(old, vocabulary))
        logging.info("words of %s: %s", config.init_vocabulary, said)
    config.clip.vocab_size = len(vocabulary)
    return vocabulary


def _open(
    config: ConfigDict,
    workdir: Place,
    start: Callable[[], Weights | None],
    renewed: Vocabulary | None,
) -> None:
    """Makes the workdir this config's."""

    def find_vocabulary() -> Vocabulary:
        inherited = None if renewed else inherit_vocabulary(config, start)
        vocabulary = renewed or inherited or make_vocabulary(config)
        stages = [for_stage(config, stage) for stage in config.stages]
        # Once for each source, whatever stages train on it.
        for own in {own.data.train: own for own in reversed(stages)}.values():
            check_captions(own, vocabulary, config.init_from if inherited else "")
        return vocabulary

    try:
        with reaching(workdir):
            open_workdir(workdir, config, find_vocabulary)
            (workdir / PREEMPTED).unlink(missing_ok=True)
    except StoreError as error:  # at the start it is a mistake, not bad luck
        raise UserError(str(error)) from error


def _train_stage(
    config: ConfigDict,
    task: Task,
    workdir: Place,
    vocabulary: Vocabulary,
    opener: Callable[[str], Weights | None],
    preemption: Preemption,
) -> loop.StageResult:
    """Trains one stage with what it needs of others, unless it is finished."""
    if (result := _find_result(config, task, workdir)) is not None:
        return result
    if preemption.noted:  # while the stage before was at its end
        raise loop.PreemptedError(task.name, 0, config.train.num_steps)
    nets = make_nets(config)
    renewed = vocabulary if config.init_vocabulary else None
    used = {role: group for role, group in task.frozen.items() if role != BASE}
    starts = open_starts(config.init_from, opener)
    places, needed = first_places(used.values(), chain([Weights(workdir)], starts))
    groups = load_groups(abstract_groups(nets, needed), nets, places)
    frozen = {role: pick_frozen(groups, group, nets) for role, group in used.items()}
    for name in task.judges(config):
        frozen[name] = load_metric_net(name, config.eval.weights).params
    trained_on = config
    if config.data.encode_first and task.encodes_images(config):
        tokenizer = groups["tokenizer"]
        trained_on = encode_first(config, workdir, nets, tokenizer)
    load = functools.partial(load_start, config, task, nets, opener, frozen, renewed)
    if task.lora is not None:
        is_made = task.group not in find_starts(config, task, opener)
        frozen[BASE] = _load_base(task, workdir, load, is_made)
        load = lambda: None  # noqa: E731 - adapters start afresh
    result = loop.train(
        trained_on,
        task,
        workdir,
        nets=nets,
        frozen=frozen,
        vocabulary=vocabulary,
        evaluate=make_preview(config, task, vocabulary, make_mesh(**config.mesh)),
        preemption=preemption,
        load_start=load,
    )
    if task.lora is not None:
        _hand_on(task, workdir, abstract_group(nets, task.group), frozen[BASE])
    return result


def _find_result(
    config: ConfigDict, task: Task, workdir: Place
) -> loop.StageResult | None:
    """Reads the result of a finished stage, which of adapters has written a file."""
    result = loop.finished(config, task, workdir)
    is_whole = task.lora is None or lora_file(workdir, task.group).is_file()
    return result if is_whole else None


def _load_base(
    task: Task, workdir: Place, load: Callable[[], Params | None], is_made: bool
) -> Params:
    """Reads the group that adapters are trained over: what the task would begin with.

    Args:
        is_made: whether the group is a copy of a teacher, and not one of the weights
            that training starts from.

    Raises:
        UserError: where it would begin with nothing.
    """
    base = load()
    if base is None:
        raise UserError(
            f"lora.rank asks for adapters of {task.group}, and there are no trained "
            "weights of it; expected --checkpoint=DIR with them, and init_trained=True"
        )
    # One of fewer steps is not that of this run's end.
    first_does(lambda: lora_file(workdir, task.group).unlink(missing_ok=True))
    # A copy of a teacher is nowhere else.
    if is_made and not steps_of(workdir, task.group):
        store_group(workdir, task.group, base)
    return base


def _hand_on(
    task: Task, workdir: Place, wanted: Mapping[str, Params], base: Params
) -> None:
    """Writes the adapters of a finished stage to a file of their own."""
    path = lora_file(workdir, task.group)
    # Every process reads: Orbax lets them wait for one another.
    adapters = Weights(workdir).read_adapters(task.group, wanted)
    first_does(lambda: save_lora(path, task.group, adapters, task.lora, base))
    logging.info("adapters of %s alone: %s", task.group, path)


def _summarize(
    config: ConfigDict, workdir: Place, results: dict[str, loop.StageResult]
) -> None:
    """Writes summary.json and the pictures, unless those of these weights exist."""
    path = workdir / SUMMARY
    stored = read_json(path) if path.is_file() else {}
    summary = merge_summary(stored, results)
    is_new = summary["params_sha256"] != stored.get("params_sha256")
    values = {}
    grids = {}
    if config.eval.after_training and (is_new or not ending.is_measured(stored)):
        with Progress("evaluation", 1, is_first()) as progress:
            progress.doing("measuring, and drawing examples")
            trained = summary["params_sha256"]
            try:
                values, grids = ending.measure_ending(config, workdir, trained)
            except UserError as error:  # a broken picture, say: what is trained stays
                logging.warning("trained, and not measured: %s", error)
    if is_first():
        for name, grid in grids.items():
            pictures.save_png(workdir / SAMPLES / f"{name}.png", grid)
        if is_new or values:
            write_json(path, values | summary)
        stored = read_json(path)
        show_summary(stored, workdir)
        for line in ending.describe_ending(config, stored, workdir):
            say(line)
