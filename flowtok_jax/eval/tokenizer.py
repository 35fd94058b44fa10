"""The image tokenizer: rFID, PSNR, SSIM, LPIPS, detail, statistics of its latents."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flowtok_jax.data.inputs import to_uint8
from flowtok_jax.eval import pictures, reconstruction
from flowtok_jax.eval.evaluate import SHOWN, Arrays, Measured, Part
from flowtok_jax.eval.features import FeatureMetrics
from flowtok_jax.eval.protocols import metric_suffix
from flowtok_jax.eval.real import RealImages
from flowtok_jax.eval.reconstruction import LatentStatistics, PerceptualDistance
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime.batches import one_ahead

NO_DETAIL = "no image has high frequencies"


class Reconstruction(Part):
    """Real images through the tokenizer and back, from the posterior's mean.

    See Part.

    Args:
        features: tells what Inception measures, or says why it does not.
        lpips: measures LPIPS, or says why nothing does.
        judged: number of images that networks look at, the first ones.
        batch_size: images that the tokenizer takes at a time.
    """

    name = "tokenizer"
    groups = ("clip", "tokenizer")

    def __init__(
        self,
        flowtok: FlowTok,
        real: RealImages,
        *,
        protocol: dict[str, Any],
        features: FeatureMetrics | str,
        lpips: PerceptualDistance | str,
        judged: int,
        batch_size: int,
    ):
        self._flowtok = flowtok
        self._real = real
        self._features = features
        self._lpips = lpips
        self._judged = judged
        self._batch_size = batch_size
        self.count = real.count
        detail = {"above": reconstruction.HIGH, "least": reconstruction.LEAST_DETAIL}
        self.protocol = {**protocol, "detail_kept": detail}
        if not isinstance(features, str):
            self.protocol["features"] = features.protocol
        if not isinstance(lpips, str):
            self.protocol["lpips"] = lpips.net_sha256

    def _reconstruct(
        self, images: np.ndarray, captions: Sequence[str]
    ) -> tuple[np.ndarray, LatentStatistics]:
        """Returns decoded images, and the statistics of their latents."""
        count = len(images)
        size = min(self._batch_size, count)

        def started() -> Iterator[tuple[int, Any]]:
            for start in range(0, count, size):
                # The last batch repeats its last image, so that one program takes all.
                rows = np.minimum(np.arange(start, start + size), count - 1)
                posterior = self._flowtok.encode_image(images[rows])
                texts = [captions[i] for i in rows]
                # The mean, not a sample: reconstruction is measured without noise.
                batch = self._flowtok.decode_image(posterior.mean, texts)
                yield (
                    min(size, count - start),
                    (posterior.mean, posterior.logvar, batch),
                )

        decoded = []
        latents = LatentStatistics()
        for kept, (mean, logvar, batch) in one_ahead(started()):
            decoded.append(batch[:kept])
            # Sums are merged batch by batch, as latents of all images would not fit.
            latents = latents.merge(LatentStatistics.of(mean[:kept], logvar[:kept]))
        return np.concatenate(decoded), latents

    def compute(self, rows: range) -> Arrays:
        """Encodes and decodes the images of these rows."""
        items = self._real.read(rows)
        numbers = np.array([item.number for item in items])
        real = np.stack([item.image for item in items])
        targets = real.astype(np.float32) / 255
        captions = [item.record.captions[0] for item in items]
        decoded, latents = self._reconstruct(targets, captions)
        arrays = reconstruction.measure_images(decoded, targets)
        sums = latents._asdict().items()
        # With an axis in front, along which chunks are joined.
        arrays |= {f"latents/{name}": np.asarray(x)[None] for name, x in sums}
        if not isinstance(self._lpips, str):
            judged = numbers < self._judged
            arrays["lpips"] = self._lpips(decoded[judged], targets[judged])
        images = to_uint8(decoded)
        if not isinstance(self._features, str):
            arrays |= self._features.see(images, numbers)
        # A shown image takes two places: itself and its reconstruction.
        shown = numbers < SHOWN // 2
        return {**arrays, "shown": images[shown], "real": real[shown]}

    def measure(self, arrays: Arrays) -> Measured:
        """Averages the distances, and measures decoded images by the reference."""
        # One row a chunk; the sums of all images are their sum.
        sums = (arrays[f"latents/{name}"].sum(0) for name in LatentStatistics._fields)
        latents = LatentStatistics(*sums)
        means = {key: float(arrays[key].mean()) for key in ("psnr_db", "ssim")}
        suffix = metric_suffix("", len(arrays["psnr_db"]))
        found = Measured(
            {f"{k}{suffix}": v for k, v in (means | latents.summary()).items()},
            {},
            {"latent_channels": latents.channels()},
        )
        if kept := len(arrays["detail_kept"]):
            name = f"detail_kept{metric_suffix('', kept)}"
            found.metrics[name] = float(arrays["detail_kept"].mean())
        else:
            found.not_measured["detail_kept"] = NO_DETAIL
        if isinstance(self._lpips, str):
            found.not_measured["lpips"] = self._lpips
        else:
            name = self._lpips.name(len(arrays["lpips"]))
            found.metrics[name] = float(arrays["lpips"].mean())
        if isinstance(self._features, str):
            found.not_measured["rfid"] = self._features
            return found
        return found.merge(self._features.measure(arrays, fid="rfid"))

    def picture(self, arrays: Arrays) -> np.ndarray:
        """Draws the first images over what was decoded of them."""
        return pictures.pairs(arrays["real"], arrays["shown"])
