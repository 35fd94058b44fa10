"""What trained weights are worth: previews while training, the summary at the end.

On generated scenes everything is read by the oracle or the caption parser; on other
sources previews show pictures and PSNR only.
"""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from flowtok_jax.array_types import Params
from flowtok_jax.data import scenes
from flowtok_jax.data.examples import Source
from flowtok_jax.data.loader import open_source
from flowtok_jax.data.oracle import read_scene
from flowtok_jax.data.sources import Shapes, make_source
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.eval import pictures
from flowtok_jax.eval.evaluate import NO_WEIGHTS
from flowtok_jax.eval.features import Extractor, FeatureMetrics
from flowtok_jax.eval.nets import load_metric_net
from flowtok_jax.eval.protocols import metric_suffix
from flowtok_jax.eval.reconstruction import psnr_db
from flowtok_jax.eval.reference import make_reference
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.errors import UserError

Scalars = dict[str, float]
Pictures = dict[str, np.ndarray]
Fid = Callable[[np.ndarray], Scalars]
PREVIEW_COLUMNS = 8
RANDOM_TOWER = "text tower: CLIP's architecture at random initialisation, never trained"


class Examples(NamedTuple):
    """Captioned images of a source, or the raw tokens of such images; scenes where it
    is one of generated scenes.
    """

    images: np.ndarray | None  # uint8 [b, s, s, 3]
    tokens: np.ndarray | None  # float32 [b, n, c]
    captions: list[str]
    scenes: list[scenes.Scene] | None

    @property
    def floats(self) -> np.ndarray:
        return self.images.astype(np.float32) / 255

    def with_images(self, flowtok: FlowTok) -> "Examples":
        """The same, with images decoded where there are only tokens."""
        if self.images is not None:
            return self
        images = np.asarray(flowtok.decode_image(self.tokens, self.captions))
        return self._replace(images=pictures.to_uint8(images))


def load_examples(source: Source, count: int) -> Examples:
    """The first `count` records of a source with captions all different.

    Says so where the source has fewer.
    """
    records, indices, seen = [], [], set()
    for index in range(min(len(source), 50 * count)):
        record = source[index]
        if record["caption"] not in seen:
            seen.add(record["caption"])
            records.append(record)
            indices.append(index)
        if len(records) == count:
            break
    else:
        logging.warning(
            "%s has %d distinct captions, fewer than the %d wanted",
            source,
            len(records),
            count,
        )
    images = tokens = None
    if source.content == "image":
        images = np.stack([r["image"] for r in records])
    else:
        moments = np.stack([r["moments"] for r in records]).astype(np.float32)
        tokens = np.split(moments, 2, axis=-1)[0]
    return Examples(
        images,
        tokens,
        [r["caption"] for r in records],
        [source.scene(i) for i in indices] if isinstance(source, Shapes) else None,
    )


def attribute_accuracy(images: np.ndarray, wanted: Sequence[scenes.Scene]) -> float:
    """Share of images off which the oracle reads every object as wanted."""
    found = [read_scene(image) for image in images]
    return float(np.mean([a == b for a, b in zip(found, wanted, strict=True)]))


def captions_right(
    captions: Sequence[str], wanted: Sequence[scenes.Scene]
) -> list[bool]:
    """Whether each caption names every attribute of its scene, and nothing else."""
    found = [scenes.parse_caption(caption) for caption in captions]
    return [a == b for a, b in zip(found, wanted, strict=True)]


def make_preview(
    config: ConfigDict, task: str, vocabulary: Vocabulary, mesh: Mesh
) -> Callable[[Params, Params], tuple[Scalars, Pictures]]:
    """A function of a task's EMA and frozen parameters: scalars and picture grids.

    The names of sampled scalars say how many samples they rest on.
    """
    count = config.log.preview_samples
    source = open_source(config, config.data.eval or config.data.train)
    examples = load_examples(source, count)
    flowtok = FlowTok.from_config(config, {}, vocabulary, mesh)

    options = {}
    if task in DRAWING:
        options["fid"] = make_fid(config, examples, mesh)

    def preview(ema: Params, frozen: Params) -> tuple[Scalars, Pictures]:
        flowtok.params = {**frozen, task: ema}  # where they lie
        suffix = metric_suffix("", len(examples.captions))
        return PREVIEWS[task](flowtok, examples, suffix, **options)

    return preview


