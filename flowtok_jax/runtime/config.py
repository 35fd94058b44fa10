"""Configs: their files, their stages' deltas, their keys, and as JSON."""

import functools
import importlib.machinery
import importlib.util
import inspect
import json
import math
import numbers
import operator
import pathlib
import re
import runpy
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from flowtok_jax.runtime.errors import UserError, short_repr
from flowtok_jax.runtime.files import flatten
from flowtok_jax.runtime.paths import HOME, expand_path

SEEDS = 2**32  # seeds are 0, ..., SEEDS - 1: what a key of JAX holds without x64


def find_config(value: str) -> str:
    """Returns a value of --config whose path exists, PATH or PATH:VARIANT.

    A path that leads nowhere from the working directory is looked up among the configs
    that come with the package, where `configs/h.py:1` and `h.py:1` are the same file.

    Raises:
        UserError: no place has such a file.
    """
    path, colon, variant = value.partition(":")
    configs = HOME / "configs"
    for place in (pathlib.Path(expand_path(path)), HOME / path, configs / path):
        if place.is_file():
            return f"{place}{colon}{variant}"
    names = sorted(f"configs/{p.name}" for p in configs.glob("[!_]*.py"))
    raise UserError(
        f"--config={path} does not exist, and does not come with FlowTok either; "
        f"expected a file of your own, or one of {', '.join(names)}"
    )


def find_configs(argv: list[str]) -> list[str]:
    """Returns the arguments with each --config as `find_config` has it."""
    found = []
    for before, argument in zip(["", *argv], argv, strict=False):
        name, _, value = argument.partition("=")
        if before == "--config":
            argument = find_config(argument)
        elif name == "--config" and value:
            argument = f"--config={find_config(value)}"
        found.append(argument)
    return found


def _make_importable(path: str) -> None:
    """Lets a config file import others by `from configs import NAME`.

    NAME is a file beside it, where its folder is called configs, or one that comes with
    the package. Python itself would look in the working directory and among installed
    packages, where `configs` may be missing or another project's.
    """
    folders = [str(HOME / "configs")]
    folder = pathlib.Path(path).resolve().parent
    if folder.name == "configs" and str(folder) not in folders:
        folders.insert(0, str(folder))
    spec = importlib.machinery.ModuleSpec("configs", None, is_package=True)
    spec.submodule_search_locations = folders
    sys.modules["configs"] = importlib.util.module_from_spec(spec)


def named_config(argv: list[str]) -> str:
    """Returns the value of the last --config; "" where there is none."""
    named = ""
    for argument, after in zip(argv, [*argv[1:], ""], strict=True):
        name, _, value = argument.partition("=")
        if name == "--config":
            named = value or after
    return named


def _run_config(path: str, variant: str) -> ConfigDict:
    """Returns the config that a file makes.

    Raises:
        UserError: the config's own, or one that says where the file is wrong.
    """
    _make_importable(path)
    try:
        names = runpy.run_path(path)
        if "get_config" not in names:
            raise UserError(
                f"--config={path} defines no get_config; expected a function "
                "`get_config(variant)` that returns a config, as in configs/demo.py"
            )
        get_config = names["get_config"]
        if variant and not inspect.signature(get_config).parameters:
            raise UserError(f"--config={path} takes no argument; got {variant!r}")
        return get_config(*([variant] if variant else []))
    except UserError:
        raise
    except Exception as error:  # whatever a file of the user's may raise
        lines = [
            f.lineno
            for f in traceback.extract_tb(error.__traceback__)
            if f.filename == path
        ]
        # A file that is no Python has no frame of its own.
        line = getattr(error, "lineno", None) or (lines[-1] if lines else "?")
        said = " ".join(str(getattr(error, "msg", None) or error).split())
        raise UserError(
            f"--config={path} cannot be used: line {line}: "
            f"{type(error).__name__}: {said}"
        ) from error


# What absl and ml_collections say of a value, and what they want.
_EXPECTED = (
    (r"invalid literal for int\(\).*", "expected a whole number"),
    (r"could not convert string to float.*", "expected a number"),
    (r"\('Non-boolean argument to boolean flag'.*", "expected true or false"),
    (r"Failed to parse .* as a ConfigDict.*", "it has keys; name one, as in NAME.KEY"),
)


