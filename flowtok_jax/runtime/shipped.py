"""Weights that ship with the package, by name: assets/NAME in a checkout, and
share/assets/NAME in an installed package.
"""

import logging
import pathlib

from flowtok_jax.runtime.config import HOME
from flowtok_jax.runtime.errors import UserError

ASSETS = HOME / "assets"
MARK = "config.json"  # of a directory of weights; assets/ also has pictures


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
