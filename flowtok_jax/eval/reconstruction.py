"""Distances of decoded images from the encoded ones, and statistics of latents.

    PSNR   -10 log10 of the mean squared error of an image in [0, 1]
    SSIM   Wang et al. 2004: Gaussian window of 11 pixels, sigma 1.5, K1 0.01, K2 0.03,
           data range 1, where the window is whole, mean over channels (the defaults of
           torchmetrics; scikit-image's window is uniform, its numbers are others)
    LPIPS  Zhang et al. 2018, of the network given
    detail P(decoded) / P(image), P the power of the luminance at frequencies above half
           of the Nyquist frequency: below 1 blur, above 1 noise

All are of one image; their mean over images is what tokenizers are compared by. P sums
the squares of those coefficients (i, j) of the cosine transform (DCT-II) of w x h
pixels for which (i / w)^2 + (j / h)^2 > (1 / 2)^2; it mirrors an image at its borders,
where a Fourier transform would see edges.

The latent scale is defined as in latent diffusion (Rombach et al. 2022, appendix G):
one number by which raw tokens get the standard deviation 1, over all tokens and
channels.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Float64

from flowtok_jax.array_types import ROWS, Image, Params
from flowtok_jax.eval.protocols import metric_suffix
from flowtok_jax.runtime.batches import filled, put_rows, row_parts, run_rows
from flowtok_jax.runtime.errors import UserError
from flowtok_jax.runtime.mesh import put, replicated
from flowtok_jax.weights.nets import RANDOM, MetricNet

WINDOW = 11  # pixels
SIGMA = 1.5  # pixels
K1 = 0.01
K2 = 0.03
BATCH = 32  # images that SSIM takes at a time
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (Rec. 601)
HIGH = 0.5  # of the Nyquist frequency: above it lies detail
LEAST_DETAIL = 1 / 255  # root mean square of an image's detail; flat ones have less

Values = Float64[np.ndarray, " b"]


def psnr_db(
    images: Float[np.ndarray, "b h w 3"], targets: Float[np.ndarray, "b h w 3"]
) -> Values:
    """Computes each image's peak signal-to-noise ratio; infinite of equal images."""
    # One by one: float64 of all of a chunk's images would fill the memory.
    errors = [
        np.mean(np.square(np.subtract(a, b, dtype=np.float64)))
        for a, b in zip(images, targets, strict=True)
    ]
    with np.errstate(divide="ignore"):
        return -10 * np.log10(np.array(errors, np.float64))


def ssim(
    images: Float[np.ndarray, "b h w 3"], targets: Float[np.ndarray, "b h w 3"]
) -> Values:
    """Computes the structural similarity of each image in [0, 1]; 1 of equal ones.

    Raises:
        UserError: if the window does not fit into the images.
    """
    if min(images.shape[1:3]) < WINDOW:
        raise UserError(
            f"SSIM got images of {images.shape[2]} x {images.shape[1]} pixels; "
            f"expected at least {WINDOW} x {WINDOW}, its window"
        )
    return _in_batches(_ssim, images, targets, BATCH)


def detail_kept(
    images: Float[np.ndarray, "b h w 3"], targets: Float[np.ndarray, "b h w 3"]
) -> Float64[np.ndarray, " n"]:
    """Computes the share of the target's high frequencies that each image has.

    Left out are images whose target has none: LEAST_DETAIL or less.
    """
    height, width = images.shape[1:3]
    down, across = (_cosines(size) for size in (height, width))
    j, i = np.ogrid[:height, :width]
    high = np.square(i / width) + np.square(j / height) > HIGH**2

    def power(image: np.ndarray) -> float:
        luminance = image.astype(np.float64) @ np.array(LUMINANCE)
        return float(np.square(down @ luminance @ across.T)[high].sum())

    least = LEAST_DETAIL**2 * height * width
    powers = [(power(a), power(b)) for a, b in zip(images, targets, strict=True)]
    return np.array([a / b for a, b in powers if b > least], np.float64)


def _cosines(size: int) -> Float64[np.ndarray, "k x"]:
    """Returns the orthonormal cosine transform of a line of pixels, as a matrix."""
    k, x = np.mgrid[:size, :size]
    waves = np.sqrt(2 / size) * np.cos(np.pi * k * (x + 0.5) / size)
    waves[0] /= np.sqrt(2)  # the constant, whose square does not average to 1 / 2
    return waves


def measure_images(
    images: Float[np.ndarray, "b h w 3"], targets: Float[np.ndarray, "b h w 3"]
) -> dict[str, Float64[np.ndarray, " n"]]:
    """Computes what needs no network: psnr_db, ssim and detail_kept."""
    measures = {"psnr_db": psnr_db, "ssim": ssim, "detail_kept": detail_kept}
    return {name: measure(images, targets) for name, measure in measures.items()}


