"""The one door.

    python -m flowtok_jax.main --config=configs/demo.py --workdir=runs/demo
    python -m flowtok_jax.main --mode=sample --checkpoint=runs/demo --prompts="...;..."
    python -m flowtok_jax.main --mode=caption --checkpoint=runs/demo --images="*.png"
    python -m flowtok_jax.main --mode=compile --config=configs/h.py --topology=a100:8

Exit status: 0; 1 where some input files could not be read; 2 for a mistake of the
user's, with one line that says what to do; 130 where interrupted.
"""

import contextlib
import inspect
import io
import json
import logging
import os
import pathlib
import runpy
import sys
import textwrap
import warnings
from typing import Any

import rich.console
import rich.table
from absl import flags
from ml_collections import ConfigDict, config_flags

from flowtok_jax import commands, compilation, pictures, topologies
from flowtok_jax.data.captions import Vocabulary
from flowtok_jax.data.sources import make_source
from flowtok_jax.errors import UserError
from flowtok_jax.eval import runner
from flowtok_jax.models.build import make_nets
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.train import loop
from flowtok_jax.train.steps import TASKS
from flowtok_jax.weights import load_group, load_start, store_random_clip
from flowtok_jax.workdir import (
    CONFIG,
    SAMPLES,
    SUMMARY,
    drop_overridden,
    for_stage,
    open_workdir,
    read_config,
    read_json,
    write_json,
)

WRAP = {"subsequent_indent": "    ", "break_long_words": False}
MODES = ("train", "sample", "caption", "compile")

CONFIG_FLAG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/, with a stage or variant after a colon."
)
MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where a run lives; sampling writes to its samples/."
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


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _inline(value: Any) -> str:
    """A JSON value as `key=value, section(key=value)`, for reading."""
    if not isinstance(value, dict):
        return json.dumps(value)
    parts = (
        f"{k}({_inline(v)})" if isinstance(v, dict) else f"{k}={_inline(v)}"
        for k, v in value.items()
    )
    return ", ".join(parts)


