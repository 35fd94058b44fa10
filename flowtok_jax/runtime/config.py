"""What the command line says of a config file, before it is loaded for good."""

import importlib.machinery
import importlib.util
import inspect
import pathlib
import runpy
import sys

from ml_collections import ConfigDict

from flowtok_jax.runtime.errors import UserError

_PACKAGE = pathlib.Path(__file__).parents[1]
_SHARE = _PACKAGE / "share"
# A wheel carries the configs inside the package; a checkout has them beside it.
HOME = _SHARE if _SHARE.is_dir() else _PACKAGE.parent


def find_config(value: str) -> str:
    """Returns a value of --config whose path exists, PATH or PATH:VARIANT.

    A path that leads nowhere from the working directory is looked up among the configs
    that come with the package, where `configs/h.py:1` and `h.py:1` are the same file.

    Raises:
        UserError: no place has such a file.
    """
    path, colon, variant = value.partition(":")
    configs = HOME / "configs"
    for place in (pathlib.Path(path), HOME / path, configs / path):
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


def check_config_flags(argv: list[str]) -> None:
    """Refuses keys and variants that a config file does not have.

    ml_collections would raise too, with a traceback and without the file's keys.

    Args:
        argv: arguments as `find_configs` returns them.
    """
    path, _, variant = named_config(argv).partition(":")
    if not path:
        return
    _make_importable(path)
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
