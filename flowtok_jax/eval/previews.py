"""Previews while training: what a task made of some examples, judged and shown.

On generated scenes everything is read by the oracle or the caption parser; of copies of
images also PSNR and detail are measured, and where the config asks for it networks
judge images: FID of drawn ones, rFID and LPIPS of copies.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from flowtok_jax.array_types import Params
from flowtok_jax.data import scenes
from flowtok_jax.data.examples import Source
from flowtok_jax.data.inputs import to_uint8
from flowtok_jax.data.loader import evaluated_source, open_evaluation
from flowtok_jax.data.oracle import read_scene
from flowtok_jax.data.records import RejectCounter
from flowtok_jax.data.sources import Shapes
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.eval import pictures
from flowtok_jax.eval.evaluate import NO_WEIGHTS
from flowtok_jax.eval.features import Extractor, FeatureMetrics
from flowtok_jax.eval.protocols import metric_suffix
from flowtok_jax.eval.reconstruction import (
    PerceptualDistance,
    detail_kept,
    psnr_db,
)
from flowtok_jax.eval.reference import make_reference
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.batches import row_parts
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.tasks.base import Preview, Task, preview_nets
from flowtok_jax.tasks.lora import whole_params
from flowtok_jax.weights.nets import MetricNet, load_metric_net

Scalars = dict[str, float]
Pictures = dict[str, np.ndarray]
NetMetric = Callable[[Preview], Scalars]
PREVIEW_COLUMNS = 8  # images in a row of a preview grid
RANDOM_TOWER = "text tower: CLIP's architecture at random initialisation, never trained"


class PreviewExamples(NamedTuple):
    """Captioned images of a source, or the raw tokens of such images.

    Attributes:
        scenes: what each image shows, where the source generates scenes.
    """

    images: np.ndarray | None  # uint8 [b, s, s, 3]
    tokens: np.ndarray | None  # float32 [b, n, c]
    captions: list[str]
    scenes: list[scenes.Scene] | None

    @property
    def floats(self) -> np.ndarray:
        """Images in [0, 1]."""
        return self.images.astype(np.float32) / 255

    def with_images(self, flowtok: FlowTok) -> "PreviewExamples":
        """Decodes the images where there are only tokens."""
        if self.images is not None:
            return self
        images = np.asarray(flowtok.decode_image(self.tokens, self.captions))
        return self._replace(images=to_uint8(images))


def _is_told(source: Source) -> bool:
    """Tells whether captions say all that generated scenes show."""
    return isinstance(source, Shapes) and source.split != scenes.OPEN


def _draw(source: Source, count: int, seed: int) -> Sequence[int]:
    """Draws the records among which `count` with captions all different are found."""
    # Small sources repeat captions: looking further than 50 times is of no use.
    most = min(len(source), 50 * count)
    if isinstance(source, Shapes):
        return range(most)
    rng = np.random.default_rng(seed)
    return rng.choice(len(source), most, replace=False).tolist()


def load_examples(
    source: Source, count: int, seed: int = 0, rejects: RejectCounter | None = None
) -> PreviewExamples:
    """Loads `count` records of a source with captions all different.

    They are drawn by the seed, of generated scenes the first ones, which are random
    already. Warns where the source has fewer, and of records that cannot be used, whose
    place others take as in training.

    Args:
        rejects: counts these; None: a counter that stops nothing.

    Raises:
        UserError: if the counter stops.
    """
    rejects = rejects or RejectCounter(1.0)
    records = []
    indices = []
    seen = set()
    for index in _draw(source, count, seed):
        record = source[index]
        # The record of this index alone: it may have more than one substitute.
        rejects.add(record["rejected"][:1], not record["rejected"])
        if record["caption"] not in seen:
            seen.add(record["caption"])
            records.append(record)
            indices.append(index)
        if len(records) == count:
            break
    else:
        logging.warning(
            "only %d different captions to show, fewer than the %d asked for",
            len(records),
            count,
        )
    if rejects.counts:
        counts = sum(rejects.counts.values()), rejects.read, rejects.describe()
        logging.warning("previews: %d of %d records left out (%s)", *counts)
    images = tokens = None
    if source.content == "image":
        images = np.stack([r["image"] for r in records])
    else:
        moments = np.stack([r["moments"] for r in records]).astype(np.float32)
        tokens = np.split(moments, 2, axis=-1)[0]
    return PreviewExamples(
        images,
        tokens,
        [r["caption"] for r in records],
        [source.scene(i) for i in indices] if _is_told(source) else None,
    )


def load_preview_examples(config: ConfigDict) -> PreviewExamples:
    """Loads the examples that a run's previews are of.

    Raises:
        UserError: if a larger share of them is broken than data.max_rejected.
    """
    source = open_evaluation(config)
    rejects = RejectCounter(config.data.max_rejected, known=0)
    # The few records of a whole source have a share of their own; those held out are
    # judged with the others of data.train, in training.
    if evaluated_source(config)[1] is None:
        rejects.patience = min(rejects.patience, len(source))
    count = config.log.preview_samples
    return load_examples(source, count, config.eval.seed, rejects)


def attribute_accuracy(images: np.ndarray, wanted: Sequence[scenes.Scene]) -> float:
    """Computes the share of images in which the oracle reads every object rightly."""
    found = [read_scene(image) for image in images]
    return float(np.mean([a == b for a, b in zip(found, wanted, strict=True)]))


def captions_right(
    captions: Sequence[str], wanted: Sequence[scenes.Scene]
) -> list[bool]:
    """Tells for each caption whether it names its scene's attributes, and no others."""
    found = [scenes.parse_caption(caption) for caption in captions]
    return [a == b for a, b in zip(found, wanted, strict=True)]