def flag_error(error: Exception) -> UserError:
    """Makes the error of a flag's value say what was expected, where that is known."""
    text = str(error)
    for said, expected in _EXPECTED:
        text = re.sub(rf"^flag (.*?: ){said}$", rf"\1{expected}", text, flags=re.S)
    return UserError(text)


def check_config_flags(argv: list[str]) -> list[str]:
    """Refuses keys and variants that a config file does not have.

    ml_collections would raise too, with a traceback and without the file's keys.

    Args:
        argv: arguments as `find_configs` returns them.

    Returns:
        The arguments, see `check_changes`.
    """
    path, _, variant = named_config(argv).partition(":")
    return check_changes(_run_config(path, variant), argv) if path else argv


def check_changes(config: ConfigDict, argv: list[str]) -> list[str]:
    """Refuses flags --config.KEY=VALUE of keys that a config does not have, and tuples
    of other things than the config's.

    Returns:
        The arguments, with tuples written as Python writes them.
    """
    checked = []
    for argument in argv:
        flag, equals, given = argument.partition("=")
        if flag.startswith("--config."):
            like = check_key(config, flag)
            if isinstance(like, tuple) and equals:
                argument = f"{flag}={_read_tuple(flag, given, like)!r}"
        checked.append(argument)
    return checked


def _read_tuple(flag: str, given: str, like: tuple) -> tuple:
    """Reads a tuple of the same kind of things; brackets and quotes may be absent.

    ml_collections would take anything for it: "0.5,x", None, a dict, and texts without
    quotes as one text with a comma.
    """
    inner = given.strip()
    if inner[:1] + inner[-1:] in ("()", "[]"):
        inner = inner[1:-1]
    parts = [part.strip() for part in inner.split(",")]
    parts = parts[:-1] if not parts[-1] else parts  # "(4,)", and "" for no values
    if not like or isinstance(like[0], str):
        return tuple(part.strip("\"'") for part in parts)
    is_whole = all(isinstance(value, int) for value in like)
    try:
        values = tuple(map(int if is_whole else _number, parts))
    except ValueError as error:
        kind = "whole numbers" if is_whole else "numbers"
        raise UserError(
            f"{flag}={given}: expected {kind}, as in {','.join(map(str, like))}"
        ) from error
    if not is_whole and len(values) != len(like):  # a range, or a pair of decays
        raise UserError(
            f"{flag}={given}: expected {len(like)} numbers, as in "
            f"{','.join(map(str, like))}"
        )
    return values


def _number(text: str) -> float:
    """Reads a number that Python can read back; its "inf" is a name to itself."""
    if math.isnan(number := float(text)):
        raise ValueError(text)
    return max(-sys.float_info.max, min(number, sys.float_info.max))


def check_key(config: ConfigDict, flag: str) -> Any:
    """Returns the value of the key that a flag --config.KEY changes.

    Raises:
        UserError: for a key that the config does not have.
    """
    section = config
    path = []
    for name in flag.removeprefix("--config.").split("."):
        known = list(section.keys()) if isinstance(section, ConfigDict) else []
        if name not in known:
            where = ".".join(path) or "the config"
            raise UserError(
                f"{flag}: no such key; {where} has {', '.join(known) or 'no keys'}"
            )
        section = section[name]
        path.append(name)
    return section


def check_values(config: ConfigDict) -> None:
    """Refuses values that no stage can use: seeds that are none, and no stages.

    Raises:
        UserError: naming the key.
    """
    for key, value in flatten(config.to_dict()).items():
        if key.rpartition(".")[2] == "seed":
            check_seed(key, value)
    # A pretrained directory's config has no stages.
    if "stages" in config and not config.stages:
        raise UserError("stages is empty; expected at least one, as in t2i")


