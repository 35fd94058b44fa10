"""Sources of training examples, and the records behind them, by source strings."""

import dataclasses
import functools
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from flowtok_jax.data import globs, scenes
from flowtok_jax.data.arrayrecord import ArrayRecords
from flowtok_jax.data.captions import CaptionOptions, log_once
from flowtok_jax.data.examples import Example, Mixture, RecordSource, Source
from flowtok_jax.data.folder import open_folder
from flowtok_jax.data.karpathy import open_karpathy
from flowtok_jax.data.open_captions import draw_wanted, write_caption
from flowtok_jax.data.records import Chosen, Record, Records, Side
from flowtok_jax.data.source_strings import SourceSpec, guess_source, parse_sources
from flowtok_jax.data.tars import Tars
from flowtok_jax.data.tfds import Tfds
from flowtok_jax.data.transforms import Filters, ImageTransform, MomentsTransform
from flowtok_jax.runtime.config import check_seed
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.files import to_place
from flowtok_jax.runtime.paths import expand_path


def _scene_key(split: str, index: int) -> str:
    return f"shapes:{split}:{index}"


@functools.lru_cache(maxsize=16)  # a million hashes take seconds, and runs ask often
def _find_scenes(side: Side, split: str, length: int) -> np.ndarray:
    return side.find(_scene_key(split, index) for index in range(length))


@dataclasses.dataclass(eq=False)
class Shapes(Source):
    """Source of generated scenes, each a pure function of (seed, split, index)."""

    content = "image"

    split: str
    image_size: int
    seed: int
    length: int = 1 << 20
    indices: np.ndarray | None = None  # the scenes that the source has; None: all
    with_images: bool = True  # whether examples have images; these are not drawn else

    def __post_init__(self):
        self.seed = check_seed("seed", self.seed)
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
        return self.length if self.indices is None else len(self.indices)

    def key(self, index: int) -> str:
        """Returns the name of a scene among all of its split."""
        return _scene_key(self.split, index)

    def on_side(self, side: Side) -> "Shapes":
        """Returns the scenes on one side of a split of all."""
        indices = _find_scenes(side, self.split, self.length)
        return dataclasses.replace(self, indices=indices)

    def _draw(
        self, index: int | np.integer
    ) -> tuple[scenes.Scene, np.random.Generator]:
        if self.indices is not None:
            index = self.indices[index]
        entropy = (self.seed, scenes.SPLITS.index(self.split), int(index))
        rng = np.random.default_rng(entropy)
        return scenes.draw_scene(rng, self.split == "held_out"), rng

    def scene(self, index: int | np.integer) -> scenes.Scene:
        """Returns the scene that a record's image shows and its caption names."""
        return self._draw(index)[0]

    def read(self, position: int | np.integer, index: int | np.integer) -> Example:
        """Draws the scene of an index; the position plays no part."""
        # Caption and image take up the generator where the scene left it.
        scene, rng = self._draw(int(index))
        if self.split == scenes.OPEN:
            caption = write_caption(draw_wanted(scene, rng))
        else:
            captions = scenes.captions_of(scene)
            caption = captions[rng.integers(len(captions))]
        example = {"caption": caption, "rejected": ()}
        if self.with_images:
            example["image"] = scenes.render(scene, rng, self.image_size)
        return example


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
        name = self._shapes.key(index)
        return Record(name, (example["caption"],), image=buffer.getvalue())

    def keys(self) -> Iterable[str]:
        """Returns the name of each scene in its split."""
        return map(self._shapes.key, range(len(self)))


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
    seed = check_seed("seed", seed)
    if cache and globs.is_remote(cache := str(to_place(cache))):
        raise UserError(f"data.cache = {cache} is remote; expected a local directory")
    if part.kind != "shapes":
        log_once(captions.describe())
    match part.kind:
        case "shapes":
            shapes = Shapes(part.arguments or "train", image_size, seed)
            records = ShapeRecords(shapes)
        case "folder":
            folder = expand_path(globs.unquote(part.arguments))
            records = _open_folder(folder, captions)
        case "tars":
            records = Tars(part.arguments, cache=cache, captions=captions)
        case "arrayrecord":
            records = ArrayRecords(part.arguments, captions=captions)
        case "latents" if _is_release(part):
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


