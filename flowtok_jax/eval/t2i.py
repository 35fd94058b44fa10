"""Text to image: FID and its like, CLIP score, and what is drawn: on generated scenes
read by an oracle, elsewhere by retrieval among real images.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowtok_jax.data.inputs import to_uint8
from flowtok_jax.data.vocabulary import Vocabulary
from flowtok_jax.eval import pictures
from flowtok_jax.eval.clip_score import clip_score
from flowtok_jax.eval.evaluate import COLUMNS, SHOWN, Arrays, Measured, Part
from flowtok_jax.eval.features import FeatureMetrics
from flowtok_jax.eval.protocols import Prompt, metric_suffix
from flowtok_jax.eval.retrieval import Retrieval
from flowtok_jax.eval.scene_judges import SceneJudge
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
        scene_judge: of prompts that are captions of generated scenes.
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
        scene_judge: SceneJudge | None = None,
        retrieval: Retrieval | None = None,
    ):
        self._flowtok = flowtok
        self._prompts = prompts
        self._seed = seed
        self._features = features
        self._clip = clip
        self._scene_judge = scene_judge
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
        if self._scene_judge is not None:
            arrays |= self._scene_judge.see(drawn, rows)
        if self._retrieval is not None:
            arrays |= self._retrieval.see(images, captions, rows)
        arrays["shown"] = images[np.array(rows) < SHOWN]
        return arrays

    def measure(self, arrays: Arrays) -> Measured:
        """Measures the images against real ones and their captions."""
        found = self._judge(arrays)
        if self._scene_judge is not None:
            suffix = self._suffix(self.count)
            for name, value in self._scene_judge.measure(arrays).items():
                found.metrics[f"{name}{suffix}"] = value
        if self._retrieval is not None:
            found = found.merge(self._retrieval.measure(arrays))
        return found

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
