"""Repositories of the Hugging Face hub, which stand in for a local directory."""

import pathlib
import re
from collections.abc import Iterable

from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place, to_place


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
        UserError: where neither exists.
    """
    path = to_place(source)
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{source} is a file; expected the directory it is in")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise UserError(
            f"{source} does not exist; expected a directory, or a hub id OWNER/NAME"
        )
    import huggingface_hub  # slow to import, and needed only here

    try:
        found = huggingface_hub.snapshot_download(
            str(source), allow_patterns=list(files), local_files_only=local_files_only
        )
    except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        where = "the hub's cache" if local_files_only else "the hub"
        raise UserError(
            f"{source} does not exist here and was not found in {where} ({reason})"
        ) from error
    return pathlib.Path(found)