def _open_folder(path: str, captions: CaptionOptions) -> Records:
    """Opens a folder; of its files, a pattern or a tar the error names the source."""
    meant = guess_source(path) if not os.path.isdir(path) else f"folder:{path}"
    if meant != f"folder:{path}" and not globs.is_remote(path):
        raise UserError(f"source folder:{path}: that is no folder; expected {meant}")
    return open_folder(path, captions)


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
    side: Side | None = None,
) -> Source:
    """Makes the source of training examples that a source string names.

    Args:
        tokens, channels: n and c of latents.
        transform: arguments of `ImageTransform`; latents take `recaption_rate` alone.
        filters: fields of `Filters`, for images.
        cache, captions: as of `make_records`.
        side: of a split, whose records alone the source has; None: all.

    Raises:
        UserError: for a source that is missing, damaged or given wrongly, or without a
            record on the side.
    """
    options = dict(transform or {})
    moments = (tokens, 2 * channels)
    opening = dict(image_size=image_size, seed=seed, cache=cache, captions=captions)
    parts = parse_sources(spec)
    sources: list[Source] = []
    _check_named(parts, side)
    for part in parts:
        if part.kind == "shapes":
            split = part.arguments or "train"
            drawn = options.get("with_images", True)
            sources.append(Shapes(split, image_size, seed, with_images=drawn))
            continue
        records = make_records(part, **opening, moments=moments)
        content = "moments" if part.kind == "latents" else "image"
        if content == "moments":
            rate = {k: v for k, v in options.items() if k == "recaption_rate"}
            make = MomentsTransform(moments, **rate)
        else:
            filtering = Filters(**(filters or {}))
            make = ImageTransform(image_size, **options, filters=filtering)
        sources.append(RecordSource(records, make, content=content, seed=seed))
    if side:
        sources = _split_all(sources, side, spec)
    return _join(sources, [part.weight for part in parts])


def _split_all(sources: Sequence[Source], side: Side, spec: str) -> list[Source]:
    """Returns the records of each source on one side; some source has to have one."""
    halves = [_on_side(source, side) for source in sources]
    if not any(map(len, halves)):
        raise side.none_found(spec, sum(map(len, sources)))
    return halves


def _join(sources: Sequence[Source], weights: Sequence[float | None]) -> Source:
    """Joins sources into one; weights that are missing are 1 where another is given."""
    # A source of few records may have none on a side, as long as another has one.
    weights = [w for w, source in zip(weights, sources, strict=True) if len(source)]
    sources = [source for source in sources if len(source)]
    if len(sources) == 1:  # a weight alone says nothing
        return sources[0]
    if all(weight is None for weight in weights):
        return Mixture(sources, None)
    return Mixture(sources, [1.0 if w is None else w for w in weights])


def keep_centres(source: Source, memory: float) -> None:
    """Lets a source, or parts of it, keep images as training sees them from one epoch
    to the next.

    Args:
        memory: bytes; a part keeps its images where all fit into what is left.
    """
    for part in source.parts if isinstance(source, Mixture) else [source]:
        make = part.transform if isinstance(part, RecordSource) else None
        if isinstance(make, ImageTransform):
            size = 3 * make.image_size**2 * len(part)
            if size <= memory:
                make.most_kept = len(part)
                memory -= size


def _is_release(part: SourceSpec) -> bool:
    """Tells whether a source is the release's tars of latents."""
    return part.kind == "latents" and globs.unquote(part.arguments).endswith(".tar")


def _check_named(parts: Sequence[SourceSpec], side: Side | None) -> None:
    """Refuses to split a source whose records' names do not tell pictures apart."""
    for part in filter(_is_release, parts if side else ()):
        raise UserError(
            f"data.held_out cannot split {part.spec}: the release's tars do not name "
            "the pictures, and have one once a caption; pretokenise with "
            "pretokenize.format=arrayrecord, or give other pictures as data.eval with "
            "data.held_out=0"
        )


def _on_side(source: Source, side: Side) -> Source:
    """Returns the examples of the records on one side of a split."""
    if isinstance(source, Shapes):
        return source.on_side(side)
    indices = side.find(source.records.keys())
    return dataclasses.replace(source, records=Chosen(source.records, indices))