def make_extractor(
    config: ConfigDict, mesh: Mesh, rows: int | None = None
) -> Extractor:
    """Inception as `config.eval` has it.

    Args:
        rows: of a device; None: eval.batch_size.

    Raises:
        UserError: where its weights are not there.
    """
    if not config.eval.weights:
        raise UserError(NO_WEIGHTS)
    return Extractor(
        load_metric_net("inception", config.eval.weights),
        mesh,
        resize=config.eval.fid.resize,
        rows=rows or config.eval.batch_size,
        threads=config.data.threads,
        side=config.tokenizer.image_size,
    )


def make_fid(config: ConfigDict, examples: Examples, mesh: Mesh) -> Fid:
    """A function of drawn images in [0, 1]: their FID from the examples' own images,
    if log.preview_fid wants it.
    """
    if not config.log.preview_fid:
        return lambda images: {}
    count = len(examples.captions)
    if examples.images is None or count < 2:
        raise UserError(
            f"log.preview_fid needs 2 images at least; data.eval gives {count} "
            f"{'latents' if examples.images is None else 'images'}"
        )
    rows = min(config.eval.batch_size, -(-count // mesh.size))
    extract = make_extractor(config, mesh, rows)
    real = make_reference(
        extract, count, examples.images.__getitem__, keeps_features=False
    )
    suffix = functools.partial(metric_suffix, "")
    metrics = FeatureMetrics(extract, real, count, suffix)

    def fid(images: np.ndarray) -> Scalars:
        found = metrics.see(pictures.to_uint8(images), range(count))
        return {f"eval/{metrics.name('fid', count)}": metrics.fid(found["pool"])}

    return fid


def _psnr_db(images: np.ndarray, examples: Examples) -> float:
    return float(psnr_db(images, examples.floats).mean())


def _rows(images: np.ndarray, rows: int = 2) -> list[list[np.ndarray]]:
    columns = PREVIEW_COLUMNS
    return [list(images[i * columns : (i + 1) * columns]) for i in range(rows)]


def _preview_tokenizer(flowtok: FlowTok, examples: Examples, suffix: str, fid: Fid):
    tokens = flowtok.encode_image(examples.floats).mean
    images = np.asarray(flowtok.decode_image(tokens, examples.captions))
    scalars = {f"eval/psnr_db{suffix}": _psnr_db(images, examples), **fid(images)}
    if examples.scenes:
        accuracy = attribute_accuracy(images, examples.scenes)
        scalars[f"eval/attribute_accuracy{suffix}"] = accuracy
    pairs = [_rows(examples.images, 1)[0], _rows(pictures.to_uint8(images), 1)[0]]
    return scalars, {"reconstructions": pictures.grid(pairs)}


def _preview_text_tokenizer(flowtok: FlowTok, examples: Examples, suffix: str):
    decoded = flowtok.reconstruct_text(examples.captions)
    exact = np.mean([a == b for a, b in zip(decoded, examples.captions, strict=True)])
    return {f"eval/exact_match{suffix}": float(exact)}, {}


def _preview_t2i(flowtok: FlowTok, examples: Examples, suffix: str, fid: Fid):
    images = flowtok.text_to_image(examples.captions)
    scalars = fid(images)
    if examples.scenes:
        accuracy = attribute_accuracy(images, examples.scenes)
        scalars[f"eval/attribute_accuracy{suffix}"] = accuracy
    shown = _rows(pictures.to_uint8(images))
    captions = [examples.captions[:8], examples.captions[8:16]]
    return scalars, {"text_to_image": pictures.grid(shown, captions)}


def _preview_i2t(flowtok: FlowTok, examples: Examples, suffix: str):
    examples = examples.with_images(flowtok)
    captions = flowtok.image_to_text(examples.floats)
    scalars, right = {}, None
    if examples.scenes:
        marks = captions_right(captions, examples.scenes)
        scalars[f"eval/exact_match{suffix}"] = float(np.mean(marks))
        right = [marks[:8], marks[8:16]]
    texts = [captions[:8], captions[8:16]]
    grid = pictures.grid(_rows(examples.images), texts, right=right)
    return scalars, {"image_to_text": grid}


DRAWING = ("tokenizer", "t2i")  # tasks whose previews have images to measure
PREVIEWS = {
    "tokenizer": _preview_tokenizer,
    "text_tokenizer": _preview_text_tokenizer,
    "t2i": _preview_t2i,
    "i2t": _preview_i2t,
}


def summarize_scenes(
    flowtok: FlowTok, *, samples: int, seed: int
) -> tuple[dict[str, float | int | str], Pictures]:
    """Everything that the demo claims, of scenes held out of training and of seen ones.

    Each number rests on `samples` examples; options are those of the flowtok.
    """
    size = flowtok.nets.tokenizer.image_size
    held_out, seen = (
        load_examples(
            make_source(f"shapes:{split}", image_size=size, seed=seed), samples
        )
        for split in ("held_out", "seen")
    )
    real = np.concatenate([held_out.floats, seen.floats])
    scalars = {
        "text_tower": RANDOM_TOWER.partition(": ")[2],
        "samples": len(held_out.captions),
        "oracle_accuracy_real": attribute_accuracy(real, held_out.scenes + seen.scenes),
    }
    shown: Pictures = {}
    for part in (_summarize_tokenizer, _summarize_t2i, _summarize_i2t):
        values, grids = part(flowtok, held_out, seen)
        scalars |= values
        shown |= grids
    return scalars, shown


def _summarize_tokenizer(flowtok: FlowTok, held_out: Examples, seen: Examples):
    """Reconstruction, and whether the tokens or the caption carry the image."""
    tokens = np.asarray(flowtok.encode_image(held_out.floats).mean)
    captions = held_out.captions
    others = captions[1:] + captions[:1]
    average = np.broadcast_to(tokens.mean(0), tokens.shape)
    images, wrong, blind = (
        np.asarray(flowtok.decode_image(t, c))
        for t, c in ((tokens, captions), (tokens, others), (average, captions))
    )
    wanted = held_out.scenes
    scalars = {
        "tokenizer_psnr_db": _psnr_db(images, held_out),
        "tokenizer_accuracy": attribute_accuracy(images, wanted),
        "tokenizer_wrong_caption_accuracy": attribute_accuracy(wrong, wanted),
        "tokenizer_mean_latent_accuracy": attribute_accuracy(blind, wanted),
    }
    rows = [_rows(pictures.to_uint8(x), 1)[0] for x in (held_out.floats, images, wrong)]
    labels = ["image", "decoded", "decoded under a wrong caption"]
    footer = f"Images held out of training; {RANDOM_TOWER}."
    grid = pictures.grid(rows, labels=labels, side=96, footer=footer)
    return scalars, {"reconstructions": grid}


def _summarize_t2i(flowtok: FlowTok, held_out: Examples, seen: Examples):
    """Attributes of generated images, by the posterior's sample and by its mean."""
    first, second = (flowtok.text_to_image(held_out.captions, seed=s) for s in (0, 1))
    mean = flowtok.text_to_image(held_out.captions, source="mean")
    trained = flowtok.text_to_image(seen.captions)
    scalars = {
        "t2i_attribute_accuracy": attribute_accuracy(first, held_out.scenes),
        "t2i_attribute_accuracy_mean_source": attribute_accuracy(mean, held_out.scenes),
        "t2i_attribute_accuracy_seen": attribute_accuracy(trained, seen.scenes),
        "t2i_diversity": float(np.abs(first - second).mean()),
        "source_sigma": float(flowtok.encode_text(held_out.captions).std.mean()),
    }
    samples = (_rows(pictures.to_uint8(x)) for x in (first, second))
    rows = [row for pair in zip(*samples, strict=True) for row in pair]
    captions = (held_out.captions[:8], held_out.captions[8:16])
    texts = [texts for c in captions for texts in ([""] * 8, c)]
    footer = f"Captions held out of training, two samples each; {RANDOM_TOWER}."
    return scalars, {"text_to_image": pictures.grid(rows, texts, footer=footer)}


def _summarize_i2t(flowtok: FlowTok, held_out: Examples, seen: Examples):
    """Captions of real images, and what the text tokenizer alone would allow."""
    captions = flowtok.image_to_text(held_out.floats)
    marks = captions_right(captions, held_out.scenes)
    trained = captions_right(flowtok.image_to_text(seen.floats), seen.scenes)
    phrased = [
        c in scenes.captions_of(s)
        for c, s in zip(captions, held_out.scenes, strict=True)
    ]
    decoded = flowtok.reconstruct_text(held_out.captions)
    exact = [a == b for a, b in zip(decoded, held_out.captions, strict=True)]
    scalars = {
        "i2t_exact_match": float(np.mean(marks)),
        "i2t_exact_match_seen": float(np.mean(trained)),
        "i2t_grammatical": float(np.mean(phrased)),
        "text_tokenizer_exact_match": float(np.mean(exact)),
    }
    grid = pictures.grid(
        _rows(held_out.images),
        [captions[:8], captions[8:16]],
        right=[marks[:8], marks[8:16]],
        footer=f"Images held out of training; {RANDOM_TOWER}.",
    )
    return scalars, {"image_to_text": grid}
