"""The Frechet distance between Gaussians, and FID: the Frechet distance between features of images."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from flowjax.metrics.moments import Moments

__all__ = [
    "Distance",
    "FeatureNetwork",
    "between",
    "feature_moments",
    "fid",
    "frechet_distance",
    "frechet_of_pixels",
    "with_bias",
]

FeatureNetwork = Callable[[np.ndarray], np.ndarray]
"""A function from images (N, H, W, C) uint8 to features (N, D)."""


class Distance(NamedTuple):
    """A distance estimated from finitely many samples.

    Attributes:
        value: the distance.
        bias: the estimated part of the distance that is due to the finite sample size.
    """

    value: float
    bias: float


def frechet_distance(
    mean1: Float[np.ndarray, " D"],
    cov1: Float[np.ndarray, "D D"],
    mean2: Float[np.ndarray, " D"],
    cov2: Float[np.ndarray, "D D"],
) -> float:
    """The squared Frechet distance between two Gaussians (Dowson and Landau 1982), computed in float64.

    It is |mean1 - mean2|^2 + tr(cov1 + cov2 - 2 (cov1 cov2)^(1/2)). With factors cov = L L^T from symmetric
    eigendecompositions, the trace of (cov1 cov2)^(1/2) is the sum of the singular values of L1^T L2. This avoids the
    square root of a non-symmetric matrix and is also accurate for singular covariances.

    Args:
        mean1, mean2: (D,).
        cov1, cov2: (D, D).

    Raises:
        ValueError: if a covariance is not finite.
    """
    gap = mean1.astype(np.float64) - mean2
    return _distance(gap, _factor(cov1), _factor(cov2))


def _distance(gap: np.ndarray, factor1: np.ndarray, factor2: np.ndarray) -> float:
    cross = np.linalg.svd(factor1.T @ factor2, compute_uv=False).sum()
    value = gap @ gap + (factor1**2).sum() + (factor2**2).sum() - 2 * cross
    return max(float(value), 0.0)  # rounding may make it negative


def _factor(cov: np.ndarray) -> np.ndarray:
    """L (D, rank) with L L^T = cov, without the eigenvalues that are zero up to rounding."""
    if not np.isfinite(cov).all():
        raise ValueError("a covariance is not finite, because some features are NaN or infinite")
    values, vectors = np.linalg.eigh(cov.astype(np.float64))
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    return vectors[:, kept] * np.sqrt(values[kept])


def between(x: Moments, y: Moments) -> float:
    """The Frechet distance between two sets of features, computed from their moments."""
    return frechet_distance(x.mean, x.cov, y.mean, y.cov)


def fid(images: np.ndarray | Moments, reference: np.ndarray | Moments, features: FeatureNetwork | None = None) -> float:
    """The Frechet Inception distance between two sets of images (Heusel et al. 2017, arXiv:1706.08500).

    Args:
        images, reference: images (N, H, W, 3) uint8, or the moments of their features.
        features: the feature network, a function of images; None for Inception.
    """
    return between(*(x if isinstance(x, Moments) else feature_moments(x, features) for x in (images, reference)))


def frechet_of_pixels(images: np.ndarray, reference: np.ndarray) -> float:
    """The Frechet distance between normal distributions with the moments of the pixels of two sets of images.

    Args:
        images, reference: images (N, H, W, C). The distance is in the square of the unit of their pixels.
    """
    return fid(images, reference, lambda rows: np.asarray(rows, np.float64).reshape(len(rows), -1))


def feature_moments(images: np.ndarray, features: FeatureNetwork | None = None, chunk: int = 4096) -> Moments:
    """The moments of the features of images, computed for `chunk` images at a time."""
    if features is None:
        from flowjax.metrics.inception import inception_features as features
    return Moments.of_chunks(features(images[i : i + chunk]) for i in range(0, len(images), chunk))


def with_bias(rows: Float[np.ndarray, "N D"], reference: Moments) -> Distance:
    """The Frechet distance between features and a reference, with an estimate of its bias due to finite N.

    The distance exceeds its limit for infinite N by about c / N (Chong and Forsyth 2020, arXiv:1911.07023), hence by
    twice as much for N / 2. The bias is therefore estimated as the mean distance of two random halves minus the
    distance of all rows. This is first order in 1 / N: it is too small unless N is large compared to D, and it does not
    include the bias due to the finite size of the reference.

    Args:
        rows: features, (N, D).
        reference: the moments of the features of the reference.

    Raises:
        ValueError: if there are fewer than four rows.
    """
    if len(rows) < 4:
        raise ValueError(f"the bias of a Frechet distance needs at least four rows, got {len(rows)}")
    # Random halves, because the class of an image may depend on its index.
    order = np.random.default_rng(0).permutation(len(rows))
    halves = [Moments.of(rows[part]) for part in np.array_split(order, 2)]
    target = _factor(reference.cov)
    distance = lambda m: _distance(m.mean - reference.mean, _factor(m.cov), target)
    value = distance(halves[0].merge(halves[1]))
    return Distance(value, (distance(halves[0]) + distance(halves[1])) / 2 - value)
