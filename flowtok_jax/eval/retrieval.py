"""Retrieval: whether the nearest of many real images is the one that was described.

A drawn image x, whose caption is of the real image y, counts as right at k where fewer
than k images of the gallery G are strictly nearer to it than its own:

    |{g in G : |f(x) - f(g)|^2 < |f(x) - f(y)|^2}| < k                             (1)

in two spaces: `pixels`, f the averages of side x side cells, and `latents`, f the mean
of the tokenizer's posterior. Images of the same pixels are one image of the gallery, so
that none is beaten by its own copy. The floor is a guess, right at k with probability
k / |G|; the ceiling is the real image itself, through the tokenizer and back.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from flowtok_jax.data.centre import CentreReader, Square
from flowtok_jax.data.inputs import to_uint8
from flowtok_jax.data.records import BadRecord, Records, RejectCounter
from flowtok_jax.eval.evaluate import Arrays, Measured
from flowtok_jax.eval.fid import squared_distances
from flowtok_jax.eval.protocols import metric_suffix
from flowtok_jax.eval.real import RealImages
from flowtok_jax.pipeline import FlowTok
from flowtok_jax.runtime import processes
from flowtok_jax.runtime.batches import map_ahead, run_rows

TOPS = (1, 5)
SPACES = ("pixels", "latents")
TOGETHER = 256  # images or queries in memory at a time
COPIED = "_reconstructed"  # of the tokenizer's own copies

Squares = UInt8[np.ndarray, "b s s 3"]
Vectors = dict[str, Float32[np.ndarray, "b d"]]  # by space


def averaged(images: Squares, side: int) -> Float32[np.ndarray, "b d"]:
    """Averages images over side x side cells, which may cut through pixels."""
    size = images.shape[1]
    edges = np.arange(side + 1) * (size / side)
    pixels = np.arange(size)
    ends = np.minimum(edges[1:, None], pixels + 1)
    overlap = np.maximum(ends - np.maximum(edges[:-1, None], pixels), 0)
    # Bytes, not [0, 1]: averages over 2^n pixels are exact then, and equal distances
    # are equal.
    cells = overlap * (side / size)

    def average(image: Square) -> np.ndarray:
        rows = np.tensordot(cells, image, 1)  # [a y c]
        return np.tensordot(cells, rows, (1, 1))  # [b a c]

    # One by one: float64 of many images would fill the memory.
    found = np.array([average(image) for image in images], np.float32)
    return found.swapaxes(1, 2).reshape(len(images), side * side * 3)


def count_nearer(
    queries: Float[np.ndarray, "b d"],
    gallery: Float[np.ndarray, "n d"],
    own: Int[np.ndarray, " b"],
) -> Int[np.ndarray, " b"]:
    """Counts the rows of a gallery that are nearer to each query than its own row.

    Args:
        own: number of each query's own row; the left side of (1) counts the others.
    """
    # Around the middle distances of float64 lose fewer digits.
    centre = gallery.mean(0, dtype=np.float64)
    rows = gallery - centre
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(queries), TOGETHER):
        block = slice(start, start + TOGETHER)
        distances = squared_distances(queries[block] - centre, rows)
        limits = np.take_along_axis(distances, own[block, None], axis=1)
        found.append((distances < limits).sum(1))
    return np.concatenate(found)


class Gallery(NamedTuple):
    """Distinct real images by their vectors.

    Attributes:
        numbers: SHA-256 of an image's pixels -> its row.
        vectors: by space, a row each.
        rejected: counts of records that are not among them, by reason.
    """

    numbers: dict[bytes, int]
    vectors: Vectors
    rejected: dict[str, int]

    @staticmethod
    def digest(image: Square) -> bytes:
        """Returns what tells an image from others."""
        return hashlib.sha256(image.tobytes()).digest()


class GalleryImages(NamedTuple):
    """The images of a gallery: the evaluated ones, then those of other records.

    Attributes:
        others: records; those of evaluated images may be among them. Those that cannot
            be used are left out and counted.
        most: number of distinct images; evaluated ones beyond it are taken as well.
        threads: that read images.
        max_rejected: share of the other records that may be broken.
    """

    real: RealImages
    others: Records
    centre: CentreReader
    most: int
    threads: int
    max_rejected: float

    def _other(self, number: int) -> Square | BadRecord:
        try:
            return self.centre(self.others[number])
        except BadRecord as bad:
            return bad

    def read(
        self, read: Callable[[int], Square | BadRecord], numbers: Sequence[int]
    ) -> Iterator[Square | BadRecord]:
        """Reads images on threads, some ahead."""
        with ThreadPoolExecutor(self.threads) as pool:
            ahead = 2 * self.threads
            for _, image in map_ahead(pool, read, numbers, ahead):
                yield image

    def make_counter(self) -> RejectCounter:
        """Makes a counter for `distinct`; a share of few records is of all of them."""
        patience = min(RejectCounter.patience, len(self.others))
        return RejectCounter(self.max_rejected, patience=patience, known=0)

    def distinct(self, rejects: RejectCounter) -> Iterator[tuple[bytes, Square]]:
        """Yields each image once, with its digest.

        Args:
            rejects: counts the other records at the end, those that cannot be used too.

        Raises:
            UserError: if a larger share of these is broken than may be.
        """
        seen = set()
        for image in self.read(self.real.pixels, range(self.real.count)):
            if (digest := Gallery.digest(image)) not in seen:
                seen.add(digest)
                yield digest, image
        good = 0
        bad = []
        for image in self.read(self._other, range(len(self.others))):
            if len(seen) >= self.most:
                break
            if isinstance(image, BadRecord):
                bad.append((image.reason, image.name))
                continue
            good += 1
            if (digest := Gallery.digest(image)) not in seen:
                seen.add(digest)
                yield digest, image
        # All at once: the share does not depend on where the broken ones lie.
        rejects.add(bad, good)


class Retrieval:
    """Retrieval of drawn images among real ones; see the module.

    Every process has to make the same calls, as the tokenizer runs over all devices.

    Args:
        images: of the gallery, which is read when the first image is looked at.
        side: cells a side of `averaged`.
        rows: images that the tokenizer takes at a time.
        spec: source of the gallery beside the evaluated one.
    """

    def __init__(
        self,
        flowtok: FlowTok,
        images: GalleryImages,
        *,
        side: int,
        rows: int,
        spec: str,
    ):
        self._flowtok = flowtok
        self._images = images
        self._side = side
        self._rows = rows
        self.protocol: dict[str, Any] = {"side": side, "gallery": spec}
        self.protocol["images"] = images.most

    def _encode(self, images: Squares) -> Float32[np.ndarray, "b n c"]:
        last = len(images) - 1

        def start(rows: np.ndarray):
            # The last batch repeats its last image, so that one program takes all.
            batch = images[np.minimum(rows, last)].astype(np.float32) / 255
            return self._flowtok.encode_image(batch).mean

        return run_rows(start, len(images), self._rows)

    def _decode(self, tokens: np.ndarray, captions: Sequence[str]) -> Squares:
        last = len(tokens) - 1

        def start(rows: np.ndarray):
            # Without captions there, which would be warned of again.
            texts = [captions[i] if i <= last else "" for i in rows]
            return self._flowtok.decode_image(tokens[np.minimum(rows, last)], texts)

        # Drawn images are judged as bytes, and so are copies.
        return to_uint8(run_rows(start, len(tokens), self._rows))

    def _vectors(self, images: Squares) -> Vectors:
        """Returns images in both spaces."""
        latents = self._encode(images).reshape(len(images), -1)
        return dict(zip(SPACES, (averaged(images, self._side), latents), strict=True))

    @functools.cached_property
    def _gallery(self) -> Gallery:
        logging.info("retrieval: reading real images")
        numbers: dict[bytes, int] = {}
        found: list[Vectors] = []
        waiting: list[Square] = []

        def flush() -> None:
            if waiting:
                found.append(self._vectors(np.stack(waiting)))
                waiting.clear()

        rejects = self._images.make_counter()
        for digest, image in self._images.distinct(rejects):
            numbers[digest] = len(numbers)
            waiting.append(image)
            # Vectors are kept, images are not.
            if len(waiting) == TOGETHER:
                flush()
        flush()
        logging.info("retrieval: among %d different images", len(numbers))
        if rejects.counts and processes.is_first():
            counts = sum(rejects.counts.values()), rejects.read, rejects.describe()
            logging.warning("retrieval: %d of %d records left out (%s)", *counts)
        joined = {s: np.concatenate([v[s] for v in found]) for s in SPACES}
        return Gallery(numbers, joined, rejects.summary()["rejected"])

    def real(self, rows: range) -> list[Square]:
        """Reads the real images that belong to drawn ones."""
        return list(self._images.read(self._images.real.pixels, rows))

    def see(self, drawn: Squares, captions: Sequence[str], rows: range) -> Arrays:
        """Counts the real images nearer than the own one, for drawn images and copies.

        The own one of a drawn image is the evaluated image of its number.
        """
        gallery = self._gallery
        real = np.stack(self.real(rows))
        own = np.array([gallery.numbers[Gallery.digest(x)] for x in real])
        arrays = {"retrieval/size": np.array([len(gallery.numbers)])}
        # Chunks are all that a run that goes on measures by.
        arrays["retrieval/rejected"] = np.array([json.dumps(gallery.rejected)])
        copies = self._decode(self._encode(real), captions)
        for end, images in (("", drawn), (COPIED, copies)):
            for space, vectors in self._vectors(images).items():
                nearer = count_nearer(vectors, gallery.vectors[space], own)
                arrays[f"retrieval/{space}{end}"] = nearer
        return arrays

    def measure(self, arrays: Arrays) -> Measured:
        """Computes the shares that are right, with chance and the tokenizer's own."""
        size = int(arrays["retrieval/size"][0])
        count = len(arrays["retrieval/pixels"])
        among = f"_of{size}"
        suffix = f"{metric_suffix('', count)}{among}"
        metrics = {}
        for k in TOPS:
            for end in ("", COPIED):
                for space in SPACES:
                    right = arrays[f"retrieval/{space}{end}"] < k
                    name = f"retrieval_top{k}_{space}{end}{suffix}"
                    metrics[name] = float(right.mean())
            metrics[f"retrieval_top{k}_chance{among}"] = min(1.0, k / size)
        rejected = json.loads(arrays["retrieval/rejected"][0])
        return Measured(metrics, {}, {"retrieval_rejected": rejected})
