"""Scores a file of captions against those that people wrote.

    python -m flowtok_jax.eval.score --results=captions.json \\
        --references=dataset_coco.json --split=test

The results are in COCO's form: [{"image_id": 42, "caption": "a dog"}, ...]. A table
goes to stderr; the last line of stdout is one JSON object with `metrics`,
`not_measured` and `protocol`. Exit status: 0, or 2 for a mistake of the user's, with
one line.
"""

import argparse
import json
import sys
from collections.abc import Sequence

from flowtok_jax.eval.caption_files import read_references, read_results
from flowtok_jax.eval.captions import Scores, score_captions
from flowtok_jax.runtime.errors import UserError


def make_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    summary, _, details = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m flowtok_jax.eval.score",
        description=summary,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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


def score(flags: argparse.Namespace) -> Scores:
    """The metrics of the files that the flags name.

    Names of metrics say so where they rest on a subset of the images.
    """
    captions = read_results(flags.results)
    references = read_references(flags.references, flags.split)
    if not flags.subset:
        return score_captions(captions, references)
    chosen = {image: references[image] for image in captions if image in references}
    scores = score_captions(captions, chosen)
    if len(chosen) == len(references):
        return scores
    return scores.renamed(f"_partial_n{len(chosen)}")


def table(scores: Scores) -> str:
    """The metrics times 100, as papers print them, and what is lacking."""
    width = max(map(len, [*scores.metrics, *scores.not_measured])) + 2
    lines = [f"{name:{width}}{100 * v:6.2f}" for name, v in scores.metrics.items()]
    lines += [f"{n:{width}}{'-':>6}  {why}" for n, why in scores.not_measured.items()]
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Scores the captions; a user's mistake ends in one line."""
    flags = make_parser().parse_args(argv)
    try:
        scores = score(flags)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stderr.write(f"{table(scores)}\n")
    sys.stdout.write(f"{json.dumps(scores._asdict())}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
