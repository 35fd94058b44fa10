"""Mean and covariance of features as they come, in float64.

Sums of squares of two sets are merged without cancellation,

    S = S_a + S_b + (m_b - m_a)(m_b - m_a)^T n_a n_b / n,

as in Chan, Golub and LeVeque (1979), so that order and split of the rows do not matter.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64


class Moments(NamedTuple):
    """Of rows: how many, their mean m, and the sum of (row - m)(row - m)^T.

    `Moments()` is that of no rows.
    """

    count: int = 0
    mean: np.ndarray = np.zeros(0)
    scatter: np.ndarray = np.zeros((0, 0))

    @classmethod
    def of(cls, rows: Float[np.ndarray, "b d"]) -> "Moments":
        """The moments of these rows."""
        rows = rows.astype(np.float64)
        if not len(rows):
            return cls()
        mean = rows.mean(0)
        centred = rows - mean
        return cls(len(rows), mean, centred.T @ centred)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets together."""
        if not self.count:
            return other
        if not other.count:
            return self
        count = self.count + other.count
        step = other.mean - self.mean
        between = np.outer(step, step) * (self.count * other.count / count)
        mean = self.mean + step * (other.count / count)
        return Moments(count, mean, self.scatter + other.scatter + between)

    def add(self, rows: Float[np.ndarray, "b d"]) -> "Moments":
        """The moments with further rows."""
        return self.merge(Moments.of(rows))

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        """Unbiased: divided by the count less one."""
        return self.scatter / (self.count - 1)