def make_preview(
    config: ConfigDict, task: Task, vocabulary: Vocabulary, mesh: Mesh
) -> Callable[[Params, Params], tuple[Scalars, Pictures]]:
    """Makes a function of EMA and frozen parameters: scalars and picture grids.

    The names of sampled scalars say how many samples they rest on.
    """
    examples = load_preview_examples(config)
    # Without parameters, which each preview hands over; compiled programs stay.
    flowtok = FlowTok.from_config(config, {}, vocabulary, mesh)
    measures = make_net_metrics(config, task, examples, mesh)

    def preview(ema: Params, frozen: Params) -> tuple[Scalars, Pictures]:
        groups = {group: frozen[role] for role, group in task.frozen.items()}
        # Where they lie: FlowTok would copy them to every device.
        flowtok.params = {**groups, task.group: whole_params(task, ema, frozen)}
        made = task.preview(flowtok, examples)
        scalars = {}
        grids = {}
        for one in made if isinstance(made, list) else [made]:
            values, pictures = judge(one, examples)
            scalars |= values
            grids |= pictures
            for measure in measures if one.images is not None else ():
                scalars |= measure(one)
        return scalars, grids

    return preview


def judge(made: Preview, examples: PreviewExamples) -> tuple[Scalars, Pictures]:
    """Measures and shows what a task made of examples.

    On generated scenes the oracle and the caption parser say what is right.
    """
    suffix = metric_suffix("", len(examples.captions))
    scalars = dict(made.scalars)
    marks = None
    if made.images is not None:
        if made.are_copies:
            scalars[f"eval/psnr_db{suffix}"] = mean_psnr_db(made.images, examples)
            kept = detail_kept(made.images, examples.floats)
            if len(kept):
                name = f"eval/detail_kept{metric_suffix('', len(kept))}"
                scalars[name] = float(kept.mean())
        if examples.scenes:
            accuracy = attribute_accuracy(made.images, examples.scenes)
            scalars[f"eval/attribute_accuracy{suffix}"] = accuracy
    elif made.captions is not None:  # exact for copies, else right in meaning
        if made.are_copies:
            pairs = zip(made.captions, examples.captions, strict=True)
            marks = [a == b for a, b in pairs]
        elif examples.scenes:
            marks = captions_right(made.captions, examples.scenes)
        if marks:
            scalars[f"eval/exact_match{suffix}"] = float(np.mean(marks))
    return scalars, _grids(made, examples, marks)


