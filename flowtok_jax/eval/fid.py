"""Statistics of features, distances between sets of them, and scores of logits.

FID        |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))    Heusel et al. 2017
IS         exp(mean over x of KL(p(y|x) || p(y)))             Salimans et al. 2016
KID        MMD^2 with the kernel (x.y / d + 1)^3               Binkowski et al. 2018
precision  share of samples within reach of a real one,    Kynkaanniemi et al. 2019
recall     and the other way round; a set's reach is the balls around its rows up to
           their k-th neighbour

Mean and covariance are summed in float64 as features come. Scatters S of two sets are
merged without cancellation (Chan, Golub and LeVeque 1979),

    S = S_a + S_b + (m_b - m_a)(m_b - m_a)^T n_a n_b / n,                          (1)

so that order and split of the rows do not matter.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64

A = Float[np.ndarray, "n d"]
B = Float[np.ndarray, "m d"]
BLOCK = 1024  # rows between which distances are held at a time


class Estimate(NamedTuple):
    """A mean over parts of the data, and the standard deviation of the parts."""

    mean: float
    std: float


def _root(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d r"]:
    """Returns F with F F^T the covariance, without directions of rounding only."""
    # Symmetric up to rounding, which eigh would read from one half only.
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    # numpy.linalg.matrix_rank's tolerance.
    floor = len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    kept = values > floor
    return vectors[:, kept] * np.sqrt(values[kept])


def frechet_distance(
    mean_a: Float[np.ndarray, " d"],
    cov_a: Float[np.ndarray, "d d"],
    mean_b: Float[np.ndarray, " d"],
    cov_b: Float[np.ndarray, "d d"],
) -> float:
    """Computes the squared Frechet (Wasserstein-2) distance between two Gaussians.

    With C = F F^T the trace of (C_a C_b)^(1/2) is the sum of the singular values of
    F_a^T F_b, whose error is that of float64; square roots of the eigenvalues of a
    product would carry its root, 1e-8, for each direction that has no variance.
    """
    mean_a, cov_a, mean_b, cov_b = (
        np.asarray(x, np.float64) for x in (mean_a, cov_a, mean_b, cov_b)
    )
    product = _root(cov_a).T @ _root(cov_b)
    shared = np.linalg.svd(product, compute_uv=False).sum() if product.size else 0.0
    gap = mean_a - mean_b
    distance = gap @ gap + np.trace(cov_a) + np.trace(cov_b) - 2 * shared
    return max(0.0, float(distance))


class Moments(NamedTuple):
    """Count, mean m and scatter of rows, the sum of (row - m)(row - m)^T.

    `Moments()` is that of no rows.
    """

    count: int = 0
    mean: np.ndarray = np.zeros(0)
    scatter: np.ndarray = np.zeros((0, 0))

    @classmethod
    def of(cls, rows: Float[np.ndarray, "b d"]) -> "Moments":
        """Computes the moments of rows."""
        rows = rows.astype(np.float64)
        if not len(rows):
            return cls()
        # Two passes: a sum of squares would cancel for features far from 0.
        mean = rows.mean(0)
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        """Joins the moments of two sets, by (1)."""
        if not self.count:
            return other
        if not other.count:
            return self
        count = self.count + other.count
        # (1); the mean moves by the share of the other rows.
        step = other.mean - self.mean
        between = np.outer(step, step) * (self.count * other.count / count)
        mean = self.mean + step * (other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    def add(self, rows: Float[np.ndarray, "b d"]) -> "Moments":
        """Adds further rows."""
        return self.merge(Moments.of(rows))

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """Unbiased covariance: divided by the count less one."""
        return self.scatter / (self.count - 1)


class Gaussian(NamedTuple):
    """Mean and covariance of features, and the number of images if that is known."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None

    @classmethod
    def of(cls, moments: Moments) -> "Gaussian":
        """Makes the Gaussian of 2 rows or more."""
        return cls(moments.mean, moments.covariance, moments.count)

    def distance(self, other: "Gaussian") -> float:
        """Computes the Frechet distance from another one."""
        return frechet_distance(
            self.mean, self.covariance, other.mean, other.covariance
        )


