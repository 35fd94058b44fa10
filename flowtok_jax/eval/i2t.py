"""Image to text: caption metrics, and on scenes what a parser reads."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from flowtok_jax.data import scenes
from flowtok_jax.eval import pictures
from flowtok_jax.eval.captioning import (
    CaptionedImages,
    caption_images,
    captions_of,
    score_hypotheses,
)
from flowtok_jax.eval.chunks import Arrays
from flowtok_jax.eval.parts import COLUMNS, SHOWN, Measured, Part
from flowtok_jax.eval.protocols import metric_suffix
from flowtok_jax.pipeline import FlowTok


class ImageToText(Part):
    """One caption an image; see Part.

    Args:
        scene_of: what a generated image shows, by its number; None of others.
    """

    name = "i2t"

    def __init__(
        self,
        flowtok: FlowTok,
        source: CaptionedImages,
        *,
        count: int,
        seed: int,
        protocol: dict[str, Any],
        scene_of: Callable[[int], scenes.Scene] | None = None,
    ):
        self._flowtok, self._source, self._seed = flowtok, source, seed
        self.count, self.protocol, self._scene_of = count, protocol, scene_of

    def compute(self, rows: range) -> Arrays:
        """See Part."""
        found = caption_images(self._flowtok, self._source, rows, seed=self._seed)
        side = self._source.image_size
        shown = [self._source[i].image for i in rows if i < SHOWN]
        return {
            "hypotheses": np.array([json.dumps(h) for h in found]),
            "shown": np.array(shown, np.uint8).reshape(-1, side, side, 3),
        }

    def measure(self, arrays: Arrays) -> Measured:
        """See Part."""
        found = [json.loads(line) for line in arrays["hypotheses"].tolist()]
        suffix = metric_suffix("", len(found))
        scores = score_hypotheses(found).renamed(suffix)
        captions = captions_of(found)
        metrics = dict(scores.metrics)
        if self._scene_of is not None:
            right = [
                scenes.parse_caption(caption) == self._scene_of(number)
                for number, caption in captions.items()
            ]
            metrics[f"exact_match{suffix}"] = float(np.mean(right))
        rows = [{"image_id": i, "caption": text} for i, text in captions.items()]
        details = {"captions": scores.protocol}
        return Measured(metrics, scores.not_measured, details, {"captions": rows})

    def picture(self, arrays: Arrays) -> np.ndarray:
        """See Part."""
        found = map(json.loads, arrays["hypotheses"][:SHOWN].tolist())
        texts = [hypothesis["caption"] for hypothesis in found]
        starts = range(0, len(arrays["shown"]), COLUMNS)
        rows = [list(arrays["shown"][i : i + COLUMNS]) for i in starts]
        return pictures.grid(rows, [texts[i : i + COLUMNS] for i in starts])
