"""FlowTok: train it, draw captions, describe images, measure, from one command.

Train. The run lives in runs/demo, or in --workdir=DIR. The same command goes on
where a run was interrupted:

  python -m flowtok_jax.main --config=configs/demo.py
  python -m flowtok_jax.main --config=configs/demo.py --config.train.seed=1 \\
      --workdir=runs/other

Draw captions, describe images, measure, with the weights of a run:

  python -m flowtok_jax.main --mode=sample --checkpoint=runs/demo \\
      --prompts="a red circle at the top left;a blue square at the top right"
  python -m flowtok_jax.main --mode=caption --checkpoint=runs/demo \\
      --images=photos
  python -m flowtok_jax.main --mode=eval --workdir=runs/demo

Draw a picture again, bit for bit; change what another one shows:

  python -m flowtok_jax.main --mode=sample --checkpoint=runs/demo \\
      --from-image=a.png
  python -m flowtok_jax.main --mode=edit --checkpoint=runs/demo --images=a.png \\
      --after="a blue circle at the top left"

Train further on images of your own; faster, if they are encoded once before:

  python -m flowtok_jax.main --config=configs/finetune.py \\
      --checkpoint=weights/xl --config.data.train=folder:photos \\
      --workdir=runs/mine
  python -m flowtok_jax.main --mode=pretokenize --config=configs/finetune.py \\
      --checkpoint=weights/xl --config.data.train=folder:photos \\
      --workdir=latents

Draw and describe on a page, or by HTTP:

  python -m flowtok_jax.main --mode=serve --checkpoint=runs/demo

Plan: size and work on hardware that is elsewhere, speed on this:

  python -m flowtok_jax.main --mode=compile --config=configs/h.py \\
      --topology=a100:8
  python -m flowtok_jax.main --mode=bench --config=configs/xl.py
  python -m flowtok_jax.main --mode=bench --config.bench.suite=full

The keys of a config, all or some, with their meaning; or the values of one:

  python -m flowtok_jax.main --help_config
  python -m flowtok_jax.main --print_config --config=configs/demo.py
  python -m flowtok_jax.main --help_config train --config=configs/h.py:1

`flowtok` is the same command, where the package is installed.

Exit status: 0, also where SIGTERM ended training, which saves first
(preempted.json is there then); 1 where some input files could not be read, or
a remote store failed on the way; 2 for a mistake of the user's, with one line
that says what to do; 130 after Ctrl-C, at which training saves too. A second
Ctrl-C ends it at once.
"""

import contextlib
import io
import json
import re
import sys

from absl import flags
from ml_collections import config_flags

from flowtok_jax.modes import MODES
from flowtok_jax.modes.arguments import Arguments
from flowtok_jax.modes.compile import STEPS
from flowtok_jax.modes.edit import EDIT_KINDS
from flowtok_jax.runtime import cli
from flowtok_jax.runtime.config import (
    check_config_flags,
    check_seed,
    config_to_json,
    drop_overridden,
    find_configs,
    flag_error,
    named_config,
)
from flowtok_jax.runtime.config_help import DEFAULT, describe_keys
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.train.summary import config_text

HELP_FLAGS = {"--help", "-help", "-h", "--helpshort", "--helpfull"}
HELP_CONFIG = "--help_config"
SUITE = "--config.bench.suite="

# The flags in the order in which a person needs them, and what a value is.
FLAG_GROUPS = {
    "What to do, and where": {
        "config": "FILE",
        "config.KEY": "VALUE",
        "workdir": "DIR",
        "checkpoint": "DIR",
        "lora": "DIR:WEIGHT",
        "minutes": "NUMBER",
        "mode": "MODE",
    },
    "Captions to draw (--mode=sample)": {
        "prompt": "TEXT",
        "prompts": "TEXT;TEXT",
        "prompts_file": "FILE",
        "num_images": "NUMBER",
        "seed": "NUMBER",
        "from_image": "PNG",
    },
    "Images to describe (--mode=caption)": {"images": "PATH", "json": ""},
    "What to edit (--mode=edit), with --images or --prompts": {
        "edit": "KIND",
        "before": "TEXT",
        "after": "TEXT",
        "strength": "SHARE",
        "columns": "NUMBER",
        "solver": "NAME",
        "num_steps": "NUMBER",
        "scale": "NUMBER",
    },
    "What to compile (--mode=compile)": {"topology": "KIND:SHAPE", "step": "STEP"},
    "Where to listen (--mode=serve)": {"host": "ADDRESS", "port": "NUMBER"},
    "Several processes as one run": {
        "coordinator": "HOST:PORT",
        "num_processes": "NUMBER",
        "process_id": "NUMBER",
        "cluster_timeout": "SECONDS",
    },
    "Help": {"help": "", "help_config": "KEY", "print_config": ""},
}
# Flags that absl does not know.
MORE_FLAGS = {
    "config.KEY": "Changes a value of the config, as in --config.train.batch_size=64.",
    "help": "This text.",
    "help_config": "Keys of --config with their values and meaning: all of them, "
    "those of a section (train), one (train.batch_size), or part of a name (batch).",
}
COMMANDS = {
    "flowtok_jax.data.prepare": "images of any source as shards, checked and counted",
    "flowtok_jax.convert": "the authors' weights to ours, and back",
    "flowtok_jax.convert.parity": "our numbers against the authors'",
    "flowtok_jax.eval.reference": "statistics of real images, for FID",
    "flowtok_jax.eval.score": "scores of captions in a file",
}