class PerceptualDistance:
    """LPIPS of images in [0, 1] over the devices of a mesh, compiled once.

    Every process has to make the same calls, with all the images.

    Attributes:
        net_sha256: of the network's weights.

    Args:
        rows: pairs that a device compares at a time.
    """

    def __init__(self, net: MetricNet, mesh: Mesh, rows: int):
        module = net.module
        self.net_sha256 = net.sha256
        self._mesh = mesh
        self._params = put(net.params, replicated(mesh))
        self._size = rows * row_parts(mesh)

        def distance(
            params: Params, images: Image, targets: Image
        ) -> Float[Array, " b"]:
            return module.apply({"params": params}, images, targets)

        # The network joins both kinds of images to one batch. Told by rows alone, the
        # compiler would send images between devices for that.
        specs = (PartitionSpec(), ROWS, ROWS)
        split = jax.shard_map(distance, mesh=mesh, in_specs=specs, out_specs=ROWS)
        self._program = jax.jit(split, out_shardings=replicated(mesh))

    def __call__(
        self,
        images: Float[np.ndarray, "b h w 3"],
        targets: Float[np.ndarray, "b h w 3"],
    ) -> Values:
        """Computes the distance of each image from its target."""

        def start(*pair: np.ndarray) -> jax.Array:
            return self._program(self._params, *(put_rows(self._mesh, x) for x in pair))

        return _in_batches(start, images, targets, self._size)

    def name(self, count: int) -> str:
        """Returns the metric's name, which tells on how many images it rests."""
        net = "_random" if self.net_sha256 == RANDOM else ""
        return f"lpips{net}{metric_suffix('', count)}"


def _in_batches(
    function: Callable, images: np.ndarray, targets: np.ndarray, size: int
) -> Values:
    """Computes the values of all images through one program of `size` rows."""
    if not len(images):
        return np.zeros(0)

    def start(rows: np.ndarray) -> jax.Array:
        kept = slice(rows[0], rows[-1] + 1)
        pair = (x[kept].astype(np.float32) for x in (images, targets))
        return function(*(filled(x, size) for x in pair))

    return run_rows(start, len(images), size).astype(np.float64)


@jax.jit
def _ssim(
    images: Float[Array, "b h w 3"], targets: Float[Array, "b h w 3"]
) -> Float[Array, " b"]:
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-0.5 * np.square(offsets / SIGMA))
    weights = (weights / weights.sum()).astype(np.float32).tolist()

    def smooth(x):
        for axis in (1, 2):
            length = x.shape[axis] - WINDOW + 1
            x = sum(
                weight * jax.lax.slice_in_dim(x, i, i + length, axis=axis)
                for i, weight in enumerate(weights)
            )
        return x

    # Of values around 0 fewer digits cancel below; variances do not change.
    level_a = jnp.mean(images, (1, 2), keepdims=True)
    level_b = jnp.mean(targets, (1, 2), keepdims=True)
    a = images - level_a
    b = targets - level_b
    mean_a = smooth(a)
    mean_b = smooth(b)
    var_a = smooth(a * a) - mean_a**2
    var_b = smooth(b * b) - mean_b**2
    covariance = smooth(a * b) - mean_a * mean_b
    mean_a = mean_a + level_a
    mean_b = mean_b + level_b
    c1 = K1**2
    c2 = K2**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return jnp.mean(luminance * structure, (1, 2, 3))


class LatentStatistics(NamedTuple):
    """Sums over images and tokens of what the tokenizer encodes to, by channel.

    The sums are of a sample z ~ N(mean, exp(logvar)), in expectation: no noise is
    drawn. `LatentStatistics()` is that of no images.

    Attributes:
        images, tokens: how many.
        total: E[z].
        square: E[z^2].
        kl: to N(0, I), in nats.
    """

    images: int = 0
    tokens: int = 0
    total: np.ndarray = np.zeros(())
    square: np.ndarray = np.zeros(())
    kl: np.ndarray = np.zeros(())

    @classmethod
    def of(
        cls, mean: Float[np.ndarray, "b n c"], logvar: Float[np.ndarray, "b n c"]
    ) -> "LatentStatistics":
        """Sums the posterior of some images."""
        mean = np.float64(mean)
        logvar = np.float64(logvar)
        square = np.square(mean) + np.exp(logvar)
        kl = 0.5 * (square - 1 - logvar)
        sums = (np.sum(x, (0, 1)) for x in (mean, square, kl))
        return cls(len(mean), mean.shape[0] * mean.shape[1], *sums)

    def merge(self, other: "LatentStatistics") -> "LatentStatistics":
        """Joins the sums of two sets of images."""
        return LatentStatistics(*(a + b for a, b in zip(self, other, strict=True)))

    def channels(self) -> dict[str, list[float]]:
        """Returns mean, standard deviation and KL (nats a token) of each channel."""
        mean = self.total / self.tokens
        std = np.sqrt(self.square / self.tokens - mean**2)
        found = {"mean": mean, "std": std, "kl": self.kl / self.tokens}
        return {name: values.tolist() for name, values in found.items()}

    def summary(self) -> dict[str, float]:
        """Returns KL in nats a token and an image, and the latent scale implied."""
        mean = np.mean(self.total) / self.tokens
        std = np.sqrt(np.mean(self.square) / self.tokens - mean**2)
        return {
            "latent_kl_per_token": float(self.kl.sum() / self.tokens),
            "latent_kl_per_image": float(self.kl.sum() / self.images),
            "latent_std": float(std),
            "implied_latent_scale": float(1 / std),
        }