class Reference(NamedTuple):
    """Statistics of images that samples are compared with; None where a file does not
    tell.
    """

    whole: Gaussian
    groups: Mapping[str, Gaussian] = {}
    features: np.ndarray | None = None
    resize: str | None = None
    net: str | None = None

    def digest(self) -> str:
        """Computes the SHA-256 of all the numbers that samples are compared with."""
        # Numbers, not the file: formats and names of arrays do not matter.
        found = hashlib.sha256()
        for name, part in [("", self.whole), *sorted(self.groups.items())]:
            found.update(name.encode())
            for values in (part.mean, part.covariance):
                found.update(np.ascontiguousarray(values, np.float64).tobytes())
        if self.features is not None:
            found.update(np.ascontiguousarray(self.features, np.float32).tobytes())
        return found.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Returns what to say beside a number."""
        unknown = "unknown"
        return {
            "sha256": self.digest(),
            "images": unknown if self.whole.count is None else self.whole.count,
            "resize": self.resize or unknown,
            "net": self.net or unknown,
        }


def inception_score(logits: Float[np.ndarray, "n k"], *, splits: int = 10) -> Estimate:
    """Scores each of `splits` parts, to which rows are shuffled."""
    scores = []
    order = np.random.default_rng(0).permutation(len(logits))
    for part in np.array_split(order, splits):
        values = logits[part].astype(np.float64)
        # Softmax of shifted logits: exp cannot overflow.
        values -= values.max(1, keepdims=True)
        log_p = values - np.log(np.exp(values).sum(1, keepdims=True))
        p = np.exp(log_p)
        marginal = p.mean(0)
        # A class that no row has any probability of adds nothing.
        log_q = np.log(marginal, out=np.zeros_like(marginal), where=marginal > 0)
        scores.append(np.exp((p * (log_p - log_q)).sum(1).mean()))
    return Estimate(float(np.mean(scores)), float(np.std(scores)))


def _kernel(a: A, b: B) -> Float[np.ndarray, "n m"]:
    return (a @ b.T / a.shape[1] + 1) ** 3


def kernel_distance(
    a: A, b: B, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> Estimate:
    """Computes KID, the unbiased MMD^2 of `subsets` pairs of random subsets.

    A set with fewer rows than `subset_size` is taken whole, and the other one by as
    many.
    """
    rng = np.random.default_rng(seed)
    a, b = (x.astype(np.float64) for x in (a, b))
    n = min(subset_size, len(a), len(b))
    if n == len(a) == len(b):
        subsets = 1  # both are taken whole, and all would be the same
    found = []
    for _ in range(subsets):
        x, y = (z[rng.choice(len(z), n, replace=False)] for z in (a, b))
        xx = _kernel(x, x)
        yy = _kernel(y, y)
        xy = _kernel(x, y)
        # Unbiased: a row is not compared with itself.
        within = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
        found.append(within / (n * (n - 1)) - 2 * xy.mean())
    return Estimate(float(np.mean(found)), float(np.std(found)))


def squared_distances(a: A, b: B) -> Float[np.ndarray, "n m"]:
    """Computes the squared Euclidean distance of each row of `a` from each of `b`."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None]
    # Rounding can make a tiny distance negative.
    return np.maximum(squares - 2 * a @ b.T, 0.0)


def _reach(rows: A, k: int) -> Float[np.ndarray, " n"]:
    """Returns squared distances to the k-th neighbour, the row itself not counted."""
    found = []
    for start in range(0, len(rows), BLOCK):
        distances = squared_distances(rows[start : start + BLOCK], rows)
        own = np.arange(len(distances))
        # Smaller than any distance, so that the row itself is neighbour number 0.
        distances[own, start + own] = -1.0
        found.append(np.partition(distances, k, axis=1)[:, k])
    return np.concatenate(found)


def _share_within(rows: A, centres: B, reach: Float[np.ndarray, " m"]) -> float:
    """Computes the share of rows within the reach of any centre."""
    inside = 0
    for start in range(0, len(rows), BLOCK):
        distances = squared_distances(rows[start : start + BLOCK], centres)
        inside += int((distances <= reach[None]).any(1).sum())
    return inside / len(rows)


def precision_recall(real: A, samples: B, *, k: int = 3) -> tuple[float, float]:
    """Computes improved precision and recall; both sets need more than k rows."""
    centre = real.mean(0, dtype=np.float64)  # distances lose fewer digits around it
    real = real - centre
    samples = samples - centre
    precision = _share_within(samples, real, _reach(real, k))
    return precision, _share_within(real, samples, _reach(samples, k))