config_flags.DEFINE_config_file(
    "config", None, "A file of configs/, with a stage or variant after a colon."
)
flags.DEFINE_enum("mode", "train", tuple(MODES), "What to do; train, unless given.")
flags.DEFINE_string(
    "workdir",
    None,
    "Where a run lives, here or at gs://BUCKET/PATH, else runs/NAME; sampling writes "
    "to a folder in its samples/, pretokenize its shards there.",
)
flags.DEFINE_string(
    "checkpoint",
    None,
    "The weights to use: a run's workdir, a directory of pretrained weights, or the "
    "name of weights that ship with FlowTok; in training, the same as "
    "--config.init_from.",
)
flags.DEFINE_multi_string(
    "lora",
    [],
    "Adapters on top of the weights, once or more: the workdir of a run of "
    "configs/finetune.py:lora or the folder lora in it, with a weight or without",
)
flags.DEFINE_float(
    "minutes",
    None,
    "How long --config=configs/own.py trains, about: its steps are chosen by it.",
    lower_bound=0.1,
)
flags.DEFINE_multi_string("prompt", [], "A caption to draw, as it stands")
flags.DEFINE_string("prompts", None, "Captions to draw, separated by ';'.")
flags.DEFINE_string(
    "prompts_file",
    None,
    "A file with one caption to draw a line, - for standard input; a line that begins "
    "with # is a comment.",
)
flags.DEFINE_multi_string(
    "images",
    [],
    "Images to caption: a file, a directory or a quoted glob",
)
flags.DEFINE_bool("json", False, "Captions as one JSON object a line.")
flags.DEFINE_string(
    "topology", "", "What to compile for, as v5e:16x16 or a100:8; needs no such device."
)
flags.DEFINE_enum("step", "train", STEPS, "What to compile.")
flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen on; 0.0.0.0 lets other machines in."
)
flags.DEFINE_integer("port", 8000, "Port to listen on; 0 takes one that is free.")
flags.DEFINE_integer("seed", 0, "Seed of the noise in sampling, from 0 to 2**32 - 1.")
flags.DEFINE_integer(
    "num_images", 1, "Images of each prompt, of the seeds --seed, --seed + 1, ..."
)
flags.DEFINE_multi_string(
    "from_image",
    [],
    "A PNG that --mode=sample wrote, to draw again bit for bit; once or more.",
)
flags.DEFINE_enum("edit", "edit", tuple(EDIT_KINDS), "What is done with the images.")
flags.DEFINE_string("before", None, "Caption of the images; read off them if absent.")
flags.DEFINE_string(
    "after", None, "Caption to edit to; in combining what the sum should be."
)
flags.DEFINE_float(
    "strength", None, "How much may change, from 0 to 1; absent: 0.5, in varying 0.3."
)
flags.DEFINE_integer("columns", 7, "Pictures from one end to the other one.")
flags.DEFINE_string("solver", None, "Way back along the flow: see docs/editing.md.")
flags.DEFINE_integer("num_steps", None, "Steps of the way, or of drawing.")
flags.DEFINE_float("scale", None, "Guidance on the way, or in drawing; 1 is without.")
flags.DEFINE_bool(
    "print_config", False, "Shows the whole config as the command has it, and ends."
)
cli.define_cluster_flags()


