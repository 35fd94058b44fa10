"""Image to text: caption metrics, and on scenes what a parser reads."""

from typing import Any

import numpy as np

from flowtok_jax import pictures
from flowtok_jax.data import scenes
from flowtok_jax.eval.captions import score_captions
from flowtok_jax.eval.chunks import Arrays
from flowtok_jax.eval.parts import SHOWN, Measured, rejected
from flowtok_jax.eval.protocols import metric_suffix
from flowtok_jax.eval.real import RealImages
from flowtok_jax.pipeline import FlowTok

COLUMNS = 8  # of the picture


class ImageToText:
    """One caption a real image; see parts.py."""

    name = "i2t"

    def __init__(
        self,
        flowtok: FlowTok,
        real: RealImages,
        *,
        seed: int,
        protocol: dict[str, Any],
    ):
        self._flowtok, self._real, self._seed = flowtok, real, seed
        self.count, self.protocol = real.count, protocol

    def compute(self, rows: range) -> Arrays:
        """See Part; a caption's noise is that of its record's number."""
        items, bad = self._real.read(rows)
        arrays = {
            "number": np.array([item.number for item in items], np.int64),
            "rejected": rejected(bad),
        }
        # Those that cannot be used keep their row, so that the others keep their noise.
        side = self._flowtok.nets.tokenizer.image_size
        pixels = np.zeros((len(rows), side, side, 3), np.float32)
        for item in items:
            pixels[item.number - rows.start] = item.image / np.float32(255)
        texts = self._flowtok.image_to_text(pixels, self._seed, rows.start)
        kept = [texts[item.number - rows.start] for item in items]
        arrays["caption"] = np.array(kept, np.str_)
        shown = np.round(pixels * 255).astype(np.uint8)[arrays["number"] - rows.start]
        arrays["shown"] = shown[arrays["number"] < SHOWN]
        return arrays

    def measure(self, arrays: Arrays) -> Measured:
        """See Part."""
        numbers, captions = arrays["number"].tolist(), arrays["caption"].tolist()
        suffix = metric_suffix("", len(numbers))
        hypotheses = dict(zip(numbers, captions, strict=True))
        references = {number: self._real.captions(number) for number in numbers}
        scores = score_captions(hypotheses, references)
        found = Measured(
            {f"{name}{suffix}": value for name, value in scores.metrics.items()},
            dict(scores.not_measured),
            {"captions": scores.protocol},
        )
        if self._real.are_scenes:
            right = [
                scenes.parse_caption(caption) == self._real.scene(number)
                for number, caption in hypotheses.items()
            ]
            found.metrics[f"exact_match{suffix}"] = float(np.mean(right))
        return found

    def picture(self, arrays: Arrays) -> np.ndarray:
        """See Part."""
        texts = arrays["caption"].tolist()
        starts = range(0, len(arrays["shown"]), COLUMNS)
        rows = [list(arrays["shown"][i : i + COLUMNS]) for i in starts]
        return pictures.grid(rows, [texts[i : i + COLUMNS] for i in starts])
