"""FlowTok: train it, draw captions, describe images, measure, from one command.

    python -m flowtok_jax.main --config=configs/demo.py --workdir=runs/demo
    python -m flowtok_jax.main --mode=sample --checkpoint=runs/demo --prompts="...;..."
    python -m flowtok_jax.main --mode=caption --checkpoint=runs/demo --images="*.png"
    python -m flowtok_jax.main --mode=eval --workdir=runs/demo
    python -m flowtok_jax.main --mode=pretokenize --config=configs/finetune.py \\
        --checkpoint=weights/xl --config.data.train=folder:photos --workdir=latents
    python -m flowtok_jax.main --mode=compile --config=configs/h.py --topology=a100:8
    python -m flowtok_jax.main --mode=bench --config=configs/xl.py

`flowtok` is the same command, where the package is installed.
Without --workdir a config's run lives in runs/NAME: runs/demo for configs/demo.py.

Exit status: 0, also where SIGTERM ended training (preempted.json is there then); 1
where some input files could not be read, or a remote store failed on the way; 2 for a
mistake of the user's, with one line that says what to do; 130 where interrupted.
"""

import contextlib
import io
import sys

from absl import flags
from ml_collections import config_flags

from flowtok_jax.modes import MODES
from flowtok_jax.modes.arguments import Arguments
from flowtok_jax.modes.compile import STEPS
from flowtok_jax.runtime import cli
from flowtok_jax.runtime.config import (
    check_config_flags,
    check_seed,
    find_configs,
    flag_error,
    named_config,
)
from flowtok_jax.runtime.errors import UserError

HELP_FLAGS = {"--help", "-h", "--helpshort", "--helpfull"}

config_flags.DEFINE_config_file(
    "config", None, "A file of configs/, with a stage or variant after a colon."
)
flags.DEFINE_enum("mode", "train", tuple(MODES), "What to do.")
flags.DEFINE_string(
    "workdir",
    None,
    "Where a run lives, here or at gs://BUCKET/PATH, else runs/NAME; sampling writes "
    "to its samples/, pretokenize its shards there.",
)
flags.DEFINE_string(
    "checkpoint",
    None,
    "The weights to use: a run's workdir or a directory of pretrained weights; in "
    "training, the same as --config.init_from.",
)
flags.DEFINE_multi_string(
    "prompt", [], "A caption to draw, as it stands; may be repeated."
)
flags.DEFINE_string("prompts", None, "Captions to draw, separated by ';'.")
flags.DEFINE_string(
    "prompts_file",
    None,
    "A file with one caption to draw a line, - for standard input; a line that begins "
    "with # is a comment.",
)
flags.DEFINE_string("images", None, "A quoted glob of images to caption.")
flags.DEFINE_bool("json", False, "Captions as one JSON object a line.")
flags.DEFINE_string(
    "topology", "", "What to compile for, as v5e:16x16 or a100:8; needs no such device."
)
flags.DEFINE_enum("step", "train", STEPS, "What to compile.")
flags.DEFINE_integer("seed", 0, "Seed of the noise in sampling, from 0 to 2**32 - 1.")
cli.define_cluster_flags()


def parse_flags(argv: list[str]) -> Arguments:
    """Parses the command line.

    Raises:
        UserError: saying what was wrong with it.
    """
    argv = find_configs(argv)
    argv = check_config_flags(argv)
    named = named_config(argv)
    changes = []
    if not named:  # the config stored with the weights is meant
        changes = [a for a in argv if a.startswith("--config.")]
        argv = [a for a in argv if a not in changes]
    try:
        # absl prints a config file's own errors beside raising them.
        with contextlib.redirect_stderr(io.StringIO()):
            rest = flags.FLAGS(argv)
    except (flags.Error, ValueError, TypeError) as error:
        raise flag_error(error) from error
    if len(rest) > 1:
        raise UserError(f"what is {rest[1]!r}? expected flags, as in --workdir=DIR")
    check_seed("--seed", flags.FLAGS.seed)
    return Arguments(flags.FLAGS, named, changes)


def main(argv: list[str] | None = None) -> int:
    """Parses the flags, runs the mode, and returns the exit status.

    Args:
        argv: the program's name and its flags; by default those of this process.
    """
    argv = sys.argv if argv is None else argv
    if HELP_FLAGS & set(argv[1:]):
        cli.say(
            __doc__
            + "\n".join(map(flags.FLAGS.module_help, (sys.modules[__name__], cli)))
        )
        return 0

    def command() -> int:
        arguments = parse_flags(argv)
        return MODES[arguments.flags.mode].run(arguments)

    return cli.run_command(command)


if __name__ == "__main__":
    sys.exit(main())
