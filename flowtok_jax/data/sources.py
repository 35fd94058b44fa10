"""Source strings: KIND[:ARGUMENTS][@WEIGHT], several joined by `,`.

    shapes[:SPLIT]                 generated scenes: train (default), seen or held_out
    folder:DIR                     a.jpg + a.txt, or metadata.jsonl, metadata.csv
    tars:GLOB                      WebDataset tars, here or on gs:// and the like
    arrayrecord:GLOB               shards of `python -m flowtok_jax.data.prepare`
    latents:GLOB                   pretokenised: our shards, or the release's *.tar
    tfds:NAME:SPLIT                prepared by TensorFlow Datasets
    karpathy:JSON:IMAGEDIR:SPLIT   dataset_coco.json and the folder of its images

GLOB takes `*`, `?`, `[...]` and number ranges `{000..127}`. Without weights one epoch
sees each record of all the sources once; if any has a weight, sources without one have
weight 1, and each is drawn in proportion.
"""

import dataclasses
import io
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from flowtok_jax.data import scenes
from flowtok_jax.data.arrayrecord import ArrayRecords
from flowtok_jax.data.captions import CaptionOptions, log_once
from flowtok_jax.data.examples import Example, Mixture, RecordSource, Source
from flowtok_jax.data.folder import open_folder
from flowtok_jax.data.karpathy import open_karpathy
from flowtok_jax.data.records import Record, Records
from flowtok_jax.data.tars import Tars
from flowtok_jax.data.tfds import Tfds
from flowtok_jax.data.transforms import Filters, ImageTransform, MomentsTransform
from flowtok_jax.runtime.errors import UserError

KINDS = ("shapes", "folder", "tars", "arrayrecord", "latents", "tfds", "karpathy")
SEPARATOR = re.compile(r",(?![^{]*\})")  # a comma outside braces
WEIGHT = re.compile(r"(.*)@([-+.\w]*)")  # no `/`: a path may hold an @


@dataclasses.dataclass(eq=False)
class Shapes(Source):
    """Source of generated scenes, each a pure function of (seed, split, index)."""

    content = "image"

    split: str
    image_size: int
    seed: int
    length: int = 1 << 20

    def __post_init__(self):
        if self.split not in scenes.SPLITS:
            raise UserError(
                f"source shapes:{self.split} has no such split; expected one of "
                f"{', '.join(scenes.SPLITS)}"
            )
        if self.image_size % 2:  # a scene is drawn quadrant by quadrant
            raise UserError(
                f"source shapes makes images of even sides; got {self.image_size}"
            )

    def __len__(self) -> int:
        return self.length

    def _draw(self, index: int) -> tuple[scenes.Scene, np.random.Generator]:
        entropy = (self.seed, scenes.SPLITS.index(self.split), int(index))
        rng = np.random.default_rng(entropy)
        return scenes.draw_scene(rng, self.split == "held_out"), rng

    def scene(self, index: int) -> scenes.Scene:
        """Returns the scene that a record's image shows and its caption names."""
        return self._draw(index)[0]

    def read(self, position: int | np.integer, index: int | np.integer) -> Example:
        """Draws the scene of an index; the position plays no part."""
        # Caption and image take up the generator where the scene left it.
        scene, rng = self._draw(int(index))
        captions = scenes.captions_of(scene)
        caption = captions[rng.integers(len(captions))]
        image = scenes.render(scene, rng, self.image_size)
        return {"image": image, "caption": caption, "rejected": ()}


class ShapeRecords(Records):
    """Records of generated scenes, their images as PNG files."""

    def __init__(self, shapes: Shapes):
        self._shapes = shapes

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, index: int) -> Record:
        example = self._shapes[index]
        buffer = io.BytesIO()
        Image.fromarray(example["image"]).save(buffer, format="png")
        name = f"shapes:{self._shapes.split}:{index}"
        return Record(name, (example["caption"],), image=buffer.getvalue())


class SourceSpec(NamedTuple):
    """One source of a source string."""

    kind: str
    arguments: str
    weight: float | None

    @property
    def spec(self) -> str:
        """Source string of this source, without its weight."""
        return f"{self.kind}:{self.arguments}" if self.arguments else self.kind


