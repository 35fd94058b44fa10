"""A run's folder: config.json, vocabulary.json, checkpoints/, metrics.jsonl, tb/,
samples/, summary.json. Files appear whole or not at all.
"""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from flowtok_jax.data.loader import make_vocabulary
from flowtok_jax.data.vocabulary import VOCABULARY, Vocabulary
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import (
    Place,
    check_claim,
    flatten,
    read_json,
    to_place,
    write_json,
)

CONFIG, SAMPLES, SUMMARY = "config.json", "samples", "summary.json"
PREEMPTED = "preempted.json"  # there while a run that was asked to end has not gone on

# What may differ between runs in one workdir: it changes no trained weight, or extends
# a run.
FREE = (
    "stages",
    "init_from",
    "init_config",
    "pretokenize",
    "mesh",
    "checkpoint",
    "log",
    "sample",
    "caption",
    "eval",
    "bench",
    "data.eval",
    "data.threads",
    "data.prefetch",
    "data.workers",
    "data.cache",
    "data.max_rejected",
    "train.num_steps",
    "train.max_skipped_in_a_row",
    # These change rounding only (`accumulate` the dropout of text_tokenizer too), and
    # what fits on other hardware.
    "train.accumulate",
    "train.steps_per_call",
    "compute.remat",
)


def for_stage(config: ConfigDict, stage: str) -> ConfigDict:
    """The config of one stage: its deltas put over the shared keys.

    Raises:
        UserError: for a delta of a key that there is not.
    """
    resolved = config.copy_and_resolve_references()
    if stage in config.per_stage:
        known = flatten(config.to_dict())
        for key in flatten(config.per_stage[stage].to_dict()):
            if key not in known:
                raise UserError(
                    f"per_stage.{stage}.{key} is no key of the config; wanted the "
                    "name of one, such as train.num_steps"
                )
        with resolved.unlocked():
            resolved.update(config.per_stage[stage])
    return resolved


def drop_overridden(config: ConfigDict, overrides: Mapping[str, Any]) -> None:
    """Makes keys given on the command line win over the stages' own values.

    One given there for that stage too (per_stage.STAGE.KEY) wins over both.
    """
    for stage in config.per_stage:
        for key in overrides:
            if f"per_stage.{stage}.{key}" in overrides:
                continue
            *path, last = key.split(".")
            section = config.per_stage[stage]
            for name in path:
                section = section.get(name, {}) if section else {}
            if last in section:
                with section.unlocked():
                    del section[last]


def config_to_json(config: ConfigDict) -> str:
    """The config as indented JSON, keys sorted."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def config_from_json(text: str) -> ConfigDict:
    """The inverse of `config_to_json`; lists become tuples again."""

    def tuples(value):
        if isinstance(value, dict):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(value) if isinstance(value, list) else value

    return ConfigDict(tuples(json.loads(text)))


def read_config(workdir: Place) -> ConfigDict:
    """The config that a run stored.

    Raises:
        UserError: where the folder is not a run's.
    """
    path = workdir / CONFIG
    if not path.is_file():
        raise UserError(
            f"no {CONFIG} in {workdir}; wanted the workdir of a run, as made by "
            "`make demo` or `--config=... --workdir=...`"
        )
    return config_from_json(path.read_text())


def _is_free(key: str) -> bool:
    if key.startswith("per_stage."):
        key = key.split(".", 2)[-1]
    return any(key == free or key.startswith(free + ".") for free in FREE)


def open_workdir(workdir: Place, config: ConfigDict) -> Vocabulary:
    """Stores the config, or checks that the stored one is the same; the vocabulary.

    Raises:
        UserError: where the workdir belongs to another config, naming the keys, or is
            no directory.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir {workdir} is a file; wanted a directory")
    new = json.loads(config_to_json(config))
    check_claim(
        workdir / CONFIG,
        new,
        complaint="belongs to another config",
        cure="give another --workdir, or the config that it was made with",
        is_free=_is_free,
    )
    if (workdir / CONFIG).is_file():
        new["stages"] = old_stages(workdir, new["stages"])
    vocabulary = open_vocabulary(workdir, config)  # first: it may refuse the config
    write_json(workdir / CONFIG, new)
    return vocabulary


def old_stages(workdir: Place, stages: list[str]) -> list[str]:
    """The stages stored already, then those of this run that are new."""
    stored = read_json(workdir / CONFIG)["stages"]
    return stored + [s for s in stages if s not in stored]


def open_vocabulary(workdir: Place, config: ConfigDict) -> Vocabulary:
    """The workdir's own vocabulary; else that of `init_from`, whose weights know no
    other, or the one that the config names, stored there.
    """
    own = workdir / VOCABULARY
    if own.is_file():
        return Vocabulary.load(str(own), config.latent.tokens)
    start = to_place(config.init_from) / VOCABULARY if config.init_from else None
    if start is not None and start.is_file():
        vocabulary = Vocabulary.load(str(start), config.latent.tokens)
    else:
        vocabulary = make_vocabulary(config)
    vocabulary.save(workdir)
    return vocabulary