def check_seed(name: str, value: Any) -> int:
    """Validates a seed and returns it as a Python int, with the value that it had.

    JAX would take a seed of 2**32 as 0 and NumPy would refuse -1, so that one number
    would mean different things in different places.

    Args:
        name: what the user calls it: a flag, a key of the config or an argument.
        value: any integer, of NumPy or JAX too; True and False are none.

    Raises:
        UserError: if it is no integer from 0 to 2**32 - 1.
    """
    try:
        seed = operator.index(value)
    except TypeError:
        seed = -1
    if isinstance(value, bool) or not 0 <= seed < SEEDS:
        raise UserError(
            f"{name} is {short_repr(value)}; expected an integer from 0 to 2**32 - 1"
        )
    return seed


def choose_seeds(seed: int, count: int, name: str = "num_images") -> range:
    """Returns the seeds of so many images of a prompt, or captions of an image.

    Args:
        name: what the user calls the count.

    Raises:
        UserError: where there is none, or one larger than a seed may be.
    """
    first = check_seed("seed", seed)
    is_whole = isinstance(count, numbers.Integral) and count is not True
    if not is_whole or count < 1:
        raise UserError(f"{name} is {count}; expected an integer from 1")
    if first + count > SEEDS:
        raise UserError(
            f"seed {seed} with {name} {count} needs seeds up to "
            f"{first + count - 1}; expected at most {SEEDS - 1}"
        )
    return range(first, first + count)


def seeds_of_rows(
    seed: int | Sequence[int], count: int, rows: int, name: str = "num_images"
) -> Sequence[int | Sequence[int]]:
    """Returns the seeds of each of so many runs: one for all rows, or one a row.

    Args:
        name: what the user calls the count.

    Raises:
        UserError: where a seed is none, or their number is not that of the rows.
    """
    if not isinstance(seed, Sequence) or isinstance(seed, str):
        return choose_seeds(seed, count, name)
    if len(seed) != rows:
        raise UserError(f"{len(seed)} seeds for {rows} rows; expected one each")
    own = [choose_seeds(each, count, name) for each in seed]
    return list(zip(*own, strict=True))


@functools.cache
def default_values() -> dict[str, Any]:
    """Returns the values of configs/default.py by their dotted keys, as JSON has them.

    A new key's default is what versions without the key did.
    """
    defined = runpy.run_path(str(HOME / "configs" / "default.py"))
    return flatten(json.loads(config_to_json(defined["get_config"]())))


# Sections of which all weights store what their version knew.
OF_NETWORKS = ("clip", "compute")


def add_new_keys(config: ConfigDict, *sections: str) -> None:
    """Adds the keys of sections that a config stored by an older version lacks.

    Args:
        sections: those that the config does not have stay away.
    """
    known = flatten(config.to_dict())
    for key, value in default_values().items():
        *path, last = key.split(".")
        if key in known or path[:1] not in [[s] for s in sections if s in config]:
            continue
        section = config
        with config.unlocked():
            for part in path:
                if part not in section:
                    section[part] = ConfigDict()
                section = section[part]
            section[last] = tuple(value) if isinstance(value, list) else value


def for_stage(config: ConfigDict, stage: str) -> ConfigDict:
    """Returns the config of one stage: its deltas put over the shared keys.

    Raises:
        UserError: for a delta of a key that does not exist.
    """
    resolved = config.copy_and_resolve_references()
    if stage in config.per_stage:
        known = flatten(config.to_dict())
        for key in flatten(config.per_stage[stage].to_dict()):
            if key not in known:
                raise UserError(
                    f"per_stage.{stage}.{key} is no key of the config; expected the "
                    "name of one, such as train.num_steps"
                )
        with resolved.unlocked():
            resolved.update(config.per_stage[stage])
    return resolved


def drop_overridden(config: ConfigDict, overrides: Mapping[str, Any]) -> None:
    """Makes keys given on the command line win over the stages' own values.

    A key given for a stage too, as per_stage.STAGE.KEY, wins over both.
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
    """Writes a config as indented JSON, keys sorted."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def config_from_json(text: str) -> ConfigDict:
    """Inverts `config_to_json`; lists become tuples again."""

    def tuples(value):
        if isinstance(value, dict):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(value) if isinstance(value, list) else value

    return ConfigDict(tuples(json.loads(text)))
