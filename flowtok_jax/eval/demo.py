"""Numbers and pictures that the demo claims, measured on generated scenes."""

from collections.abc import Collection
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from flowtok_jax.data import scenes
from flowtok_jax.data.inputs import to_uint8
from flowtok_jax.data.loader import evaluated_source
from flowtok_jax.data.sources import make_source
from flowtok_jax.eval import pictures
from flowtok_jax.eval.previews import (
    RANDOM_TOWER,
    Pictures,
    PreviewExamples,
    attribute_accuracy,
    captions_right,
    grid_rows,
    load_examples,
    mean_psnr_db,
)
from flowtok_jax.models.build import find_provider
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.files import Place
from flowtok_jax.runtime.mesh import make_mesh
from flowtok_jax.sampling import DIRECTIONS
from flowtok_jax.weights.place import Weights

TEXT_TOWER = "clip"  # a group that no stage trains


def are_told_scenes(config: ConfigDict) -> bool:
    """Tells whether a run is measured on scenes of which captions tell everything."""
    spec = evaluated_source(config)[0]
    return spec.startswith("shapes") and not spec.startswith(f"shapes:{scenes.OPEN}")


def summarize_demo(
    config: ConfigDict, workdir: Place, trained: Collection[str]
) -> tuple[dict[str, Any], Pictures]:
    """Measures a run on generated scenes, once both directions are trained.

    Args:
        trained: the run's finished stages.

    Returns:
        Nothing for a run on other data, or with a stage still to train.
    """
    groups = {group for way in DIRECTIONS.values() for group in way.groups}
    needed = {find_provider(group, trained) for group in groups}
    is_whole = needed - {TEXT_TOWER} <= set(trained)
    if not (is_whole and are_told_scenes(config)):
        return {}, {}
    mesh = make_mesh(**config.mesh)
    flowtok = FlowTok.from_weights(Weights(workdir), config, mesh)
    samples = config.eval.samples
    return summarize_scenes(flowtok, samples=samples, seed=config.train.seed)


def summarize_scenes(
    flowtok: FlowTok, *, samples: int, seed: int
) -> tuple[dict[str, float | int | str], Pictures]:
    """Measures scenes held out of training and seen ones.

    Each number rests on `samples` examples; options are those of the flowtok.
    """
    size = flowtok.nets.tokenizer.image_size
    held_out, seen = (
        load_examples(
            make_source(f"shapes:{split}", image_size=size, seed=seed), samples
        )
        for split in ("held_out", "seen")
    )
    # The oracle itself, on images that nobody drew: what 1.0 means below.
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


def _summarize_tokenizer(
    flowtok: FlowTok, held_out: PreviewExamples, seen: PreviewExamples
):
    """Measures reconstructions, and whether tokens or caption carry the image."""
    tokens = np.asarray(flowtok.encode_image(held_out.floats).mean)
    captions = held_out.captions
    # Were the picture in the caption, another's caption would draw another picture, and
    # tokens that say nothing would still give it away.
    others = captions[1:] + captions[:1]
    average = np.broadcast_to(tokens.mean(0), tokens.shape)
    images, wrong, blind = (
        np.asarray(flowtok.decode_image(t, c))
        for t, c in ((tokens, captions), (tokens, others), (average, captions))
    )
    wanted = held_out.scenes
    scalars = {
        "tokenizer_psnr_db": mean_psnr_db(images, held_out),
        "tokenizer_accuracy": attribute_accuracy(images, wanted),
        "tokenizer_wrong_caption_accuracy": attribute_accuracy(wrong, wanted),
        "tokenizer_mean_latent_accuracy": attribute_accuracy(blind, wanted),
    }
    rows = [grid_rows(to_uint8(x), 1)[0] for x in (held_out.floats, images, wrong)]
    labels = ["image", "decoded", "decoded under a wrong caption"]
    footer = f"Images held out of training; {RANDOM_TOWER}."
    grid = pictures.grid(rows, labels=labels, side=96, footer=footer)
    return scalars, {"reconstructions": grid}


def _summarize_t2i(flowtok: FlowTok, held_out: PreviewExamples, seen: PreviewExamples):
    """Measures images drawn from the posterior's sample and from its mean."""
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
    # Two samples of a caption stand one above the other, the caption below them.
    samples = (grid_rows(to_uint8(x)) for x in (first, second))
    rows = [row for pair in zip(*samples, strict=True) for row in pair]
    texts = [t for c in grid_rows(held_out.captions) for t in ([""] * len(c), c)]
    footer = f"Captions held out of training, two samples each; {RANDOM_TOWER}."
    return scalars, {"text_to_image": pictures.grid(rows, texts, footer=footer)}


def _summarize_i2t(flowtok: FlowTok, held_out: PreviewExamples, seen: PreviewExamples):
    """Measures captions of real images, and what the text tokenizer alone allows."""
    captions = flowtok.image_to_text(held_out.floats)
    marks = captions_right(captions, held_out.scenes)
    trained = captions_right(flowtok.image_to_text(seen.floats), seen.scenes)
    # Grammatical: a phrase that the scenes' grammar could have made of the scene.
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
        grid_rows(held_out.images),
        grid_rows(captions),
        right=grid_rows(marks),
        footer=f"Images held out of training; {RANDOM_TOWER}.",
    )
    return scalars, {"image_to_text": grid}
