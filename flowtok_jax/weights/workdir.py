"""A run's folder: config.json, vocabulary.json, checkpoints/, parameters/,
metrics.jsonl, tb/, samples/, summary.json. Files appear whole or not at all.

A checkpoint is checkpoints/GROUP/STEP, and its item `ema` the weights to use.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from flowtok_jax.array_types import Params
from flowtok_jax.data.loader import make_vocabulary
from flowtok_jax.data.vocabulary import VOCABULARY, Vocabulary
from flowtok_jax.runtime.claims import check_claim
from flowtok_jax.runtime.config import (
    OF_NETWORKS,
    add_new_keys,
    config_from_json,
    config_to_json,
    default_values,
)
from flowtok_jax.runtime.errors import StoreError, UserError, reason_of
from flowtok_jax.runtime.files import (
    Place,
    absolute,
    reaching,
    read_bytes,
    read_json,
    write_json,
)
from flowtok_jax.runtime.mesh import put, replicated
from flowtok_jax.weights.safetensors import check_tree

CHECKPOINTS = "checkpoints"
CONFIG = "config.json"
SAMPLES = "samples"
SUMMARY = "summary.json"
VOCABULARY_SHA256 = "vocabulary_sha256"  # key of a stored config, beside its own
PREEMPTED = "preempted.json"  # there while a run that was asked to end has not gone on

# What may differ between runs in one workdir: it changes no trained weight, or extends
# a run.
FREE = (
    "stages",
    "init_from",
    "init_config",
    "init_trained",
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
    "data.keep_gib",
    "data.max_rejected",
    "train.num_steps",
    "train.max_skipped_in_a_row",
    # These change rounding only (`accumulate` the dropout of text_tokenizer too), and
    # what fits on other hardware.
    "train.accumulate",
    "train.steps_per_call",
    "compute.remat",
    "compute.layout",
    "compute.quantize",
    VOCABULARY_SHA256,
)


def read_config(workdir: Place) -> ConfigDict:
    """Reads the config that a run stored, with what newer versions read of networks,
    data and evaluation.

    Raises:
        UserError: where the folder is not a run's.
    """
    path = workdir / CONFIG
    try:
        config = config_from_json(read_bytes(path).decode())
    except StoreError:  # a ValueError too, and no fault of the file
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"no {CONFIG} in {workdir}; expected the workdir of a run, as made by "
            "`make demo` or `--config=... --workdir=...`"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)})") from error
    # Before --mode=eval there was a section of this name with other keys.
    measures = ["eval"] if "eval" in config and "protocol" in config.eval else []
    add_new_keys(config, *OF_NETWORKS, "data", *measures)
    return config


def steps_of(workdir: Place, group: str) -> list[int]:
    """Lists the finished checkpoints of a group, oldest first."""
    with reaching(workdir):
        return _steps_in(workdir / CHECKPOINTS / group)


def _steps_in(folder: Place) -> list[int]:
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []


def newest_steps(workdir: Place) -> dict[str, int]:
    """Finds the newest finished checkpoint of every group that has one."""
    folder = workdir / CHECKPOINTS
    with reaching(workdir):
        groups = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
        steps = {group: _steps_in(folder / group) for group in groups}
    return {group: found[-1] for group, found in steps.items() if found}


def read_parameters(path: Place, wanted: Mapping[str, Params]) -> Params:
    """Reads one item of a checkpoint into this machine's memory.

    Args:
        path: absolute path of the item.
        wanted: shapes of the parameters, by network.

    Raises:
        UserError: where the checkpoint is damaged or does not fit.
    """
    target = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), wanted)
    with _quiet_orbax(), ocp.StandardCheckpointer() as checkpointer:
        try:
            stored = checkpointer.metadata(path).item_metadata.tree
        except AttributeError as error:  # Orbax returns None for what it cannot read
            reason = ValueError("its metadata cannot be read")
            raise _damaged(path, reason) from error
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error
        check_tree(f"{path} does not fit the config", stored, wanted)
        try:
            return checkpointer.restore(path, target)
        except (OSError, ValueError) as error:
            raise _damaged(path, error) from error


def _damaged(path: Place, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
    return UserError(
        f"{path} is damaged ({reason}); move {path.parent} away to use the checkpoint "
        "before it"
    )


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Silences Orbax's warning that an item has no metadata of its own."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def store_group(workdir: Place, group: str, params: Params) -> None:
    """Stores the parameters of a group that is never trained.

    Args:
        params: the same in every process of the run.
    """
    everywhere = replicated(jax.make_mesh((jax.device_count(),), ("device",)))
    params = put(params, everywhere)
    with ocp.CheckpointManager(absolute(workdir / CHECKPOINTS / group)) as manager:
        manager.save(0, args=ocp.args.Composite(ema=ocp.args.StandardSave(params)))


def _is_free(key: str) -> bool:
    if key.startswith("per_stage."):
        key = key.split(".", 2)[-1]
    return any(key == free or key.startswith(free + ".") for free in FREE)


def open_workdir(
    workdir: Place,
    config: ConfigDict,
    inherited: Callable[[], Vocabulary | None] = lambda: None,
) -> Vocabulary:
    """Stores the config, or checks that the stored one is the same.

    Args:
        inherited: reads the vocabulary of the weights that training starts from.

    Returns:
        The vocabulary.

    Raises:
        UserError: where the workdir belongs to another config, naming the keys, or is
            no directory.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir {workdir} is a file; expected a directory")
    new = json.loads(config_to_json(config))
    path = workdir / CONFIG
    stored = read_json(path) if path.is_file() else None
    # A task that the run's version did not know has trained nothing there.
    known = stored["loss"] if stored and "loss" in stored else new["loss"]
    unknown = tuple(f"loss.{task}." for task in new["loss"] if task not in known)
    check_claim(
        path,
        new,
        complaint="belongs to another config",
        cure="give another --workdir, or the config that it was made with",
        is_free=lambda key: _is_free(key) or key.startswith(unknown),
        before=default_values(),
    )
    if stored:
        new["stages"] = all_stages(stored["stages"], new["stages"])
    # Before the config is stored, because making a vocabulary may refuse the config.
    vocabulary = open_vocabulary(workdir, config, inherited, stored)
    new[VOCABULARY_SHA256] = vocabulary.sha256()
    write_json(workdir / CONFIG, new)
    return vocabulary


