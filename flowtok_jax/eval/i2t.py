"""Image to text: one caption for every image, caption metrics, and what captions say:
on generated scenes read by a parser, elsewhere by their words.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from flowtok_jax.data import scenes
from flowtok_jax.data.open_captions import is_true_of
from flowtok_jax.eval import pictures
from flowtok_jax.eval.captions import (
    PLAIN_WORD,
    Scores,
    score_captions,
    word_scores,
)
from flowtok_jax.eval.evaluate import COLUMNS, SHOWN, Arrays, Measured, Part
from flowtok_jax.eval.protocols import metric_suffix
from flowtok_jax.eval.real import RealImage, RealImages, image_id
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.errors import UserError

# {"image_id": int, "caption": str, "references": list of str}: plain, for JSON.
Hypothesis = dict[str, Any]


def caption_images(
    flowtok: FlowTok,
    real: RealImages,
    items: Sequence[RealImage],
    *,
    seed: int = 0,
) -> list[Hypothesis]:
    """Captions consecutive images of a source, and adds their references.

    An image's noise depends on the seed and on its number, not on the images with it.
    """
    pixels = np.stack([item.image for item in items]).astype(np.float32) / 255
    # Images are numbered without gaps: row i of this batch has the number first + i.
    captions = flowtok.image_to_text(pixels, seed, items[0].number)
    return [
        {
            "image_id": image_id(item.record.metadata, item.number),
            "caption": caption,
            "references": real.references(item),
        }
        for item, caption in zip(items, captions, strict=True)
    ]


def captions_by_image(hypotheses: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """Returns the caption of each image.

    Raises:
        UserError: if an image occurs twice.
    """
    found: dict[int, str] = {}
    for hypothesis in hypotheses:
        image = hypothesis["image_id"]
        if image in found:
            raise UserError(
                f"image {image} occurs twice in the source; captions are measured "
                "with each image once and all its references"
            )
        found[image] = hypothesis["caption"]
    return found


def score_hypotheses(hypotheses: Sequence[Mapping[str, Any]]) -> Scores:
    """Computes the metrics of what `caption_images` returned."""
    references = {h["image_id"]: h["references"] for h in hypotheses}
    return score_captions(captions_by_image(hypotheses), references)


def _score_words(
    hypotheses: Sequence[Hypothesis], copies: Sequence[str], suffix: str
) -> dict[str, float]:
    """Scores captions by words, beside captions of other images and those that the text
    tokenizer gives back.
    """
    references = [h["references"] for h in hypotheses]
    # From half the set away: neighbours in a folder have much in common.
    away = len(references) // 2
    others = [texts[0] for texts in references[away:] + references[:away]]
    scored = {"": [h["caption"] for h in hypotheses], "_chance": others}
    scored["_text_tokenizer"] = list(copies)
    return {
        f"{name}{end}{suffix}": value
        for end, captions in scored.items()
        for name, value in word_scores(captions, references).items()
    }


class ImageToText(Part):
    """One caption an image; see Part."""

    name = "i2t"
    groups = ("tokenizer", "i2t", "text_tokenizer")

    def __init__(
        self,
        flowtok: FlowTok,
        real: RealImages,
        *,
        seed: int,
        protocol: dict[str, Any],
    ):
        self._flowtok = flowtok
        self._real = real
        self._seed = seed
        self.count = real.count
        self.protocol = dict(protocol)
        if not real.are_scenes:
            self.protocol["words"] = PLAIN_WORD.pattern

    def compute(self, rows: range) -> Arrays:
        """Captions the images of these rows, and keeps their references."""
        items = self._real.read(rows)
        found = caption_images(self._flowtok, self._real, items, seed=self._seed)
        side = items[0].image.shape[0]
        shown = [item.image for item in items if item.number < SHOWN]
        arrays = {
            # Chunks are npz files: a caption and its references are one JSON text.
            "hypotheses": np.array([json.dumps(h) for h in found]),
            "shown": np.array(shown, np.uint8).reshape(-1, side, side, 3),
        }
        if not self._real.are_scenes:
            captions = [(h["references"] or [""])[0] for h in found]
            arrays["copies"] = np.array(self._copy(captions), np.str_)
        return arrays

    def _copy(self, captions: Sequence[str]) -> list[str]:
        """Sends captions through the text tokenizer and back."""
        size = self._flowtok.caption.batch_size
        found: list[str] = []
        for start in range(0, len(captions), size):
            batch = captions[start : start + size]
            # Filled up, so that one program takes all.
            filled = [*batch, *[""] * (size - len(batch))]
            found += self._flowtok.reconstruct_text(filled)[: len(batch)]
        return found

    def _is_right(self, number: int, caption: str) -> bool:
        """Tells whether a caption is right for a generated scene."""
        scene = self._real.scene(number)
        if self._real.are_open:  # and names what it names rightly
            return is_true_of(caption, scene)
        return scenes.parse_caption(caption) == scene

    def measure(self, arrays: Arrays) -> Measured:
        """Scores the captions, on generated scenes by a parser, else by words."""
        found = [json.loads(line) for line in arrays["hypotheses"].tolist()]
        suffix = metric_suffix("", len(found))
        scores = score_hypotheses(found).renamed(suffix)
        captions = captions_by_image(found)
        metrics = dict(scores.metrics)
        if self._real.are_scenes:
            # Of generated scenes image_id is the number of the scene.
            right = [self._is_right(*item) for item in captions.items()]
            metrics[f"exact_match{suffix}"] = float(np.mean(right))
        else:
            metrics |= _score_words(found, arrays["copies"].tolist(), suffix)
        # COCO's server takes captions in this form.
        rows = [{"image_id": i, "caption": text} for i, text in captions.items()]
        details = {"captions": scores.protocol}
        return Measured(metrics, scores.not_measured, details, {"captions": rows})

    def picture(self, arrays: Arrays) -> np.ndarray:
        """Draws the first images over their captions."""
        found = map(json.loads, arrays["hypotheses"][:SHOWN].tolist())
        texts = [hypothesis["caption"] for hypothesis in found]
        rows = (pictures.in_rows(x, COLUMNS) for x in (arrays["shown"], texts))
        return pictures.grid(*rows)
