"""Mean and covariance of features that come in chunks, in float64 on the host."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import reduce

import numpy as np
from jaxtyping import Float

__all__ = ["Moments"]


@dataclass(frozen=True)
class Moments:
    """Of N rows: their count, mean and scatter about the mean; two of them can be merged, in any order.

    Nothing is squared before the mean is taken off, so a mean that is large beside the deviation costs no digits.

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
        """Of one array, N >= 1."""
        if len(rows) == 0:
            raise ValueError("moments of no rows: at least one is needed")
        rows = rows.astype(np.float64)
        mean = rows.mean(0)
        centred = rows - mean
        return Moments(len(rows), mean, centred.T @ centred)

    @staticmethod
    def of_chunks(chunks: Iterable[Float[np.ndarray, "_ D"]]) -> "Moments":
        """Of chunks in turn. A merge costs D^2, whatever the rows: chunks of a few thousand are best."""
        parts = (Moments.of(chunk) for chunk in chunks)
        first = next(parts, None)
        if first is None:
            raise ValueError("moments of no rows: at least one is needed")
        return reduce(Moments.merge, parts, first)

    def merge(self, other: "Moments") -> "Moments":
        """Of the rows of both (Chan, Golub and LeVeque 1983, eq. 2.1)."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"features of one dimension are needed, got {len(self.mean)} and {len(other.mean)}")
        count = self.count + other.count
        gap = other.mean - self.mean
        mean = self.mean + gap * (other.count / count)
        scatter = self.scatter + other.scatter + np.outer(gap, gap) * (self.count * other.count / count)
        return Moments(count, mean, scatter)

    def over(self, gather: Callable[[np.ndarray], np.ndarray]) -> "Moments":
        """Of the rows of all processes, each of which calls this on its own; `gather` gives the rows of all."""
        all_ = (gather(np.asarray(a)[None]) for a in (self.count, self.mean, self.scatter))
        return reduce(Moments.merge, (Moments(int(n), mean, scatter) for n, mean, scatter in zip(*all_, strict=True)))

    @property
    def cov(self) -> Float[np.ndarray, "D D"]:
        """The unbiased covariance, as of `np.cov`."""
        if self.count < 2:
            raise ValueError("a covariance needs at least two rows")
        return self.scatter / (self.count - 1)
