"""Claims of folders: a marker says what made a folder, and refuses other makers."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import LOCK, Place, flatten, read_json, write_json

NAMED = 4  # values that a message about differing ones shows


def _shown(values: Mapping[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "absent"


def check_claim(
    marker: Place,
    made_by: Mapping[str, Any],
    *,
    complaint: str = "was made otherwise",
    cure: str,
    is_free: Callable[[str], bool] = lambda key: False,
    before: Mapping[str, Any] | None = None,
) -> bool:
    """Refuses a folder whose marker says that something else made it.

    Args:
        marker: JSON file in the folder; without one there is nothing to refuse.
        made_by: what the folder's content depends on.
        complaint: what to say of a folder that is refused.
        cure: what to do about it.
        is_free: says of a dotted key that its value may differ.
        before: by dotted key, the values that versions without the key worked with.

    Returns:
        Whether there is a marker.

    Raises:
        UserError: naming the values that differ.
    """
    if not marker.is_file():
        return False
    # Through JSON, which has lists for tuples and texts for keys.
    there = flatten(read_json(marker))
    here = flatten(json.loads(json.dumps(made_by)))
    there = {key: x for key, x in (before or {}).items() if key in here} | there
    differing = [
        f"{key} is {_shown(there, key)} there, {_shown(here, key)} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key) and not is_free(key)
    ]
    if differing:
        more = len(differing) - NAMED
        named = "; ".join(differing[:NAMED]) + (f" and {more} more" * (more > 0))
        raise UserError(f"{marker.parent} {complaint}: {named}; {cure}")
    return True


def claim(
    marker: Place,
    made_by: Mapping[str, Any],
    *,
    cure: str,
    must_be_new: bool = False,
) -> None:
    """Makes the marker's folder that of `made_by`; see `check_claim`.

    Args:
        must_be_new: refuse a folder that has no marker but something else.

    Raises:
        UserError: if the folder is something else's.
    """
    if check_claim(marker, made_by, cure=cure):
        return
    folder = marker.parent
    # An empty folder may be claimed.
    is_taken = must_be_new and folder.exists()
    if is_taken and (
        not folder.is_dir() or {f.name for f in folder.iterdir()} - {LOCK}
    ):
        raise UserError(f"{folder} exists already and has no {marker.name}; {cure}")
    write_json(marker, made_by)
