"""Draws of captions that published numbers rest on, and the names of such numbers.

    coco_fid_30k   30,000 captions of COCO val2014, one an image
    mjhq_30k       all 30,000 of MJHQ-30K, in its 10 categories

Captions come in the order of a hash of their ids, so that the draw depends neither on
the order of the file nor on a random generator's version, and fewer samples are the
first ones of the whole draw. A protocol leaves nothing out, whatever data.max_rejected
says: a row that cannot be read is refused, as the published numbers are of all of them.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from flowtok_jax.runtime.errors import UserError, reason_of
from flowtok_jax.runtime.paths import expand_path

SEED = 0  # of the draw, the same in every run


class Prompt(NamedTuple):
    """A caption to draw, the id it has in its file, and its category, if any."""

    id: str
    caption: str
    group: str = ""


class Protocol(NamedTuple):
    """A way in which published numbers are made.

    Attributes:
        file: name under which the captions' file was published.
        samples: number of captions that are drawn.
    """

    file: str
    samples: int
    read: Callable[[str, Any], Iterable[Prompt]]


CATEGORIES = (
    "animals",
    "art",
    "fashion",
    "food",
    "indoor",
    "landscape",
    "logo",
    "people",
    "plants",
    "vehicles",
)


def _rank(prompt: Prompt) -> str:
    # A hash, as random generators differ between versions of NumPy.
    return hashlib.sha256(f"{SEED}/{prompt.id}".encode()).hexdigest()


def _lacking(row: Any, *keys: str) -> list[str]:
    """Lists the keys for which a row of JSON has no text or number."""
    values = row if isinstance(row, dict) else {}
    return [key for key in keys if not isinstance(values.get(key), str | int)]


def _read_coco(path: str, content: Any) -> Iterable[Prompt]:
    """Reads one caption an image of COCO's annotations."""
    rows = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise UserError(
            f"captions {path} has no annotations; expected COCO's captions_val2014.json"
        )
    # COCO has five captions an image; one of them is drawn, by rank.
    images = {}
    for number, row in enumerate(rows):
        if lacking := _lacking(row, "id", "image_id", "caption"):
            raise UserError(
                f"captions {path}: annotation {number} has no {', '.join(lacking)}; "
                "expected COCO's captions_val2014.json"
            )
        # Some of COCO's captions have line breaks at their end.
        prompt = Prompt(str(row["id"]), " ".join(str(row["caption"]).split()))
        drawn = images.get(row["image_id"], prompt)
        images[row["image_id"]] = min(drawn, prompt, key=_rank)
    return images.values()


def _read_mjhq(path: str, content: Any) -> Iterable[Prompt]:
    """Reads all the prompts of MJHQ's meta_data.json."""
    if not isinstance(content, dict) or not content:
        raise UserError(
            f"captions {path} has no ids; expected MJHQ-30K's meta_data.json, an "
            "object of id -> category and prompt"
        )
    found = []
    for name, row in content.items():
        if lacking := _lacking(row, "category", "prompt"):
            raise UserError(f"captions {path}: {name} has no {', '.join(lacking)}")
        if row["category"] not in CATEGORIES:
            raise UserError(
                f"captions {path}: {name} has the unknown category "
                f"{row['category']!r}; expected one of {', '.join(CATEGORIES)}"
            )
        caption = " ".join(str(row["prompt"]).split())
        found.append(Prompt(name, caption, row["category"]))
    return found


PROTOCOLS = {
    "coco_fid_30k": Protocol("captions_val2014.json", 30_000, _read_coco),
    "mjhq_30k": Protocol("meta_data.json", 30_000, _read_mjhq),
}


def read_prompts(name: str, path: str, samples: int) -> list[Prompt]:
    """Reads the first `samples` captions that a protocol draws of its file.

    Raises:
        UserError: if there is no such protocol, the file is not its own, or has fewer
            captions.
    """
    if name not in PROTOCOLS:
        raise UserError(
            f"eval.protocol is {name!r}; expected one of {', '.join(PROTOCOLS)}, or '' "
            "for the captions of data.eval"
        )
    protocol = PROTOCOLS[name]
    if not path:
        raise UserError(
            f"eval.protocol={name} needs --config.eval.captions=FILE, its "
            f"{protocol.file}"
        )
    if samples > protocol.samples:
        raise UserError(
            f"eval.samples is {samples}; {name} has {protocol.samples} at most"
        )
    try:
        content = json.loads(pathlib.Path(expand_path(path)).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(
            f"captions {path} cannot be read ({reason_of(error)}); expected "
            f"{protocol.file}"
        ) from error
    # By rank: fewer samples are the first ones of the whole draw.
    found = sorted(protocol.read(path, content), key=_rank)
    if len(found) < samples:
        raise UserError(
            f"captions {path} gives {len(found)} captions, eval.samples asks for "
            f"{samples}; expected the whole {protocol.file}, or fewer samples"
        )
    return found[:samples]


def metric_suffix(protocol: str, samples: int, count: int | None = None) -> str:
    """Returns the end of a metric's name, which tells how many samples it rests on:
    nothing if all that the protocol has.

    Args:
        samples: number of samples that were looked at.
        count: number of them that the metric is of, such as a category's.
    """
    count = samples if count is None else count
    if protocol not in PROTOCOLS:
        return f"_n{count}"
    return "" if samples == PROTOCOLS[protocol].samples else f"_partial_n{count}"
