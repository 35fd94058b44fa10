"""The one door.

    python -m flowtok_jax.main --config=configs/demo.py --workdir=runs/demo
    python -m flowtok_jax.main --mode=sample --checkpoint=runs/demo --prompts="...;..."
    python -m flowtok_jax.main --mode=caption --checkpoint=runs/demo --images="*.png"
    python -m flowtok_jax.main --mode=eval --workdir=runs/demo
    python -m flowtok_jax.main --mode=pretokenize --config=configs/finetune.py \\
        --checkpoint=weights/xl --config.data.train=folder:photos --workdir=latents
    python -m flowtok_jax.main --mode=compile --config=configs/h.py --topology=a100:8
    python -m flowtok_jax.main --mode=bench --config=configs/xl.py

Exit status: 0, also where SIGTERM ended training (preempted.json is there then); 1
where some input files could not be read, or a remote store failed on the way; 2 for a
mistake of the user's, with one line that says what to do; 130 where interrupted.
"""

import contextlib
import errno
import io
import json
import logging
import os
import signal
import sys
import traceback
from typing import NoReturn

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from flowtok_jax.eval import previews as runner
from flowtok_jax.modes import eval as evaluation
from flowtok_jax.modes import pretokenize
from flowtok_jax.modes import sample as commands
from flowtok_jax.modes import train as stages
from flowtok_jax.modes.bench import bench
from flowtok_jax.perf import programs as compilation
from flowtok_jax.perf import topologies
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime import cli as logs
from flowtok_jax.runtime import config as config_files
from flowtok_jax.runtime import processes
from flowtok_jax.runtime.errors import StoreError, UserError, WriteError
from flowtok_jax.runtime.files import is_remote, to_place
from flowtok_jax.train.loop import PreemptedError
from flowtok_jax.weights.pretrained import adopt
from flowtok_jax.weights.workdir import PREEMPTED, SAMPLES, drop_overridden, read_config

MODES = ("train", "sample", "caption", "eval", "pretokenize", "compile", "bench")
OF_WEIGHTS = ("sample", "caption", "eval")  # modes that use trained weights

CONFIG_FLAG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/, with a stage or variant after a colon."
)
MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where a run lives, here or at gs://BUCKET/PATH; sampling writes to its samples/, "
    "pretokenize its shards there.",
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "The weights to use: a run's workdir or a directory of pretrained weights; in "
    "training, the same as --config.init_from.",
)
PROMPTS = flags.DEFINE_string("prompts", None, "Captions to draw, separated by ';'.")
PROMPTS_FILE = flags.DEFINE_string(
    "prompts_file", None, "A file with one caption to draw a line."
)
IMAGES = flags.DEFINE_string("images", None, "A quoted glob of images to caption.")
JSON = flags.DEFINE_bool("json", False, "Captions as one JSON object a line.")
TOPOLOGY = flags.DEFINE_string(
    "topology", "", "What to compile for, as v5e:16x16 or a100:8; needs no such device."
)
STEP = flags.DEFINE_enum("step", "train", compilation.STEPS, "What to compile.")
SEED = flags.DEFINE_integer("seed", 0, "Of the noise in sampling.")
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of process 0 of several that train together; on Slurm, Open MPI, GKE "
    "and Cloud TPU they find one another without it.",
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many there are, beside --coordinator."
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Which of them this is, from 0, beside --coordinator."
)
CLUSTER_TIMEOUT = flags.DEFINE_integer(
    "cluster_timeout", 60, "Seconds that a process waits for the others at the start."
)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _weights() -> str:
    """Where the weights are: --checkpoint, else --workdir."""
    place = CHECKPOINT.value or WORKDIR.value
    if not place:
        raise UserError(
            "no weights named; wanted --checkpoint=DIR, a run's workdir or a directory "
            "of pretrained weights"
        )
    if not to_place(place).is_dir():
        raise UserError(
            f"checkpoint {place} does not exist; wanted a run's workdir or a directory "
            "of pretrained weights"
        )
    return place