def train(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Trains every stage of the config that is not finished, then sums up."""
    for stage in config.stages:
        if stage not in TASKS:
            raise UserError(f"stages has {stage!r}; wanted some of {', '.join(TASKS)}")
        _check_stage(for_stage(config, stage))
    known_workdir = (workdir / CONFIG).is_file()
    vocabulary = open_workdir(workdir, config)
    if not known_workdir:
        for section, values in read_json(workdir / CONFIG).items():
            _say(textwrap.fill(f"{section}: {_inline(values)}", 88, **WRAP))
    store_random_clip(config, make_nets(config), workdir)
    results = {}
    for stage in config.stages:
        results[stage] = _train_stage(
            for_stage(config, stage), stage, workdir, vocabulary
        )
    summary = {
        "seconds": {s: round(r.seconds, 1) for s, r in results.items()},
        "params_sha256": {s: r.sha256 for s, r in results.items()},
    }
    _summarize(config, workdir, summary)


def _check_stage(config: ConfigDict) -> None:
    """Finds mistakes before the workdir is made this config's."""
    loop.check(config)
    for spec in (config.data.train, config.data.eval):
        make_source(
            spec, image_size=config.tokenizer.image_size, seed=config.train.seed
        )


def _train_stage(
    config: ConfigDict, stage: str, workdir: pathlib.Path, vocabulary: Vocabulary
) -> loop.Result:
    result = loop.finished(config, stage, workdir)
    if result is not None:
        return result
    nets = make_nets(config)
    frozen = {g: load_group(g, nets, config, workdir) for g in TASKS[stage].frozen}
    return loop.train(
        config,
        stage,
        workdir,
        nets=nets,
        frozen=frozen,
        vocabulary=vocabulary,
        evaluate=runner.make_preview(config, stage, vocabulary, frozen),
        load_start=lambda: load_start(stage, nets, config),
    )


def _summarize(config: ConfigDict, workdir: pathlib.Path, summary: dict) -> None:
    """Writes summary.json and the pictures, unless those of these weights are there."""
    path = workdir / SUMMARY
    stored = read_json(path) if path.is_file() else {}
    digests = stored.get("params_sha256", {}) | summary["params_sha256"]
    if digests != stored.get("params_sha256"):
        seconds = stored.get("seconds", {}) | summary["seconds"]
        summary = {"params_sha256": digests, "seconds": seconds}
        if config.data.eval.startswith("shapes") and set(digests) == set(TASKS):
            flowtok = FlowTok.from_workdir(workdir, config)
            values, grids = runner.summarize_scenes(
                flowtok, samples=config.eval.samples, seed=config.train.seed
            )
            for name, grid in grids.items():
                pictures.save_png(workdir / SAMPLES / f"{name}.png", grid)
            summary = values | summary
        write_json(path, summary)
    _show(read_json(path), workdir)


def _show(summary: dict, workdir: pathlib.Path) -> None:
    """The summary as a table."""
    table = rich.table.Table(title=str(workdir / SUMMARY))
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in summary.items():
        if isinstance(value, dict):
            for stage, part in value.items():
                text = part[:12] if isinstance(part, str) else f"{part:.1f}"
                table.add_row(f"{name} {stage}", text)
        else:
            text = f"{value:.4f}" if isinstance(value, float) else str(value)
            table.add_row(name, text)
    console = rich.console.Console()
    console.print(table)
    for path in sorted((workdir / SAMPLES).glob("*.png")):
        console.print(f"picture: {path}", soft_wrap=True, highlight=False)


def _flowtok(config: ConfigDict | None) -> FlowTok:
    """The weights of --checkpoint, else of --workdir."""
    place = CHECKPOINT.value or WORKDIR.value
    if not place:
        raise UserError(
            "no weights named; wanted --checkpoint=DIR, a run's workdir or a directory "
            "of pretrained weights"
        )
    if not pathlib.Path(place).is_dir():
        raise UserError(
            f"checkpoint {place} does not exist; wanted a run's workdir or a directory "
            "of pretrained weights"
        )
    return FlowTok.from_pretrained(place, config)


def _tower_note() -> str:
    """What to say of weights whose text tower was never trained; else nothing."""
    stored = read_config(pathlib.Path(CHECKPOINT.value or WORKDIR.value))
    is_random = "text" in stored and stored.text.weights == "random"
    return runner.RANDOM_TOWER if is_random else ""


def _sample(config: ConfigDict | None) -> int:
    prompts = commands.split_prompts(PROMPTS.value, PROMPTS_FILE.value)
    flowtok = _flowtok(config)
    folder = pathlib.Path(WORKDIR.value or CHECKPOINT.value) / SAMPLES
    try:
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
    flowtok = _flowtok(config)
    failed = commands.caption(flowtok, IMAGES.value, SEED.value, JSON.value, _say)
    note = _tower_note()
    if note:
        logging.info(note)
    return 1 if failed else 0


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


def run() -> int:
    """Does what the flags say, and returns the exit status."""
    config = CONFIG_FLAG.value
    if MODE.value == "sample":
        return _sample(config)
    if MODE.value == "caption":
        return _caption(config)
    if config is None:
        raise UserError("no config named; wanted --config=configs/demo.py, say")
    if MODE.value == "compile":
        return _compile(config)
    if not WORKDIR.value:
        raise UserError("no workdir named; wanted --workdir=runs/demo, say")
    if CHECKPOINT.value:
        _start_from_checkpoint(config)
    train(config, pathlib.Path(WORKDIR.value))
    return 0


class _OneLine(logging.Formatter):
    """Messages as a person reads them: a level only where something is wrong."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        plain = record.levelno < logging.WARNING
        return text if plain else f"{record.levelname.lower()}: {text}"


def _set_up_logging() -> None:
    """Our own messages from INFO on, libraries' from WARNING on; all to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("absl", "jax", "orbax", "grain", "httpx", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Of transformers, which advises everyone to install PyTorch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    warnings.filterwarnings("ignore", module=r"(orbax|tensorboardX|google)\b")


def _check_config_flags(argv: list[str]) -> None:
    """Refuses a config file that is not there, and keys that it does not have.

    ml_collections would raise too, with a traceback and without the file's keys.
    """
    spaced = " ".join(argv[1:]).replace("--config ", "--config=").split()
    named = [a.partition("=")[2] for a in spaced if a.startswith("--config=")]
    if not named:
        orphans = [a for a in spaced if a.startswith("--config.")]
        if orphans:
            raise UserError(
                f"{orphans[0].partition('=')[0]} needs a --config=FILE beside it, the "
                "one that the weights were trained with"
            )
        return
    path, _, variant = named[-1].partition(":")
    if not pathlib.Path(path).is_file():
        raise UserError(
            f"--config={path} does not exist; wanted a file of configs/, such as "
            "configs/demo.py"
        )
    get_config = runpy.run_path(path)["get_config"]
    if variant and not inspect.signature(get_config).parameters:
        raise UserError(f"--config={path} takes no argument; got {variant!r}")
    config = get_config(*([variant] if variant else []))
    for argument in spaced:
        if argument.startswith("--config."):
            _check_key(config, argument.partition("=")[0])


def _check_key(config: ConfigDict, flag: str) -> None:
    section, path = config, []
    for name in flag.removeprefix("--config.").split("."):
        known = list(section.keys()) if isinstance(section, ConfigDict) else []
        if name not in known:
            where = ".".join(path) or "the config"
            raise UserError(
                f"{flag}: no such key; {where} has {', '.join(known) or 'no keys'}"
            )
        section, path = section[name], [*path, name]


def _parse_flags(argv: list[str]) -> None:
    """Parses the flags; a UserError says what was wrong with them."""
    _check_config_flags(argv)
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


def main(argv: list[str]) -> int:
    """Parses the flags and runs; a user's mistake ends in one line."""
    if {"--help", "-h", "--helpshort", "--helpfull"} & set(argv[1:]):
        _say(__doc__ + flags.FLAGS.module_help(sys.modules[__name__]))
        return 0
    try:
        _parse_flags(argv)
        _set_up_logging()
        return run()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on from here\n")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv))
