"""Repositories of the Hugging Face hub, which stand in for a local directory."""

import difflib
import pathlib
import re
from collections.abc import Iterable

from flowtok_jax.runtime.errors import UserError, reason_of
from flowtok_jax.runtime.files import Place, to_place
from flowtok_jax.runtime.paths import list_shipped


def find_directory(
    source: str | Place,
    *,
    files: Iterable[str],
    local_files_only: bool = False,
) -> Place:
    """Finds a directory, or downloads the repository OWNER/NAME where none exists.

    Args:
        files: patterns of the files to download.
        local_files_only: looks for a repository in the hub's cache only.

    Raises:
        UserError: where neither exists, or a folder OWNER exists here without NAME.
    """
    path = to_place(source)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{source} is a file; expected the directory it is in")
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", str(source)):
        names = ", ".join(list_shipped())
        shipped = f", weights that ship with FlowTok ({names})" if names else ""
        raise UserError(
            f"{source} does not exist; expected a directory{shipped}, or a hub id "
            "OWNER/NAME"
        )
    import huggingface_hub  # slow to import, and needed only here

    # As written it is a path too, and runs/dmeo a typing error: not asked of the hub.
    is_path = path.parent.is_dir()
    try:
        found = huggingface_hub.snapshot_download(
            str(source),
            allow_patterns=list(files),
            local_files_only=local_files_only or is_path,
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        if is_path:
            raise UserError(_unlike_any(path)) from error
        reason = reason_of(error)
        where = "the hub's cache" if local_files_only else "the hub"
        raise UserError(
            f"{source} does not exist here and was not found in {where} ({reason})"
        ) from error
    return pathlib.Path(found)


def _unlike_any(path: Place) -> str:
    """Says that a folder has no directory of a name, and what to do."""
    there = sorted(p.name for p in path.parent.iterdir() if p.is_dir())
    near = difflib.get_close_matches(path.name, there, n=1)
    meant = f"did you mean {path.parent / near[0]}? " if near else ""
    return (
        f"{path} does not exist in the folder {path.parent}; {meant}The hub's "
        f"repository of that name is fetched by `hf download {path} --local-dir={path}`"
    )