def all_stages(stored: list[str], stages: list[str]) -> list[str]:
    """Lists the stages stored already, then those of this run that are new."""
    return stored + [s for s in stages if s not in stored]


def open_vocabulary(
    workdir: Place,
    config: ConfigDict,
    inherited: Callable[[], Vocabulary | None] = lambda: None,
    stored: Mapping[str, Any] | None = None,
) -> Vocabulary:
    """Reads the workdir's own vocabulary; makes and stores that of a new workdir.

    Weights that training starts from know no other vocabulary than the inherited one,
    so the vocabulary that the config names comes last.

    Args:
        stored: the config in the workdir; None for a new one.

    Raises:
        UserError: where there is none to be had, or another one than the config's.
    """
    own = workdir / VOCABULARY
    if own.is_file():
        return read_vocabulary(own, config.latent.tokens, stored or {})
    if stored:
        raise UserError(
            f"{own} does not exist, and {workdir / CONFIG} does: what was trained here "
            "knows no other vocabulary; put it back, or give another --workdir"
        )
    vocabulary = inherited() or make_vocabulary(config)
    vocabulary.check(config.clip.vocab_size, config.text.vocabulary)
    vocabulary.save(workdir)
    return vocabulary


def read_vocabulary(
    path: Place, context: int, stored: Mapping[str, Any] | ConfigDict
) -> Vocabulary:
    """Reads the vocabulary beside weights.

    Args:
        context: number of ids of a caption.
        stored: the config stored with the weights.

    Raises:
        UserError: where the weights were trained with another one.
    """
    vocabulary = Vocabulary.read(path, context)
    if "clip" in stored:
        vocabulary.check(stored["clip"]["vocab_size"], path)
    expected = stored.get(VOCABULARY_SHA256)
    if expected not in (None, found := vocabulary.sha256()):
        raise UserError(
            f"{path} is not the vocabulary of the weights beside it "
            f"(SHA-256 {found[:12]}..., expected {expected[:12]}...); put theirs back"
        )
    return vocabulary