def _tower_note() -> str:
    """What to say of weights whose text tower was never trained; else nothing."""
    stored = read_config(to_place(CHECKPOINT.value or WORKDIR.value))
    is_random = "text" in stored and stored.text.weights == "random"
    return runner.RANDOM_TOWER if is_random else ""


def _sample(config: ConfigDict | None) -> int:
    prompts = commands.split_prompts(PROMPTS.value, PROMPTS_FILE.value)
    flowtok = FlowTok.from_pretrained(_weights(), config)
    folder = to_place(WORKDIR.value or CHECKPOINT.value) / SAMPLES
    try:
        if not is_remote(folder):  # gcsfs would make a bucket of a mistyped name
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be made ({error.strerror}); give another --workdir=DIR"
        ) from error
    note = _tower_note()
    for path in commands.sample(flowtok, prompts, folder, SEED.value, note):
        _say(str(path))
    if note:
        logging.info(note)
    return 0


def _caption(config: ConfigDict | None) -> int:
    if not IMAGES.value:
        raise UserError("no images named; wanted --images='photos/*.png'")
    flowtok = FlowTok.from_pretrained(_weights(), config)
    failed = commands.caption(flowtok, IMAGES.value, SEED.value, JSON.value, _say)
    if note := _tower_note():
        logging.info(note)
    return 1 if failed else 0


def _evaluate(config: ConfigDict | None) -> int:
    place = to_place(_weights())
    config = read_config(place) if config is None else config
    if "eval" not in config or "protocol" not in config.eval:
        raise UserError(
            f"the config stored in {place} has no keys of --mode=eval; give a config "
            "beside it: --config=configs/eval.py, or the one it was trained with"
        )
    _join_processes()
    # Nothing has to be saved; among several processes JAX would keep it to itself.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    evaluation.evaluate(config, place, to_place(WORKDIR.value or CHECKPOINT.value))
    if note := _tower_note():
        logging.info(note)
    return 0


def _compile(config: ConfigDict) -> int:
    topologies.prepare()
    result = compilation.report(config, TOPOLOGY.value, STEP.value)
    for line in compilation.describe(result):
        logging.info(line)
    _say(json.dumps(result))
    return 0


def _start_from_checkpoint(config: ConfigDict) -> None:
    """Makes --checkpoint, in training, what --config.init_from is."""
    if config.init_from not in ("", CHECKPOINT.value):
        raise UserError(
            f"--checkpoint={CHECKPOINT.value} and init_from={config.init_from} differ; "
            "training starts from one place: give one of them"
        )
    config.init_from = CHECKPOINT.value


def _adopt_stored(config: ConfigDict) -> None:
    """Gives a config that wants it what is stored with the weights to use."""
    place = CHECKPOINT.value or config.init_from
    if not place and MODE.value in OF_WEIGHTS:
        place = WORKDIR.value
    if not place:
        raise UserError(
            "this config starts from trained weights and takes their sizes; wanted "
            "--checkpoint=DIR, a run's workdir (runs/demo) or a directory of "
            "pretrained weights (weights/xl)"
        )
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    adopt(config, to_place(place), overrides)


def _join_processes() -> None:
    """Makes this process one of several, where flags or a cluster say so."""
    processes.start(
        COORDINATOR.value,
        NUM_PROCESSES.value,
        PROCESS_ID.value,
        CLUSTER_TIMEOUT.value,
    )


