"""Image to text on a data set: one caption for every image, and what they are worth."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from flowtok_jax.data import images, scenes
from flowtok_jax.data.records import BadRecord
from flowtok_jax.data.sources import Shapes, make_records, parse
from flowtok_jax.eval.caption_files import image_id
from flowtok_jax.eval.captions import Scores, score_captions
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.errors import UserError

# {"image_id": int, "caption": str, "references": list of str}: plain, for JSON.
Hypothesis = dict[str, Any]


class CaptionedImage(NamedTuple):
    """An image, its number in the data set, and all that people wrote of it."""

    image_id: int
    image: UInt8[np.ndarray, "s s 3"]
    references: tuple[str, ...]


class CaptionedImages(Sequence):
    """Images of one source by their index, each once; no filters, no flips.

    The shorter side is resized to the size, and the centre cut out. Of generated
    scenes the references are all phrasings of the scene.

    Args:
        spec: such as karpathy:dataset_coco.json:images:test; see data/sources.py.
        seed: of generated scenes.
        cache: directory for what is found out about tars; None: the user's.

    Raises:
        UserError: for a source that is not there, has no images, or is several.
    """

    def __init__(
        self, spec: str, *, image_size: int, seed: int, cache: str | None = None
    ):
        parts = parse(spec)
        if len(parts) > 1 or parts[0].kind == "latents":
            raise UserError(
                f"captions are measured on one source of images; got {spec!r}: give "
                "one such as karpathy:dataset_coco.json:images:test"
            )
        (part,) = parts
        self.spec, self.image_size = spec, image_size
        self._scenes = self._records = None
        if part.kind == "shapes":
            self._scenes = Shapes(part.arguments or "train", image_size, seed)
        else:
            self._records = make_records(
                part, image_size=image_size, seed=seed, cache=cache
            )

    def __len__(self) -> int:
        return len(self._records if self._scenes is None else self._scenes)

    def __getitem__(self, index: int) -> CaptionedImage:
        """The image.

        Raises:
            UserError: where it is broken; to leave it out would change the protocol.
        """
        if self._scenes is not None:
            references = scenes.captions_of(self._scenes.scene(index))
            image = self._scenes[index]["image"]
            return CaptionedImage(index, image, tuple(references))
        try:
            record = self._records[index]
            if record.image is None:
                raise BadRecord("missing_image", record.name)
            image = images.decode(record.image, record.name)
        except BadRecord as bad:
            raise UserError(
                f"image {index} of {self.spec} cannot be used ({bad.reason}: "
                f"{bad.name}); mend it: every image of the source is measured"
            ) from bad
        pixels = images.resize_and_crop(image, self.image_size)
        return CaptionedImage(image_id(record.metadata, index), pixels, record.captions)


def caption_images(
    flowtok: FlowTok, source: CaptionedImages, indices: range, *, seed: int = 0
) -> list[Hypothesis]:
    """A caption of each image at these indices, with its references.

    An image's noise depends on the seed and on its index, not on the indices with it.
    """
    examples = [source[index] for index in indices]
    pixels = np.stack([example.image for example in examples]).astype(np.float32) / 255
    captions = flowtok.image_to_text(pixels, seed, indices.start)
    return [
        {
            "image_id": example.image_id,
            "caption": caption,
            "references": list(example.references),
        }
        for example, caption in zip(examples, captions, strict=True)
    ]


def captions_of(hypotheses: Iterable[Mapping[str, Any]]) -> dict[int, str]:
    """The caption of each image.

    Raises:
        UserError: where an image occurs twice.
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
    """The metrics of what `caption_images` gave."""
    references = {h["image_id"]: h["references"] for h in hypotheses}
    return score_captions(captions_of(hypotheses), references)
