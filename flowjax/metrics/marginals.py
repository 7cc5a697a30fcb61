"""Distances between the marginal distributions and the correlations of two samples, in float64 on the host."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

__all__ = ["CorrelationError", "MarginalDistances", "correlation_error", "marginal_distances"]


class MarginalDistances(NamedTuple):
    """Distances between the marginal distributions of each feature.

    Attributes:
        wasserstein: the Wasserstein-1 distances in units of the feature's standard deviation in the reference, (D,).
        kolmogorov: the Kolmogorov-Smirnov statistics, (D,), between 0 and 1.
    """

    wasserstein: Float[np.ndarray, " D"]
    kolmogorov: Float[np.ndarray, " D"]


class CorrelationError(NamedTuple):
    """The difference of two correlation matrices, without their diagonals.

    Attributes:
        largest: its largest absolute entry.
        rms: the root of the mean of its squared entries.
    """

    largest: float
    rms: float

    @classmethod
    def of(cls, gap: np.ndarray) -> "CorrelationError":
        """The largest and the root-mean-square entry of an array of differences."""
        return cls(float(np.abs(gap).max()), float(np.sqrt((gap**2).mean())))


def marginal_distances(x: Float[np.ndarray, "N *event"], y: Float[np.ndarray, "M *other"]) -> MarginalDistances:
    """The Wasserstein-1 and the Kolmogorov-Smirnov distance between the marginals of each feature.

    With the empirical distribution functions F and G of a feature, these are the integral of |F - G| (Vallender 1974),
    which is divided by the standard deviation of the feature in y, and the maximum of |F - G|. If x and y have the
    same distribution, the Kolmogorov-Smirnov statistic exceeds 1.36 sqrt(1 / N + 1 / M) with probability 0.05 in the
    limit of large samples.

    Args:
        x: the samples, (N, *event).
        y: the reference, (M, *event). A feature that is constant in it has the unit 1.

    Raises:
        ValueError: if a sample is empty, or the samples differ in dimension.
    """
    x, y = _flat(x, y, fewest=1)
    std = y.std(0)
    std = np.where(std > 0, std, 1.0)
    distances = np.array([_distances(a, b) for a, b in zip(x.T, y.T, strict=True)]).reshape(-1, 2)
    return MarginalDistances(distances[:, 0] / std, distances[:, 1])


def _distances(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The integral and the maximum of the absolute difference of the distribution functions of two samples."""
    a, b = np.sort(a), np.sort(b)
    points = np.sort(np.concatenate([a, b]))
    below = lambda values: np.searchsorted(values, points, side="right") / len(values)
    gap = np.abs(below(a) - below(b))
    return float(gap[:-1] @ np.diff(points)), float(gap.max())


def correlation_error(x: Float[np.ndarray, "N *event"], y: Float[np.ndarray, "M *other"]) -> CorrelationError:
    """The largest and the root-mean-square difference of the Pearson correlations of two samples.

    The difference is over pairs of different features. Features that are constant in one of the samples have no
    correlations and are left out; without a pair of features both numbers are 0. If x and y have the same distribution
    and a correlation is r, its difference has the standard deviation (1 - r^2) sqrt(1 / N + 1 / M) for normal features.

    Args:
        x, y: the samples, (N, *event) and (M, *event).

    Raises:
        ValueError: if a sample has fewer than two rows, or the samples differ in dimension.
    """
    x, y = _flat(x, y, fewest=2)
    varies = (np.ptp(x, axis=0) > 0) & (np.ptp(y, axis=0) > 0)
    if varies.sum() < 2:
        return CorrelationError(0.0, 0.0)
    gap = np.corrcoef(x[:, varies], rowvar=False) - np.corrcoef(y[:, varies], rowvar=False)
    return CorrelationError.of(gap[~np.eye(len(gap), dtype=bool)])


def _flat(x: np.ndarray, y: np.ndarray, fewest: int) -> tuple[np.ndarray, np.ndarray]:
    """The samples as matrices of float64."""
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"the rows of both samples must have the same shape, got {x.shape[1:]} and {y.shape[1:]}")
    if min(len(x), len(y)) < fewest:
        raise ValueError(f"each sample needs at least {fewest} row{'s' * (fewest > 1)}, got {len(x)} and {len(y)}")
    a, b = (np.asarray(values, np.float64).reshape(len(values), -1) for values in (x, y))
    return a, b
