"""Captions in JSON files: references as COCO and Karpathy keep them, COCO's results.

A results file is what COCO's server takes: [{"image_id": int, "caption": str}, ...].
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from flowtok_jax.data.folder import karpathy_rows
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import Place, to_place


def image_id(metadata: Mapping[str, Any], index: int) -> int:
    """The number of an image in its data set, by what is known of it; else its index.

    Karpathy's files of Flickr images have no `cocoid`.
    """
    for key in ("cocoid", "image_id", "imgid"):
        if isinstance(metadata.get(key), int):
            return metadata[key]
    return index


def read_references(path: str | Place, split: str = "test") -> dict[int, list[str]]:
    """Captions by image of COCO's annotations (captions_val2014.json), or of a split of
    Karpathy's dataset_coco.json; several splits are joined by `+`.

    Raises:
        UserError: where the file is neither, or an image is listed twice.
    """
    content = _read(path)
    if isinstance(content, dict) and "annotations" in content:
        pairs = [(row["image_id"], row["caption"]) for row in _rows(path, content)]
        found: dict[int, list[str]] = {}
        for image, caption in pairs:
            found.setdefault(image, []).append(caption)
        return found
    rows = karpathy_rows(content, str(path), split)
    try:
        pairs = [
            (image_id(row, i), [sentence["raw"] for sentence in row["sentences"]])
            for i, row in enumerate(rows)
        ]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not Karpathy's JSON ({error!r} in a row); wanted "
            "dataset_coco.json or one of the same form"
        ) from error
    return _once(path, pairs)


def _rows(path: str | Place, content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rows = content["annotations"]
    if not _are_captions(rows):
        raise UserError(
            f"{path} has annotations without image_id and caption; wanted COCO's "
            "captions, such as captions_val2014.json"
        )
    return rows


def _are_captions(rows: Any) -> bool:
    return isinstance(rows, list) and all(
        isinstance(row, dict)
        and isinstance(row.get("image_id"), int)
        and isinstance(row.get("caption"), str)
        for row in rows
    )


def read_results(path: str | Place) -> dict[int, str]:
    """The caption of each image of a results file.

    Raises:
        UserError: where the file is none, or an image is listed twice.
    """
    rows = _read(path)
    if not _are_captions(rows):
        raise UserError(
            f"{path} is no results file; wanted a list of "
            '{"image_id": 42, "caption": "a dog"}'
        )
    return _once(path, [(row["image_id"], row["caption"]) for row in rows])


def _read(path: str | Place) -> Any:
    try:
        return json.loads(to_place(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def _once(path: str | Place, pairs: Iterable[tuple[int, Any]]) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for image, value in pairs:
        if image in found:
            raise UserError(f"{path} has image {image} twice; wanted each image once")
        found[image] = value
    return found