def parse_sources(spec: str) -> list[SourceSpec]:
    """Splits a source string into its sources.

    Raises:
        UserError: for an unknown kind, and for a weight that is no number above 0.
    """
    parts = []
    for text in SEPARATOR.split(spec):
        weight = None
        if found := WEIGHT.fullmatch(text):
            weight = _weight(text, found[2])
            text = found[1]
        kind, _, arguments = text.partition(":")
        if not kind:
            raise UserError(
                "no source of data named; expected KIND:ARGUMENTS with one of "
                f"{', '.join(KINDS)}, as in folder:photos"
            )
        if kind not in KINDS:
            raise UserError(
                f"source {text!r} is of kind {kind!r}; expected one of "
                f"{', '.join(KINDS)}, as in folder:photos"
            )
        if kind != "shapes" and not arguments:
            raise UserError(f"source {kind!r} says not of what; expected {kind}:...")
        parts.append(SourceSpec(kind, arguments, weight))
    return parts


def _weight(text: str, given: str) -> float:
    try:
        weight = float(given)
    except ValueError:
        weight = math.nan  # which the comparison below refuses
    if not 0 < weight < math.inf:
        raise UserError(
            f"source {text!r} has the weight {given!r}; expected a number above 0"
        )
    return weight


def make_records(
    part: SourceSpec,
    *,
    image_size: int,
    seed: int,
    moments: tuple[int, int] | None = None,
    cache: str | None = None,
    captions: CaptionOptions = CaptionOptions(),  # noqa: B008 (immutable)
) -> Records:
    """Opens the records of one source; nothing is decoded.

    Args:
        image_size, seed: side and seed of generated scenes.
        moments: (n, 2 * c) of latents.
        cache: directory for indices of tars; None: the user's cache directory.
        captions: how they are read, said once in a process.

    Raises:
        UserError: for a source that is missing, damaged as a whole, or empty.
    """
    if part.kind != "shapes":
        log_once(captions.describe())
    match part.kind:
        case "shapes":
            shapes = Shapes(part.arguments or "train", image_size, seed)
            records = ShapeRecords(shapes)
        case "folder":
            records = open_folder(part.arguments, captions)
        case "tars":
            records = Tars(part.arguments, cache=cache, captions=captions)
        case "arrayrecord":
            records = ArrayRecords(part.arguments, captions=captions)
        case "latents" if part.arguments.endswith(".tar"):  # the release's form
            records = Tars(
                part.arguments, moments=moments, cache=cache, captions=captions
            )
        case "latents":
            records = ArrayRecords(part.arguments, moments=moments, captions=captions)
        case "tfds":
            records = Tfds(part.arguments, captions)
        case "karpathy":
            records = open_karpathy(part.arguments, captions)
    if not len(records):
        raise UserError(f"source {part.spec} has no records")
    return records


def make_source(
    spec: str,
    *,
    image_size: int,
    seed: int,
    tokens: int = 77,
    channels: int = 16,
    transform: Mapping[str, Any] | None = None,
    filters: Mapping[str, Any] | None = None,
    cache: str | None = None,
    captions: CaptionOptions = CaptionOptions(),  # noqa: B008 (immutable)
) -> Source:
    """Makes the source of training examples that a source string names.

    Args:
        tokens, channels: n and c of latents.
        transform: arguments of `ImageTransform`. Latents take only `recaption_rate`
            of them, and generated scenes none.
        filters: fields of `Filters`, for images.
        cache: directory for indices of tars; None: the user's cache directory.
        captions: how they are read.

    Raises:
        UserError: for a source that is missing, damaged or given wrongly.
    """
    options = dict(transform or {})
    moments = (tokens, 2 * channels)
    opening = {"image_size": image_size, "seed": seed, "moments": moments}
    opening |= {"cache": cache, "captions": captions}
    parts = parse_sources(spec)
    sources: list[Source] = []
    for part in parts:
        if part.kind == "shapes":
            sources.append(Shapes(part.arguments or "train", image_size, seed))
            continue
        records = make_records(part, **opening)
        if part.kind == "latents":
            rate = {k: v for k, v in options.items() if k == "recaption_rate"}
            make = MomentsTransform(moments, **rate)
            content = "moments"
        else:
            filtering = Filters(**(filters or {}))
            make = ImageTransform(image_size, **options, filters=filtering)
            content = "image"
        sources.append(RecordSource(records, make, content=content, seed=seed))
    if len(sources) == 1:  # a weight alone says nothing
        return sources[0]
    if all(part.weight is None for part in parts):
        return Mixture(sources, None)
    return Mixture(sources, [1.0 if p.weight is None else p.weight for p in parts])
