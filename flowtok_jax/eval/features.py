"""Inception's features of images over a mesh and processes, and metrics of them: FID,
KID, precision, recall and the Inception score.

    clean    Pillow's bicubic to 299 px, with antialiasing, each channel in float and
             never rounded, as clean-fid does
    legacy   TensorFlow 1's bilinear to 299 px, without antialiasing

A process loads and resizes only the rows that its devices hold, and gets all results.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Float32, Int, Num, UInt8
from PIL import Image

from flowtok_jax.eval.evaluate import Arrays, Measured
from flowtok_jax.eval.fid import (
    Gaussian,
    Moments,
    Reference,
    inception_score,
    kernel_distance,
    precision_recall,
)
from flowtok_jax.models.inception import SIDE, resize_legacy
from flowtok_jax.runtime.batches import row_parts, run_rows
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.mesh import (
    from_local_rows,
    in_mesh,
    local_rows,
    put,
    replicated,
)
from flowtok_jax.weights.nets import RANDOM, MetricNet

RESIZES = ("clean", "legacy")
SPLITS = 10  # of the Inception score
SUBSETS = 100  # of KID
SUBSET_SIZE = 1000  # rows of each
NEIGHBOURS = 3  # of precision and recall
FEW = "expected at least {} samples"
OF_FEATURES = ("kid", "precision", "recall")
NO_FEATURES = "the reference holds no features; make it with --features to measure this"
Pixels = UInt8[np.ndarray, "h w 3"]


class Features(NamedTuple):
    """Features of the images that could be loaded.

    Attributes:
        rows: their numbers, ascending.
        pool: the 2048 values before the last layer.
        logits: of the 1008 classes, without bias.
    """

    rows: Int[np.ndarray, " n"]
    pool: Float32[np.ndarray, "n d"]
    logits: Float32[np.ndarray, "n k"]


def resize_clean(image: Pixels) -> Float32[np.ndarray, "299 299 3"]:
    """Resizes an image to 299 px, in [0, 255] and not rounded."""
    # Pillow resizes float images one channel at a time, in mode F.
    channels = [
        Image.fromarray(image[..., i].astype(np.float32)).resize(
            (SIDE, SIDE), Image.Resampling.BICUBIC
        )
        for i in range(3)
    ]
    # Bicubic weights are negative in places, and overshoot edges.
    return np.stack([np.asarray(x) for x in channels], -1).clip(0, 255)


def check_resize(resize: str, key: str = "resize") -> None:
    """Refuses an unknown way of resizing, named by the option that it is from."""
    if resize not in RESIZES:
        raise UserError(f"{key} is {resize!r}; expected one of {', '.join(RESIZES)}")


class Extractor:
    """Inception over the devices of a mesh, compiled once for one batch.

    A device always gets the same number of rows, and an image's row on its device
    depends on its number only: the same bits on one device and on eight. Every process
    has to make the same calls.

    Attributes:
        width: dimensions of the features.

    Args:
        rows: of a device.
        side: pixels of all the images, which legacy resizing has to know.
    """

    def __init__(
        self,
        net: MetricNet,
        mesh: Mesh,
        *,
        resize: str,
        rows: int,
        threads: int,
        side: int = 0,
    ):
        check_resize(resize)
        self.resize = resize
        self.net_sha256 = net.sha256
        self._mesh = mesh
        self._threads = threads
        self._params = put(net.params, replicated(mesh))
        self._size = rows * row_parts(mesh)
        self._local = local_rows(mesh, self._size)
        # Legacy resizing runs on the device, which takes bytes of one size.
        if resize == "legacy":
            empty = np.zeros((side, side, 3), np.uint8)
        else:
            empty = np.zeros((SIDE, SIDE, 3), np.float32)
        self._empty = np.stack([empty] * len(self._local))
        image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), np.float32)
        params = {"params": net.params}
        # Nothing is computed to learn the widths.
        shapes = jax.eval_shape(net.module.apply, params, image)
        self.width, self._classes = (x.shape[1] for x in shapes)

        def features_of(
            params, images: Num[Array, "1 b h w 3"], loaded: Bool[Array, "1 b"]
        ) -> tuple[Float[Array, "b d"], Float[Array, "b k"], Bool[Array, " b"]]:
            # `from_local_rows` makes batches with a leading axis of steps, here 1.
            images = images[0].astype(jnp.float32)
            if resize == "legacy":
                images = resize_legacy(images)
            return *net.module.apply({"params": params}, images), loaded[0]

        program = in_mesh(mesh, features_of)
        self._program = jax.jit(program, out_shardings=replicated(mesh))

    def __call__(self, count: int, load: Callable[[int], Pixels | None]) -> Features:
        """Computes features of `count` images.

        Args:
            load: image i, or None where it is broken; called for this process's rows,
                on several threads.
        """
        # A process may have to ask for no image at all, as of the last chunk.
        if not count:
            pool, logits = (
                np.zeros((0, n), np.float32) for n in (self.width, self._classes)
            )
            return Features(np.zeros(0, np.int64), pool, logits)
        with ThreadPoolExecutor(self._threads) as threads:

            def start(rows: np.ndarray):
                images, loaded = self._load(threads, rows, count, load)
                return self._program(self._params, images, loaded)

            pool, logits, loaded = run_rows(start, count, self._size)
        (rows,) = np.nonzero(loaded)
        return Features(rows, pool[rows], logits[rows])

    def _load(
        self,
        threads: ThreadPoolExecutor,
        rows: np.ndarray,
        count: int,
        load: Callable[[int], Pixels | None],
    ) -> tuple[Array, Array]:
        """Makes a batch, and says which of its rows hold an image."""

        def prepare(number: int) -> np.ndarray | None:
            # Rows past the end fill the batch with zeros.
            image = load(number) if number < count else None
            if image is None:
                return None
            if self.resize == "clean":
                return resize_clean(image)
            if image.shape != self._empty.shape[1:]:
                raise UserError(
                    f"image {number} is {image.shape[1]} x {image.shape[0]}; legacy "
                    f"resizing expected squares of {self._empty.shape[1]} px"
                )
            return image

        found = list(threads.map(prepare, rows[self._local].tolist()))
        images = self._empty.copy()
        for row, image in enumerate(found):
            if image is not None:
                images[row] = image
        # The flags travel with the rows: other processes do not know what was broken.
        loaded = np.array([image is not None for image in found])
        return tuple(
            from_local_rows(self._mesh, self._size, x[None]) for x in (images, loaded)
        )


class FeatureMetrics(NamedTuple):
    """Metrics of Inception's features of images, against a reference.

    Attributes:
        samples: number of images that are looked at, the first ones.
        suffix: end of the metrics' names; `metric_suffix` of a protocol.
    """

    extract: Extractor
    reference: Reference
    samples: int
    suffix: Callable[..., str]

    @property
    def protocol(self) -> dict[str, Any]:
        """All that the numbers depend on."""
        return {
            "inception": self.extract.net_sha256,
            "resize": self.extract.resize,
            "images": self.samples,
            "reference": self.reference.describe(),
            "inception_score": {"splits": SPLITS},
            "kid": {"subsets": SUBSETS, "subset_size": self._subset_size},
            "precision_recall": {"k": NEIGHBOURS},
        }

    @property
    def _subset_size(self) -> int:
        """Rows of a subset of KID: no set can give more rows than it has."""
        features = self.reference.features
        sizes = [self.samples] if features is None else [self.samples, len(features)]
        return min(SUBSET_SIZE, *sizes)

    def see(
        self, images: UInt8[np.ndarray, "b s s 3"], numbers: range | np.ndarray
    ) -> Arrays:
        """Computes arrays of those images that are looked at, told by their numbers."""
        # Which images are judged depends on their numbers, not on chunks.
        mine = images[np.array(numbers) < self.samples]
        found = self.extract(len(mine), mine.__getitem__)
        return {"pool": found.pool, "logits": found.logits}

    def name(self, metric: str, *counts: int) -> str:
        """Returns a metric's name, which tells on how many images it rests."""
        net = "_random_inception" if self.extract.net_sha256 == RANDOM else ""
        return f"{metric}{net}{self.suffix(*counts)}"

    def fid(self, pool: np.ndarray) -> float:
        """Computes the Frechet distance of features from the reference."""
        return Gaussian.of(Moments.of(pool)).distance(self.reference.whole)

    def measure(
        self, arrays: Arrays, groups: Sequence[str] = (), fid: str = "fid"
    ) -> Measured:
        """Computes all the metrics.

        Args:
            groups: group of each image that was looked at, or "".
            fid: name of FID in this part.
        """
        pool = arrays["pool"]
        real = self.reference.features
        count = len(pool)
        found: dict[str, float] = {}
        lacking: dict[str, str] = {}
        if count < 2:
            lacking[fid] = FEW.format(2)
        else:
            found[fid] = self.fid(pool)
        # An empty split would have no mean.
        if count < SPLITS:
            lacking["inception_score"] = FEW.format(SPLITS)
        else:
            score = inception_score(arrays["logits"], splits=SPLITS)
            found |= {"inception_score": score.mean, "inception_score_std": score.std}
        if real is None:
            lacking |= dict.fromkeys(OF_FEATURES, NO_FEATURES)
        # A k-th neighbour beside the row itself has to exist.
        elif min(count, len(real)) <= NEIGHBOURS:
            reason = f"{FEW.format(NEIGHBOURS + 1)}, and as many real images"
            lacking |= dict.fromkeys(OF_FEATURES, reason)
        else:
            sizes = {"subsets": SUBSETS, "subset_size": self._subset_size}
            kid = kernel_distance(pool, real, **sizes)
            precision, recall = precision_recall(real, pool, k=NEIGHBOURS)
            found |= {"kid": kid.mean, "kid_std": kid.std}
            found |= {"precision": precision, "recall": recall}
        named = {self.name(k, count): v for k, v in found.items()}
        lacking = {self.name(k, count): v for k, v in lacking.items()}
        return Measured(named, lacking).merge(self._by_group(pool, groups))

    def _by_group(self, pool: np.ndarray, groups: Sequence[str]) -> Measured:
        """Computes the FID of each group."""
        found: dict[str, float] = {}
        lacking: dict[str, str] = {}
        names = np.array(groups)
        for group in sorted(set(groups) - {""}):
            rows = pool[names == group]
            name = self.name(f"fid_{group}", len(pool), len(rows))
            if group not in self.reference.groups:
                lacking[name] = (
                    f"the reference has no group {group}; make it with --by_folder"
                )
            elif len(rows) < 2:
                lacking[name] = FEW.format(2)
            else:
                ours = Gaussian.of(Moments.of(rows))
                found[name] = ours.distance(self.reference.groups[group])
        return Measured(found, lacking)
