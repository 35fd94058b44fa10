"""Text to image: FID and its like, CLIP score, and what is drawn: on generated scenes
read by an oracle, elsewhere by retrieval among real images.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowtok_jax.data import scenes
from flowtok_jax.data.inputs import to_uint8
from flowtok_jax.data.open_captions import (
    Wanted,
    evenness,
    match_objects,
    open_colours,
)
from flowtok_jax.data.oracle import read_scene
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.eval import pictures
from flowtok_jax.eval.clip_score import clip_score
from flowtok_jax.eval.evaluate import COLUMNS, SHOWN, Arrays, Measured, Part
from flowtok_jax.eval.features import FeatureMetrics
from flowtok_jax.eval.protocols import Prompt, metric_suffix
from flowtok_jax.eval.retrieval import Retrieval
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.weights.nets import RANDOM, MetricNet


class TextToImage(Part):
    """One image a prompt; see Part.

    Args:
        protocol: what is drawn with which weights; metrics' networks are added to it.
        features: tells as well how many images are judged by networks, the first ones;
            or why none are.
        clip: the network of CLIP score and its vocabulary, or why there is none.
        shown: what each image should show, of generated scenes.
        wanted: what each caption names, where it leaves things open.
        retrieval: of prompts that are captions of real images.
    """

    name = "t2i"
    groups = ("clip", "tokenizer", "t2i")

    def __init__(
        self,
        flowtok: FlowTok,
        prompts: Sequence[Prompt],
        *,
        seed: int,
        protocol: dict[str, Any],
        features: FeatureMetrics | str,
        clip: tuple[MetricNet, Vocabulary] | str,
        shown: Sequence[scenes.Scene] = (),
        wanted: Sequence[Sequence[Wanted]] = (),
        retrieval: Retrieval | None = None,
    ):
        self._flowtok = flowtok
        self._prompts = prompts
        self._seed = seed
        self._features = features
        self._clip = clip
        self._scenes = shown
        self._wanted = wanted
        self._retrieval = retrieval
        self._suffix = functools.partial(metric_suffix, protocol.get("protocol", ""))
        self.count = len(prompts)
        self.protocol = dict(protocol)
        if not isinstance(features, str):
            self.protocol["features"] = features.protocol
        if retrieval is not None:
            self.protocol["retrieval"] = retrieval.protocol
        if not isinstance(clip, str):
            self.protocol["clip"] = clip[0].sha256

    def compute(self, rows: range) -> Arrays:
        """Draws the images of these rows, and judges them.

        Raises:
            UserError: if images are not finite; as bytes they would be black.
        """
        captions = [self._prompts[i].caption for i in rows]
        drawn = self._flowtok.text_to_image(captions, self._seed, rows.start)
        if bad := sum(not np.isfinite(image).all() for image in drawn):
            raise UserError(
                f"{bad} of the images {rows.start} to {rows.stop - 1} are not finite; "
                "expected sound weights, or --config.compute.dtype=float32"
            )
        # Networks judge what a PNG file would hold, as other evaluations do.
        images = to_uint8(drawn)
        arrays: Arrays = {}
        if not isinstance(self._features, str):
            arrays |= self._features.see(images, rows)
            # The networks look at the first images only, the same ones for all metrics.
            seen = len(arrays["pool"])
            if not isinstance(self._clip, str):
                arrays["clip"] = clip_score(*self._clip, images[:seen], captions[:seen])
        if self._scenes:
            pairs = zip(drawn, rows, strict=True)
            right = [read_scene(image) == self._scenes[i] for image, i in pairs]
            arrays["right"] = np.array(right)
        if self._wanted:
            arrays |= self._read_open(drawn, rows)
        if self._retrieval is not None:
            arrays |= self._retrieval.see(images, captions, rows)
        arrays["shown"] = images[np.array(rows) < SHOWN]
        return arrays

    def measure(self, arrays: Arrays) -> Measured:
        """Measures the images against real ones and their captions."""
        found = self._judge(arrays)
        if self._scenes:
            name = f"attribute_accuracy{self._suffix(self.count)}"
            found.metrics[name] = float(arrays["right"].mean())
        if self._wanted:
            found.metrics.update(self._measure_open(arrays))
        if self._retrieval is not None:
            found = found.merge(self._retrieval.measure(arrays))
        return found

    def _read_open(self, drawn: np.ndarray, rows: range) -> Arrays:
        """Reads scenes whose captions leave things open; -1 is no colour."""
        read = [read_scene(image) for image in drawn]
        wanted = [self._wanted[i] for i in rows]
        colours = np.full((len(rows), 2), -1)
        for row, scene, names in zip(colours, read, wanted, strict=True):
            found = open_colours(scene, names)
            row[: len(found)] = found
        pairs = zip(read, wanted, strict=True)
        return {
            "readable": np.array([scene is not None for scene in read]),
            "right": np.array([match_objects(*pair) is not None for pair in pairs]),
            "colours": colours,
        }

    def _measure_open(self, arrays: Arrays) -> dict[str, float]:
        """Measures what was drawn where captions leave things open."""
        colours = arrays["colours"]
        found = {
            "readable": float(arrays["readable"].mean()),
            "right": float(arrays["right"].mean()),
            "open_colour_evenness": evenness(colours[colours >= 0]),
        }
        suffix = self._suffix(self.count)
        return {f"{name}{suffix}": value for name, value in found.items()}

    def _judge(self, arrays: Arrays) -> Measured:
        """Computes what networks say of the images, or says why none does."""
        if isinstance(self._features, str):
            reasons = {"fid": self._features, "clip_score": self._features}
            return Measured({}, reasons)
        # `pool` has a row for each image that was judged.
        seen = self._prompts[: len(arrays["pool"])]
        found = self._features.measure(arrays, [p.group for p in seen])
        if isinstance(self._clip, str):
            found.not_measured["clip_score"] = self._clip
        else:
            net = "_random" if self._clip[0].sha256 == RANDOM else ""
            name = f"clip_score{net}{self._suffix(len(seen))}"
            found.metrics[name] = float(arrays["clip"].mean())
        return found

    def picture(self, arrays: Arrays) -> np.ndarray:
        """Draws the first images over their prompts, the real ones above them."""
        images = arrays["shown"]
        captions = [prompt.caption for prompt in self._prompts[: len(images)]]
        if self._retrieval is not None:
            real = self._retrieval.real(range(len(images)))
            return pictures.compared(real, images, captions, COLUMNS)
        rows = (pictures.in_rows(x, COLUMNS) for x in (images, captions))
        return pictures.grid(*rows)
