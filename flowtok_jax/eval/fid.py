"""Distances between sets of features, and what logits say of one set.

FID        |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))    Heusel et al. 2017
IS         exp(mean over x of KL(p(y|x) || p(y)))             Salimans et al. 2016
KID        MMD^2 with the kernel (x.y / d + 1)^3               Binkowski et al. 2018
precision  share of samples within reach of a real one,    Kynkaanniemi et al. 2019
recall     and the other way round; a set's reach is the balls around its rows up to
           their k-th neighbour
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

A, B = Float[np.ndarray, "n d"], Float[np.ndarray, "m d"]
BLOCK = 1024  # rows between which distances are held at a time


class Estimate(NamedTuple):
    """A mean over parts of the data, and the standard deviation of the parts."""

    mean: float
    std: float


def _root(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d r"]:
    """F with F F^T the covariance, without directions that are rounding only."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    floor = len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    kept = values > floor
    return vectors[:, kept] * np.sqrt(values[kept])


def frechet_distance(
    mean_a: Float[np.ndarray, " d"],
    cov_a: Float[np.ndarray, "d d"],
    mean_b: Float[np.ndarray, " d"],
    cov_b: Float[np.ndarray, "d d"],
) -> float:
    """The squared Frechet (Wasserstein-2) distance between two Gaussians.

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


def inception_score(
    logits: Float[np.ndarray, "n k"], *, splits: int = 10, seed: int = 0
) -> Estimate:
    """The score of each of `splits` parts, to which rows are shuffled by the seed."""
    scores = []
    order = np.random.default_rng(seed).permutation(len(logits))
    for part in np.array_split(order, splits):
        values = logits[part].astype(np.float64)
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
    """KID: the unbiased MMD^2 of `subsets` pairs of random subsets.

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
        xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
        within = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
        found.append(within / (n * (n - 1)) - 2 * xy.mean())
    return Estimate(float(np.mean(found)), float(np.std(found)))


def _squared_distances(a: A, b: B) -> Float[np.ndarray, "n m"]:
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None]
    return np.maximum(squares - 2 * a @ b.T, 0.0)


def _reach(rows: A, k: int) -> Float[np.ndarray, " n"]:
    """Squared distances to the k-th neighbour, the row itself not counted."""
    found = []
    for start in range(0, len(rows), BLOCK):
        distances = _squared_distances(rows[start : start + BLOCK], rows)
        own = np.arange(len(distances))
        distances[own, start + own] = -1.0
        found.append(np.partition(distances, k, axis=1)[:, k])
    return np.concatenate(found)


def _share_within(rows: A, centres: B, reach: Float[np.ndarray, " m"]) -> float:
    """The share of rows within the reach of any centre."""
    inside = 0
    for start in range(0, len(rows), BLOCK):
        distances = _squared_distances(rows[start : start + BLOCK], centres)
        inside += int((distances <= reach[None]).any(1).sum())
    return inside / len(rows)


def precision_recall(real: A, samples: B, *, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall; both sets need more than k rows."""
    centre = real.mean(0, dtype=np.float64)  # distances lose fewer digits around it
    real, samples = real - centre, samples - centre
    precision = _share_within(samples, real, _reach(real, k))
    return precision, _share_within(real, samples, _reach(samples, k))
