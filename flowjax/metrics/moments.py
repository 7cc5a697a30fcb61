"""Mean and covariance of features, accumulated over chunks in float64 on the host."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
from jaxtyping import Float

__all__ = ["Moments"]


@dataclass(frozen=True)
class Moments:
    """The number, mean and scatter matrix of N rows. Moments of disjoint sets of rows can be merged.

    The mean is subtracted before products are formed, so that a mean that is large compared to the standard deviation
    causes no cancellation.

    Attributes:
        count: N.
        mean: (D,).
        scatter: (D, D), the sum of (x - mean)(x - mean)^T.
    """

    count: int
    mean: Float[np.ndarray, " D"] = field(repr=False)
    scatter: Float[np.ndarray, "D D"] = field(repr=False)

    @staticmethod
    def of(rows: Float[np.ndarray, "N D"]) -> "Moments":
        """The moments of the rows of one array, N >= 1."""
        if len(rows) == 0:
            raise ValueError("moments need at least one row, but there are no rows")
        rows = rows.astype(np.float64)
        mean = rows.mean(0)
        centred = rows - mean
        return Moments(len(rows), mean, centred.T @ centred)

    @staticmethod
    def of_chunks(chunks: Iterable[Float[np.ndarray, "_ D"]]) -> "Moments":
        """The moments of all rows of all chunks. A merge costs O(D^2), so chunks should have thousands of rows."""
        parts = (Moments.of(chunk) for chunk in chunks)
        first = next(parts, None)
        if first is None:
            raise ValueError("moments need at least one row, but there are no rows")
        return reduce(Moments.merge, parts, first)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of the rows of both (Chan, Golub and LeVeque 1983, eq. 2.1)."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"features must have the same dimension, got {len(self.mean)} and {len(other.mean)}")
        count = self.count + other.count
        gap = other.mean - self.mean
        mean = self.mean + gap * (other.count / count)
        scatter = self.scatter + other.scatter + np.outer(gap, gap) * (self.count * other.count / count)
        return Moments(count, mean, scatter)

    def over(self, gather: Callable[[np.ndarray], np.ndarray]) -> "Moments":
        """The moments of the rows of all processes.

        Each process calls this method on the moments of its rows. `gather` maps an array of one process to the
        concatenated arrays of all processes.
        """
        all_ = (gather(np.asarray(a)[None]) for a in (self.count, self.mean, self.scatter))
        return reduce(Moments.merge, (Moments(int(n), mean, scatter) for n, mean, scatter in zip(*all_, strict=True)))

    @property
    def cov(self) -> Float[np.ndarray, "D D"]:
        """The unbiased covariance (D, D), as computed by `np.cov`."""
        if self.count < 2:
            raise ValueError("a covariance needs at least two rows")
        return self.scatter / (self.count - 1)
