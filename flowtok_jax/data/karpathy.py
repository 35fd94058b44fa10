"""Records of Karpathy's JSON and a folder of its images."""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from flowtok_jax.data import globs
from flowtok_jax.data.captions import CaptionOptions
from flowtok_jax.data.folder import Entry, Files, inner_path, source_directory
from flowtok_jax.runtime.errors import UserError


def open_karpathy(
    arguments: str,
    captions: CaptionOptions = CaptionOptions(),  # noqa: B008 (immutable)
) -> Files:
    """Lists JSON:IMAGEDIR:SPLIT: Karpathy's dataset_coco.json and a folder of images;
    several splits are joined by `+`, as in train+restval.

    Raises:
        UserError: if a file or folder is missing, or the JSON lacks the split.
    """
    source = f"karpathy:{arguments}"
    parts = globs.split_karpathy(arguments)
    if len(parts) != 3:
        raise UserError(f"source {source}; expected karpathy:JSON:IMAGEDIR:SPLIT")
    root = source_directory(parts[1], source)
    rows = read_karpathy(parts[0], parts[2])
    return Files(source, [_sentences(root, row) for row in rows], captions, root)


def read_karpathy(json_file: str, split: str) -> list[Mapping[str, Any]]:
    """Reads the rows of a split from a file of Karpathy's; see `karpathy_rows`."""
    path = pathlib.Path(json_file)
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not Karpathy's JSON ({error})") from error
    return karpathy_rows(content, str(path), split)


def karpathy_rows(content: Any, name: str, split: str) -> list[Mapping[str, Any]]:
    """Returns the rows of the images of a split, or of several joined by `+`.

    Args:
        content: value of Karpathy's JSON.
        name: file name, for messages.

    Raises:
        UserError: if the content has another form, or lacks the split.
    """
    try:
        rows = content["images"]
        splits = {str(row["split"]) for row in rows}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{name} is not Karpathy's JSON ({error}); expected dataset_coco.json or a "
            "file of the same form"
        ) from error
    asked = set(split.split("+"))
    if not asked <= splits:
        raise UserError(
            f"{name} has no split {', '.join(sorted(asked - splits))}; it has "
            f"{', '.join(sorted(splits))}"
        )
    return [row for row in rows if str(row["split"]) in asked]


def _sentences(root: pathlib.Path, row: Mapping[str, Any]) -> Entry:
    """Makes the entry of an image with its sentences."""
    name = f"{row.get('filepath') or '.'}/{row.get('filename') or ''}"
    path = inner_path(root, name)
    if path is None:
        return Entry(f"{root}:{name}", fault="unsafe_name")
    # Some people keep all images in one folder.
    in_one = root / path.name
    if not os.path.isfile(path) and os.path.isfile(in_one):
        path = in_one
    sentences = row.get("sentences")
    sentences = sentences if isinstance(sentences, list) else []
    texts = [x.get("raw") if isinstance(x, dict) else None for x in sentences]
    rest = {key: row[key] for key in ("cocoid", "imgid", "split") if key in row}
    return Entry(str(path), image=path, captions=texts, metadata=rest)
