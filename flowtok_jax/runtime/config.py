"""What the command line says of a config file, before it is loaded for good."""

import inspect
import pathlib
import runpy

from ml_collections import ConfigDict

from flowtok_jax.runtime.errors import UserError


def named_config(argv: list[str]) -> str:
    """The value of --config, the last one; empty where there is none."""
    named = ""
    for argument, after in zip(argv, [*argv[1:], ""], strict=True):
        name, _, value = argument.partition("=")
        if name == "--config":
            named = value or after
    return named


def check_config_flags(argv: list[str]) -> None:
    """Refuses a config file that is not there, and keys that it does not have.

    ml_collections would raise too, with a traceback and without the file's keys.
    """
    path, _, variant = named_config(argv).partition(":")
    if not path:
        return
    if not pathlib.Path(path).is_file():
        raise UserError(
            f"--config={path} does not exist; wanted a file of configs/, such as "
            "configs/demo.py"
        )
    get_config = runpy.run_path(path)["get_config"]
    if variant and not inspect.signature(get_config).parameters:
        raise UserError(f"--config={path} takes no argument; got {variant!r}")
    config = get_config(*([variant] if variant else []))
    for argument in argv:
        if argument.startswith("--config."):
            check_key(config, argument.partition("=")[0])


def check_key(config: ConfigDict, flag: str) -> None:
    """Refuses a flag --config.KEY of a key that the config does not have."""
    section, path = config, []
    for name in flag.removeprefix("--config.").split("."):
        known = list(section.keys()) if isinstance(section, ConfigDict) else []
        if name not in known:
            where = ".".join(path) or "the config"
            raise UserError(
                f"{flag}: no such key; {where} has {', '.join(known) or 'no keys'}"
            )
        section, path = section[name], [*path, name]