def _grids(
    made: Preview, examples: PreviewExamples, marks: list[bool] | None
) -> Pictures:
    """Returns the picture of a preview; none where only captions came of captions."""
    if made.images is not None:
        drawn = to_uint8(made.images)
        if made.are_copies:
            rows = (grid_rows(x, 1)[0] for x in (examples.images, drawn))
            return {made.name: pictures.pairs(*rows)}
        captions = grid_rows(examples.captions)
        return {made.name: pictures.grid(grid_rows(drawn), captions)}
    if made.described is None:
        return {}
    right = grid_rows(marks) if marks else None
    captions = grid_rows(made.captions)
    images = grid_rows(made.described)
    return {made.name: pictures.grid(images, captions, right=right)}


def make_extractor(
    config: ConfigDict, mesh: Mesh, rows: int | None = None
) -> Extractor:
    """Makes the Inception of `config.eval`.

    Args:
        rows: rows a device; None for eval.batch_size.

    Raises:
        UserError: where the weights do not exist.
    """
    return Extractor(
        _net(config, "inception"),
        mesh,
        resize=config.eval.fid.resize,
        rows=rows or config.eval.batch_size,
        threads=config.data.threads,
        side=config.tokenizer.image_size,
    )


def _net(config: ConfigDict, name: str) -> MetricNet:
    """Loads a network of `eval.weights`."""
    if not config.eval.weights:
        raise UserError(NO_WEIGHTS)
    return load_metric_net(name, config.eval.weights)


def make_net_metrics(
    config: ConfigDict, task: Task, examples: PreviewExamples, mesh: Mesh
) -> list[NetMetric]:
    """Makes what networks measure in the previews of a task.

    Raises:
        UserError: where weights or images for it do not exist.
    """
    # Loaded before training, so that nothing is missed at its first preview.
    makers = {"inception": _make_fid, "lpips": _make_lpips}
    count = len(examples.captions)
    rows = min(config.eval.batch_size, -(-count // row_parts(mesh)))
    nets = preview_nets(config, task)
    return [makers[name](config, examples, mesh, rows) for name in nets]


def _make_fid(
    config: ConfigDict, examples: PreviewExamples, mesh: Mesh, rows: int
) -> NetMetric:
    """Makes the FID of images from the examples' own; of copies it is named rfid."""
    count = len(examples.captions)
    if examples.images is None or count < 2:
        raise UserError(
            f"log.preview_fid needs 2 images at least; data.eval gives {count} "
            f"{'latents' if examples.images is None else 'images'}"
        )
    extract = make_extractor(config, mesh, rows)
    real = make_reference(
        extract, count, examples.images.__getitem__, keeps_features=False
    )
    suffix = functools.partial(metric_suffix, "")
    metrics = FeatureMetrics(extract, real, count, suffix)

    def fid(made: Preview) -> Scalars:
        found = metrics.see(to_uint8(made.images), range(count))
        name = metrics.name("rfid" if made.are_copies else "fid", count)
        return {f"eval/{name}": metrics.fid(found["pool"])}

    return fid


def _make_lpips(
    config: ConfigDict, examples: PreviewExamples, mesh: Mesh, rows: int
) -> NetMetric:
    """Makes the LPIPS of copies of the examples' images."""
    distance = PerceptualDistance(_net(config, "lpips"), mesh, rows)
    name = f"eval/{distance.name(len(examples.captions))}"

    def lpips(made: Preview) -> Scalars:
        return {name: float(distance(made.images, examples.floats).mean())}

    return lpips


def mean_psnr_db(images: np.ndarray, examples: PreviewExamples) -> float:
    """Averages the PSNR of copies of the examples' images."""
    return float(psnr_db(images, examples.floats).mean())


def grid_rows(items: Sequence[Any] | np.ndarray, rows: int = 2) -> list[list[Any]]:
    """Splits the first items into rows of a grid."""
    columns = PREVIEW_COLUMNS
    return [list(items[i * columns : (i + 1) * columns]) for i in range(rows)]
