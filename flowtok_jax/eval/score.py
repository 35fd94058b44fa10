"""Scores a file of captions against those that people wrote.

    python -m flowtok_jax.eval.score --results=captions.json \\
        --references=dataset_coco.json --split=test

The results are in COCO's form: [{"image_id": 42, "caption": "a dog"}, ...]. A table
goes to stderr; the last line of stdout is one JSON object with `metrics`,
`not_measured` and `protocol`. References are COCO's or Karpathy's. Exit status: 0, or 2
for a mistake of the user's, with one line.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flowtok_jax.data.karpathy import karpathy_rows
from flowtok_jax.eval.captions import Scores, score_captions
from flowtok_jax.eval.real import image_id
from flowtok_jax.runtime import cli
from flowtok_jax.runtime.errors import StoreError, UserError, reason_of
from flowtok_jax.runtime.files import Place, read_json, to_place


def read_references(path: str | Place, split: str = "test") -> dict[int, list[str]]:
    """Reads captions by image, of COCO's annotations (captions_val2014.json) or of a
    split of Karpathy's dataset_coco.json; several splits are joined by `+`.

    Raises:
        UserError: if the file is neither, or an image is listed twice.
    """
    content = _read(path)
    # COCO has a row for each caption, and images in any order.
    if isinstance(content, dict) and "annotations" in content:
        pairs = [(row["image_id"], row["caption"]) for row in _rows(path, content)]
        found: dict[int, list[str]] = {}
        for image, caption in pairs:
            # An image has five captions or so.
            found.setdefault(image, []).append(caption)
        return found
    rows = karpathy_rows(content, str(path), split)
    try:
        # Karpathy has a row for each image, with all its captions.
        pairs = [
            (image_id(row, i), [sentence["raw"] for sentence in row["sentences"]])
            for i, row in enumerate(rows)
        ]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not Karpathy's JSON ({error!r} in a row); expected "
            "dataset_coco.json or one of the same form"
        ) from error
    return _once(path, pairs)


def _rows(path: str | Place, content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rows = content["annotations"]
    if not _are_captions(rows):
        raise UserError(
            f"{path} has annotations without image_id and caption; expected COCO's "
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
    """Reads the caption of each image of a results file.

    Raises:
        UserError: if the file is none, or an image is listed twice.
    """
    # The server's format: a list, without anything around it.
    rows = _read(path)
    if not _are_captions(rows):
        raise UserError(
            f"{path} is no results file; expected a list of "
            '{"image_id": 42, "caption": "a dog"}'
        )
    return _once(path, [(row["image_id"], row["caption"]) for row in rows])


def _read(path: str | Place) -> Any:
    try:
        return read_json(to_place(path))
    except StoreError:  # a ValueError too, and no fault of the file
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)})") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error


def _once(path: str | Place, pairs: Iterable[tuple[int, Any]]) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for image, value in pairs:
        if image in found:
            raise UserError(f"{path} has image {image} twice; expected each image once")
        found[image] = value
    return found


def _make_parser() -> argparse.ArgumentParser:
    """Makes the parser of the command's flags."""
    parser = cli.make_command_parser("flowtok_jax.eval.score", __doc__)
    parser.add_argument("--results", required=True, metavar="FILE")
    parser.add_argument(
        "--references",
        required=True,
        metavar="FILE",
        help="dataset_coco.json, or annotations such as captions_val2014.json",
    )
    parser.add_argument(
        "--split", default="test", help="of dataset_coco.json; the default is test"
    )
    parser.add_argument(
        "--subset",
        action="store_true",
        help="take the images of the results only; without it all must be there",
    )
    return parser


def score_files(flags: argparse.Namespace) -> Scores:
    """Computes the metrics of the files that the flags name.

    Names of metrics say so where they rest on a subset of the images.
    """
    captions = read_results(flags.results)
    references = read_references(flags.references, flags.split)
    if not flags.subset:
        return score_captions(captions, references)
    # Captions of images without references are refused by the scorer.
    chosen = {image: references[image] for image in captions if image in references}
    scores = score_captions(captions, chosen)
    # All images were captioned after all: the name says nothing then.
    if len(chosen) == len(references):
        return scores
    return scores.renamed(f"_partial_n{len(chosen)}")


def score_table(scores: Scores) -> str:
    """Lists the metrics times 100, as papers print them, and what is lacking."""
    width = max(map(len, [*scores.metrics, *scores.not_measured])) + 2
    lines = [f"{name:{width}}{100 * v:6.2f}" for name, v in scores.metrics.items()]
    lines += [f"{n:{width}}{'-':>6}  {why}" for n, why in scores.not_measured.items()]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Scores the captions; a user's mistake ends in one line."""
    flags = _make_parser().parse_args(argv)

    def command() -> None:
        scores = score_files(flags)
        sys.stderr.write(f"{score_table(scores)}\n")
        cli.say(json.dumps(scores._asdict()))

    return cli.run_command(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
