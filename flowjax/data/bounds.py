"""Data with bounds: a smooth map from the support of the data to all real numbers, in which networks and paths work.

With it no sample is outside the support, and densities are those of the bounded data. For x in (low, high) the map is
u = ndtri((x - low) / (high - low)), the quantile function of the standard normal distribution, so that a uniform
distribution becomes exactly standard normal; with one bound it is a logarithm, so that a log-normal distribution
becomes normal. An affine map (`data.affine`) then standardises u.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy import special, stats
from scipy import special as np_special

from flowjax.data.affine import DataError

__all__ = ["Bounds"]

_FAR = 1000.0
"""float32 resolves numbers whose mean is fewer than this many standard deviations from 0."""


@dataclass(frozen=True)
class Bounds:
    """The support of each entry of the last axis, an open interval.

    The maps are elementwise. They compute with NumPy in the dtype of a NumPy array, and with JAX otherwise.

    Attributes:
        ranges: the interval (low, high) of each entry, infinite where there is no bound; () if nothing is bounded.

    Raises:
        DataError: if an interval is empty.
    """

    ranges: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        for low, high in self.ranges:
            if not low < high:
                raise DataError(
                    f"the bounds of the data must be intervals (low, high) with low < high, not {low, high}"
                )

    def __bool__(self) -> bool:
        return any(math.isfinite(bound) for one in self.ranges for bound in one)

    @property
    def resolved_by_float32(self) -> bool:
        """Whether float32 has enough digits for numbers near the bounds; near a single bound, if it is below 1,000."""
        width = lambda low, high: (high - low) / math.sqrt(12) if math.isfinite(high - low) else 1.0
        return all(
            abs(bound) < _FAR * width(low, high)
            for low, high in self.ranges
            for bound in (low, high)
            if abs(bound) < math.inf
        )

    def contain(self, x: Any) -> np.ndarray:
        """Returns which rows of x (N, *shape) lie in the support."""
        x, (low, high, _, _) = np.asarray(x, np.float64), self._parts(np.float64)
        return ((x > low) & (x < high)).reshape(len(x), -1).all(1)

    def to_unbounded(self, x: Any) -> Any:
        """Maps from the support to real numbers.

        Between two bounds, numbers nearer to a bound than 6e-8 of the width are mapped like those at that distance,
        which float32 can just tell from the bound.
        """
        xp, dtype = _library(x)
        low, high, both, one = self._parts(dtype)
        finite = lambda bound: xp.where(xp.isfinite(bound), bound, 0)
        tiny, nearest = xp.finfo(dtype).tiny, float(np.finfo(np.float32).epsneg)
        share = xp.where(both, (x - finite(low)) / xp.where(both, finite(high) - finite(low), 1), 0.5)
        quantile = special.ndtri if xp is jnp else np_special.ndtri
        gap = xp.maximum(xp.where(one, xp.where(xp.isfinite(low), x - finite(low), finite(high) - x), 1), tiny)
        half_line = xp.where(xp.isfinite(low), 1, -1) * xp.log(gap)
        normal = quantile(xp.clip(share, nearest, 1 - nearest))
        return xp.where(both, normal, xp.where(one, half_line, x))

    def to_bounded(self, u: Any) -> Any:
        """Maps from real numbers to the support; numbers far outside may round to a bound (`rounded`)."""
        xp, dtype = _library(u)
        low, high, both, one = self._parts(dtype)
        finite = lambda bound: xp.where(xp.isfinite(bound), bound, 0)
        cdf = special.ndtr if xp is jnp else np_special.ndtr
        inside = finite(low) + (finite(high) - finite(low)) * cdf(xp.where(both, u, 0))
        up = xp.isfinite(low)
        with np.errstate(over="ignore"):
            gap = xp.exp(xp.where(one, xp.where(up, u, -u), 0))
        return xp.where(both, inside, xp.where(one, xp.where(up, finite(low) + gap, finite(high) - gap), u))

    def log_derivative(self, u: Any) -> Any:
        """Returns the sum over all coordinates of log dx/du, (N,), at points u (N, *shape)."""
        xp, dtype = _library(u)
        low, high, both, one = self._parts(dtype)
        width = xp.where(both, xp.where(both, high, 1) - xp.where(both, low, 0), 1)
        log_normal = stats.norm.logpdf(u) if xp is jnp else -0.5 * (u**2 + math.log(2 * math.pi))
        each = xp.where(both, xp.log(width) + log_normal, xp.where(one, xp.where(xp.isfinite(low), u, -u), 0.0))
        return each.reshape(len(u), -1).sum(-1)

    def rounded(self, x: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Rounds float64 numbers to a dtype; those that would leave the support become the nearest number inside."""
        bounded = [math.isfinite(low) or math.isfinite(high) for low, high in self.ranges]
        low = np.array([_next(dtype.type, low, math.inf) for low, _ in self.ranges], np.float64)
        high = np.array([_next(dtype.type, high, -math.inf) for _, high in self.ranges], np.float64)
        return np.where(bounded, np.clip(x, low, high), x).astype(dtype)

    def _parts(self, dtype: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The lower and upper bounds, and which entries have two bounds, and which one."""
        low, high = np.array(self.ranges, dtype).reshape(-1, 2).T
        finite = np.isfinite(low).astype(int) + np.isfinite(high)
        return low, high, finite == 2, finite == 1


def _library(x: Any) -> tuple[Any, Any]:
    """NumPy or JAX, and the dtype in which to compute."""
    return (np, x.dtype.type) if isinstance(x, np.ndarray) else (jnp, jnp.asarray(x).dtype.type)


def _next(dtype: Any, bound: float, towards: float) -> Any:
    """The nearest number of a dtype that is strictly on one side of a bound."""
    rounded = dtype(bound)
    outside = float(rounded) <= bound if towards > 0 else float(rounded) >= bound
    return np.nextafter(rounded, dtype(towards)) if outside else rounded