def parse_flags(argv: list[str]) -> Arguments:
    """Parses the command line.

    Raises:
        UserError: saying what was wrong with it.
    """
    argv = find_configs(argv)
    if not named_config(argv) and any(a.startswith(SUITE) for a in argv):
        # A suite has sizes of its own. The config comes first, then what changes it.
        argv = [argv[0], f"--config={DEFAULT}", *argv[1:]]
    argv = check_config_flags(argv)
    named = named_config(argv)
    changes = []
    if not named:  # the config stored with the weights is meant
        changes = [a for a in argv if a.startswith("--config.")]
        argv = [a for a in argv if a not in changes]
    argv = [_as_spelled(argument) for argument in argv]
    try:
        # absl prints a config file's own errors beside raising them.
        with contextlib.redirect_stderr(io.StringIO()):
            rest = flags.FLAGS(argv)
    except (flags.Error, ValueError, TypeError) as error:
        raise flag_error(error) from error
    if len(rest) > 1:
        cure = "expected flags, as in --workdir=DIR"
        if flags.FLAGS.images:  # the shell made paths of a glob
            cure = "expected --images='DIR/*.png' in quotes, or --images=DIR"
        raise UserError(f"what is {rest[1]!r}? {cure}")
    check_seed("--seed", flags.FLAGS.seed)
    return Arguments(flags.FLAGS, named, changes)


def _as_spelled(argument: str) -> str:
    """Returns --from-image=PNG as --from_image=PNG, and so for every flag."""
    name, equals, value = argument.partition("=")
    spelled = name.replace("-", "_").replace("__", "--", 1)
    is_flag = name.startswith("--") and spelled[2:] in flags.FLAGS
    return f"{spelled}{equals}{value}" if is_flag else argument


def help_text() -> str:
    """Returns what --help says: examples, the flags, and other commands."""
    # absl puts the choices before the text: <train|sample>: What to do.
    texts = {
        name: re.sub(r"^<(.*)>: (.*)", r"\2 One of \1.", flags.FLAGS[name].help)
        for name in flags.FLAGS
    }
    texts |= MORE_FLAGS
    lines = [__doc__.strip()]
    for title, group in FLAG_GROUPS.items():
        lines += ["", f"{title}:"]
        for name, value in group.items():
            lines.append(f"  --{name}={value}" if value else f"  --{name}")
            lines += cli.wrap_text(texts[name], " " * 6)
    lines += ["", "Other commands; each has its --help:"]
    for module, text in COMMANDS.items():
        lines += [f"  python -m {module}", f"      {text}"]
    return "\n".join(lines)


def config_help(argv: list[str]) -> str:
    """Returns what --help_config says of the config that other flags name.

    Raises:
        UserError: for a key that does not exist, or flags that are wrong.
    """
    asked = []
    rest = []
    is_asked = False  # whether what follows names a key
    for argument in argv:
        name, _, value = argument.partition("=")
        if name == HELP_CONFIG:
            is_asked = True
            asked += filter(None, value.split(","))
        elif is_asked and not argument.startswith("-"):
            asked += filter(None, argument.split(","))
        else:
            is_asked = False
            rest.append(argument)
    if not named_config(rest):
        rest.append(f"--config={DEFAULT}")
    config = parse_flags(rest).flags.config
    # As in a run, what the command line says goes before a stage's own values.
    drop_overridden(config, config_flags.get_override_values(flags.FLAGS["config"]))
    return describe_keys(config, asked)


def main(argv: list[str] | None = None) -> int:
    """Parses the flags, runs the mode, and returns the exit status.

    Args:
        argv: the program's name and its flags; by default those of this process.
    """
    before = sys.argv
    if argv is not None:
        # Where ml_collections looks for keys of --config; a notebook has its own there.
        sys.argv = argv
    try:
        return _main(sys.argv)
    finally:
        sys.argv = before


def _main(argv: list[str]) -> int:
    def command() -> int:
        if HELP_FLAGS & set(argv[1:]) or argv[1:] == ["help"]:
            cli.say(help_text())
            return 0
        if any(a.partition("=")[0] == HELP_CONFIG for a in argv[1:]):
            cli.say(config_help(argv))
            return 0
        arguments = parse_flags(argv)
        if arguments.flags.print_config:
            cli.say(config_text(json.loads(config_to_json(arguments.shown_config()))))
            return 0
        return MODES[arguments.flags.mode].run(arguments)

    return cli.run_command(command)


if __name__ == "__main__":
    sys.exit(main())
