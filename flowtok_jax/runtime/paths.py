"""Paths as people write them: with `~`, as file:// URLs, in another spelling; and what
lies with the package: configs, and weights by name.
"""

import logging
import os
import pathlib
import re
import unicodedata
import urllib.parse

from flowtok_jax.runtime.errors import UserError

_PACKAGE = pathlib.Path(__file__).parents[1]
_SHARE = _PACKAGE / "share"
# A wheel carries configs and weights inside the package; a checkout has them beside
# it.
HOME = _SHARE if _SHARE.is_dir() else _PACKAGE.parent
# Weights that ship with the package: assets/NAME in a checkout.
ASSETS = HOME / "assets"
MARK = "config.json"  # of a directory of weights; assets/ also has pictures


def expand_path(text: str) -> str:
    """Replaces what a shell or a browser wrote in a path: `~`, `~user` and file://.

    A relative path that exists as it is written stays so, unless `~` alone begins it.

    Raises:
        UserError: if the text cannot be a path of this machine.
    """
    if re.match(r"file:(/|[A-Za-z]:[/\\])", text):
        text = _from_url(text)
    try:
        # What the system itself would refuse, with a traceback, at every call.
        if b"\0" in os.fsencode(text):
            raise ValueError("it has a NUL character")
    except ValueError as error:  # UnicodeEncodeError is one
        raise UserError(f"{text!r} is no path: {error}") from error
    if "://" in text:  # of a store
        return text
    first = re.split(r"[/\\]", text)[0]
    if first != "~" and os.path.lexists(first):
        return _as_spelled(text)
    if first.startswith("~"):
        return _from_home(text)
    if re.match(r"[A-Za-z]:[/\\]", text) and os.name != "nt":
        raise UserError(
            f"{text} is a path of Windows; expected one of this machine (WSL has "
            f"/mnt/{text[0].lower()}/), or ./{text} for that very name"
        )
    # Single quotes keep the shell from doing so, and a folder "$HOME" would be made.
    if (meant := os.path.expandvars(text)) != text and not os.path.lexists(text):
        raise UserError(
            f"{text} has a variable that the shell left as it is; expected {meant}, by "
            "double quotes instead of single ones"
        )
    return _as_spelled(text)


def _as_spelled(text: str) -> str:
    """Returns a path or glob in the spelling that exists, where another one does not.

    A backslash before a space comes from a shell; and macOS writes the two characters
    of `ü` where a keyboard writes one, so that names look alike and differ.
    """

    def exists(path: str) -> bool:
        fixed, *pattern = re.split(r"[*?\[{]", path, maxsplit=1)
        return os.path.lexists(os.path.dirname(fixed) if pattern else fixed)

    spellings = (
        text,
        text.replace("\\ ", " "),
        unicodedata.normalize("NFC", text),
        unicodedata.normalize("NFD", text),
    )
    return next((path for path in spellings if exists(path)), text)


def _from_url(url: str) -> str:
    """Returns the path of file:/PATH, file:///PATH or file://localhost/PATH."""
    path = url.removeprefix("file:")
    if path.startswith("//"):
        host, slash, path = path[2:].partition("/")
        if host not in ("", "localhost"):
            raise UserError(f"{url} is of another machine; expected file:///PATH")
        path = slash + path
    if os.name == "nt":  # file:///C:/x
        path = re.sub(r"^/(?=[A-Za-z]:)", "", path)
    # Browsers write %20 for a space; a name may have a % of its own.
    return path if os.path.lexists(path) else urllib.parse.unquote(path)


def _from_home(text: str) -> str:
    """Returns the path of ~/PATH or ~USER/PATH."""
    path = os.path.expanduser(text)
    if path == text:
        raise UserError(
            f"{text}: this machine has no such user; expected ~/PATH for your own "
            f"home, or ./{text} for that very name"
        )
    return path


def list_shipped() -> list[str]:
    """Returns the names of all weights that ship with the package."""
    return sorted(path.parent.name for path in ASSETS.glob(f"*/{MARK}"))


def find_shipped(name: str) -> pathlib.Path | None:
    """Returns the directory of shipped weights; None where a name is not of any, or of
    a folder of weights in the working directory, which goes before and is said.

    Raises:
        UserError: where something else has the name here, so that either may be meant.
    """
    if name not in list_shipped():
        return None
    shipped = ASSETS / name
    here = pathlib.Path(name)
    if not here.exists() or here.samefile(shipped):
        return shipped
    if (here / MARK).exists() or (here / "checkpoints").exists():
        logging.info("%s: the folder here, not the weights %s", name, shipped)
        return None
    raise UserError(
        f"{name} is a path here without weights, and the name of weights that ship "
        f"with FlowTok; expected ./{name} for the one, {shipped} for the others"
    )
