"""Frechet distance of Gaussians, and of features of images: FID and its kin."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from flowjax.metrics.moments import Moments

__all__ = ["Distance", "FeatureNetwork", "between", "feature_moments", "fid", "frechet_distance", "with_bias"]

FeatureNetwork = Callable[[np.ndarray], np.ndarray]
"""Images (N, H, W, C) uint8 to features (N, D)."""


class Distance(NamedTuple):
    """A distance, and by how much its sample's finite size is estimated to have raised it."""

    value: float
    bias: float


def frechet_distance(
    mean1: Float[np.ndarray, " D"],
    cov1: Float[np.ndarray, "D D"],
    mean2: Float[np.ndarray, " D"],
    cov2: Float[np.ndarray, "D D"],
) -> float:
    """|mean1 - mean2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)) in float64.

    With factors cov = L L^T from symmetric eigendecompositions, the last trace is the sum of the singular values of
    L1^T L2. That asks for no root of a matrix that is not symmetric, and is as good for singular covariances. (Dowson
    and Landau 1982; for images, Heusel et al. 2017.)
    """
    gap = mean1.astype(np.float64) - mean2
    return _distance(gap, _factor(cov1), _factor(cov2))


def _distance(gap: np.ndarray, factor1: np.ndarray, factor2: np.ndarray) -> float:
    cross = np.linalg.svd(factor1.T @ factor2, compute_uv=False).sum()
    value = gap @ gap + (factor1**2).sum() + (factor2**2).sum() - 2 * cross
    return max(float(value), 0.0)  # below 0 by rounding alone


def _factor(cov: np.ndarray) -> np.ndarray:
    """L (D, rank) with L L^T = cov; eigenvalues that rounding cannot tell from 0 are left out."""
    if not np.isfinite(cov).all():
        raise ValueError("a covariance holds values that are not finite: so do the features")
    values, vectors = np.linalg.eigh(cov.astype(np.float64))
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    return vectors[:, kept] * np.sqrt(values[kept])


def between(x: Moments, y: Moments) -> float:
    """The Frechet distance of two sets of features, from their moments."""
    return frechet_distance(x.mean, x.cov, y.mean, y.cov)


def fid(images: np.ndarray | Moments, reference: np.ndarray | Moments, features: FeatureNetwork | None = None) -> float:
    """The Frechet Inception distance of two sets of images, or of one set and moments computed before.

    Args:
        images, reference: (N, H, W, 3) uint8, or the moments of their features.
        features: another network than Inception: a callable of images.
    """
    return between(*(x if isinstance(x, Moments) else feature_moments(x, features) for x in (images, reference)))


def feature_moments(images: np.ndarray, features: FeatureNetwork | None = None, chunk: int = 4096) -> Moments:
    """Moments of the features of images, `chunk` images at a time."""
    if features is None:
        from flowjax.metrics.inception import inception_features as features
    return Moments.of_chunks(features(images[i : i + chunk]) for i in range(0, len(images), chunk))


def with_bias(rows: Float[np.ndarray, "N D"], reference: Moments) -> Distance:
    """The distance of features to a reference, and how far too large it is because the features are finitely many.

    The distance of N features is that of infinitely many plus about c / N (Chong and Forsyth 2020), so that of
    N / 2 lies twice as far above: the bias is the mean distance of two random halves less that of the whole. (Not every
    other row: images whose class is that of their index would fall into halves of different classes.)
    First order in 1 / N: too small where N is not large beside D. The reference's own finite size is not in it.

    Raises:
        ValueError: of fewer than four rows.
    """
    if len(rows) < 4:
        raise ValueError(f"the bias of a distance needs at least four rows, got {len(rows)}")
    order = np.random.default_rng(0).permutation(len(rows))
    halves = [Moments.of(rows[part]) for part in np.array_split(order, 2)]
    target = _factor(reference.cov)
    distance = lambda m: _distance(m.mean - reference.mean, _factor(m.cov), target)
    value = distance(halves[0].merge(halves[1]))
    return Distance(value, (distance(halves[0]) + distance(halves[1])) / 2 - value)
