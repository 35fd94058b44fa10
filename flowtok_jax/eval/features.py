"""Images to what Inception sees in them, over a mesh and over processes.

    clean    Pillow's bicubic to 299 px, with antialiasing, each channel in float and
             never rounded, as clean-fid does
    legacy   TensorFlow 1's bilinear to 299 px, without antialiasing

A process loads and resizes only the rows that its devices hold, and gets all results.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Float32, Int, Num, UInt8
from PIL import Image

from flowtok_jax.array_types import ROW_AXES
from flowtok_jax.eval.nets import MetricNet
from flowtok_jax.models.inception import SIDE, resize_legacy
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.mesh import (
    from_local_rows,
    in_mesh,
    local_rows,
    put,
    replicated,
)

RESIZES = ("clean", "legacy")
Pixels = UInt8[np.ndarray, "h w 3"]


class Features(NamedTuple):
    """Of the images that could be loaded.

    Attributes:
        rows: their numbers, ascending.
        pool: the 2048 values before the last layer.
        logits: of the 1008 classes, without bias.
    """

    rows: Int[np.ndarray, " n"]
    pool: Float32[np.ndarray, "n d"]
    logits: Float32[np.ndarray, "n k"]


def resize_clean(image: Pixels) -> Float32[np.ndarray, "299 299 3"]:
    """An image at 299 px, in [0, 255] and not rounded."""
    channels = [
        Image.fromarray(image[..., i].astype(np.float32)).resize(
            (SIDE, SIDE), Image.Resampling.BICUBIC
        )
        for i in range(3)
    ]
    return np.stack([np.asarray(x) for x in channels], -1).clip(0, 255)


def check_resize(resize: str) -> None:
    """Refuses a way of resizing that there is not."""
    if resize not in RESIZES:
        raise UserError(f"resize is {resize!r}; wanted one of {', '.join(RESIZES)}")


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
        self.resize, self.net_sha256 = resize, net.sha256
        self._mesh, self._threads = mesh, threads
        self._params = put(net.params, replicated(mesh))
        self._size = rows * int(np.prod([mesh.shape[axis] for axis in ROW_AXES]))
        self._local = local_rows(mesh, self._size)
        shape, dtype = (SIDE, SIDE, 3), np.float32
        if resize == "legacy":
            shape, dtype = (side, side, 3), np.uint8
        self._empty = np.zeros((len(self._local), *shape), dtype)
        image = jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), np.float32)
        params = {"params": net.params}
        shapes = jax.eval_shape(net.module.apply, params, image)
        self.width, self._classes = (x.shape[1] for x in shapes)

        def features_of(
            params, images: Num[Array, "1 b h w 3"], loaded: Bool[Array, "1 b"]
        ) -> tuple[Float[Array, "b d"], Float[Array, "b k"], Bool[Array, " b"]]:
            images = images[0].astype(jnp.float32)
            if resize == "legacy":
                images = resize_legacy(images)
            return *net.module.apply({"params": params}, images), loaded[0]

        program = in_mesh(mesh, features_of)
        self._program = jax.jit(program, out_shardings=replicated(mesh))

    def __call__(self, count: int, load: Callable[[int], Pixels | None]) -> Features:
        """Features of `count` images.

        Args:
            load: image i, or None where it is broken; called for this process's rows,
                on several threads.
        """
        if not count:
            pool, logits = (
                np.zeros((0, n), np.float32) for n in (self.width, self._classes)
            )
            return Features(np.zeros(0, np.int64), pool, logits)
        batches, running = [], None
        with ThreadPoolExecutor(self._threads) as pool:
            for start in range(0, count, self._size):
                images, loaded = self._load(pool, start, count, load)
                started = self._program(self._params, images, loaded)
                # Read one batch later, so that the next one loads meanwhile.
                batches += [] if running is None else [jax.device_get(running)]
                running = started
        batches.append(jax.device_get(running))
        pool, logits, loaded = (np.concatenate(x) for x in zip(*batches, strict=True))
        (rows,) = np.nonzero(loaded[:count])
        return Features(rows, pool[rows], logits[rows])

    def _load(
        self,
        pool: ThreadPoolExecutor,
        start: int,
        count: int,
        load: Callable[[int], Pixels | None],
    ) -> tuple[Array, Array]:
        """A batch, and which of its rows hold an image."""

        def prepare(number: int) -> np.ndarray | None:
            image = load(number) if number < count else None
            if image is None:
                return None
            if self.resize == "clean":
                return resize_clean(image)
            if image.shape != self._empty.shape[1:]:
                raise UserError(
                    f"image {number} is {image.shape[1]} x {image.shape[0]}; legacy "
                    f"resizing wanted squares of {self._empty.shape[1]} px"
                )
            return image

        found = list(pool.map(prepare, (start + self._local).tolist()))
        images = self._empty.copy()
        for row, image in enumerate(found):
            if image is not None:
                images[row] = image
        loaded = np.array([image is not None for image in found])
        return tuple(
            from_local_rows(self._mesh, self._size, x[None]) for x in (images, loaded)
        )
