"""Frechet distance of two Gaussians: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

(Heusel et al. 2017, section 3.)
"""

import numpy as np


def frechet_distance(
    mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray
) -> float:
    """The distance, in float64, of covariances that may be singular.

    The trace of the root is that of the symmetric (C1^(1/2) C2 C1^(1/2))^(1/2), whose
    eigenvalues are real and at least 0 but for rounding.
    """
    mean_a, cov_a, mean_b, cov_b = (
        np.asarray(x, np.float64) for x in (mean_a, cov_a, mean_b, cov_b)
    )
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    crossed = np.linalg.eigvalsh(root @ cov_b @ root)
    cross = np.sqrt(np.maximum(crossed, 0)).sum()
    squares = np.square(mean_a - mean_b).sum()
    return float(squares + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)