def run(changes: list[str]) -> int:
    """Does what the flags say, and returns the exit status.

    Args:
        changes: flags that change the stored config, where no --config names one.
    """
    config = CONFIG_FLAG.value
    if changes and MODE.value in OF_WEIGHTS:
        config = _stored_config(changes)
    elif config is not None and config.init_config:
        _adopt_stored(config)
    if MODE.value == "sample":
        return _sample(config)
    if MODE.value == "caption":
        return _caption(config)
    if MODE.value == "eval":
        return _evaluate(config)
    if config is None:
        raise UserError("no config named; wanted --config=configs/demo.py, say")
    if MODE.value == "compile":
        return _compile(config)
    if MODE.value == "bench":
        _say(json.dumps(bench(config, CHECKPOINT.value, WORKDIR.value)))
        return 0
    if not WORKDIR.value:
        raise UserError("no workdir named; wanted --workdir=runs/demo, say")
    if CHECKPOINT.value:
        _start_from_checkpoint(config)
    _join_processes()
    workdir = to_place(WORKDIR.value)
    if MODE.value == "pretokenize":
        # Nothing has to be saved; among several processes JAX would keep it to itself.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        result = pretokenize.pretokenize(config, workdir)
        if processes.is_first():
            _say(json.dumps(result))
        return 0
    try:
        stages.train(config, workdir)
    except PreemptedError as error:
        logging.warning(
            "asked to end: %s saved at step %d (%s); the same command goes on",
            *error.args,
            workdir / PREEMPTED,
        )
    return 0


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags; a UserError says what was wrong with them.

    Returns:
        Those that change a config where no --config names one: the stored one is meant.
    """
    config_files.check_config_flags(argv)
    changes = []
    if not config_files.named_config(argv):
        changes = [a for a in argv if a.startswith("--config.")]
        argv = [a for a in argv if a not in changes]
    try:
        # absl prints a config file's own errors beside raising them.
        with contextlib.redirect_stderr(io.StringIO()):
            rest = flags.FLAGS(argv)
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(str(error)) from error
    if len(rest) > 1:
        raise UserError(f"what is {rest[1]!r}? wanted flags, as in --workdir=DIR")
    if CONFIG_FLAG.value is not None:
        overrides = config_flags.get_override_values(flags.FLAGS["config"])
        drop_overridden(CONFIG_FLAG.value, overrides)
    return changes


def _stored_config(changes: list[str]) -> ConfigDict:
    """The config of the weights to use, changed by flags --config.KEY=VALUE."""
    place = CHECKPOINT.value or WORKDIR.value
    if not place:
        raise UserError(
            f"{changes[0].partition('=')[0]} changes no config; wanted --config=FILE, "
            "or --checkpoint=DIR beside it"
        )
    config, values = read_config(to_place(place)), flags.FlagValues()
    for change in changes:
        config_files.check_key(config, change.partition("=")[0])
    argv = ["main", *changes]
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(str(error)) from error
    return config


def _end_at_once(text: str, status: int = 2) -> NoReturn:
    """Without what libraries do at exit, which is to write, and to complain again."""
    sys.stderr.write(f"error: {text}\n")
    sys.stderr.flush()
    os._exit(status)


def _raise_alone() -> NoReturn:
    """Raises the bug again; one process of several ends at once, as do the others."""
    if jax.distributed.is_initialized():
        traceback.print_exc()
        _end_at_once("this process failed; the others end within a minute", 1)
    raise  # noqa: PLE0704 - called while an exception is handled


def main(argv: list[str]) -> int:
    """Parses the flags and runs; a user's mistake ends in one line."""
    if {"--help", "-h", "--helpshort", "--helpfull"} & set(argv[1:]):
        _say(__doc__ + flags.FLAGS.module_help(sys.modules[__name__]))
        return 0
    try:
        changes = _parse_flags(argv)
        logs.set_up()
        return run(changes)
    except StoreError as error:
        _end_at_once(str(error), 1)
    except WriteError as error:
        _end_at_once(str(error))
    except UserError as error:
        if jax.distributed.is_initialized():  # at exit JAX would wait for the others
            _end_at_once(str(error))
        sys.stderr.write(f"error: {error}\n")
        return 2
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _end_at_once(f"{error}; make room, and the same command goes on")
        _raise_alone()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        sys.stderr.flush()
        if jax.distributed.is_initialized():  # at exit JAX would wait for the others
            os._exit(130)
        return 130
    except Exception:
        _raise_alone()


if __name__ == "__main__":
    sys.exit(main(sys.argv))
