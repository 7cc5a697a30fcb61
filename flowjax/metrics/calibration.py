"""Calibration of posterior samples: ranks, expected coverage, and whether they are uniform."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.special import gammaln, xlogy
from scipy.stats import binom

from flowjax.typing import PRNGKey

__all__ = ["Bands", "RankCurves", "inside_probability", "posterior_ranks", "rank_curves", "tarp_ranks", "uniform_bands"]

_SAME = 1 + 1e-9
"""Tail probabilities that differ by less than this factor are equal, so that rounding does not separate them."""


class Bands(NamedTuple):
    """Simultaneous bands of the empirical distribution function of N independent uniform ranks.

    Attributes:
        levels: the points at which the function is evaluated, (K,), increasing in (0, 1).
        low, high: the bands, (K,), multiples of 1 / N. They include their ends.
        probability: that the function is inside the bands at all levels, exactly.
    """

    levels: Float[np.ndarray, " K"]
    low: Float[np.ndarray, " K"]
    high: Float[np.ndarray, " K"]
    probability: float


class RankCurves(NamedTuple):
    """Empirical distribution functions of ranks, and whether they are those of uniform ranks.

    Attributes:
        levels: the points at which the functions are evaluated, (K,), increasing in (0, 1).
        ecdf: the share of the ranks below each level, for each parameter, (K, D). For the ranks of `tarp_ranks` it is
            the expected coverage of regions of this credibility.
        low, high: simultaneous bands, (K,).
        inside: whether the function is inside the bands at all levels, (D,).
        p_value: the probability that the function of uniform ranks goes as far out of the pointwise intervals, (D,).
        area: the integral of |ecdf - level| over the levels, (D,). It is about 0.31 / sqrt(N) for uniform ranks.
    """

    levels: Float[np.ndarray, " K"]
    ecdf: Float[np.ndarray, "K D"]
    low: Float[np.ndarray, " K"]
    high: Float[np.ndarray, " K"]
    inside: Bool[np.ndarray, " D"]
    p_value: Float[np.ndarray, " D"]
    area: Float[np.ndarray, " D"]


def posterior_ranks(
    theta: Float[Array | np.ndarray, "N D"], samples: Float[Array | np.ndarray, "M L E"]
) -> Int[np.ndarray, "N D"]:
    """The rank of each true parameter among samples of its posterior: how many of these are smaller.

    If (theta, x) are drawn from the prior and the simulator, and the samples from the posterior given x, then each rank
    is uniform on 0, ..., L (Talts et al. 2018, arXiv:1804.06788, theorem 1). Ranks in the middle are too frequent if
    the samples are too wide, and ranks at both ends if they are too narrow. Parameters are compared one at a time, and
    the prior itself gives uniform ranks, so uniform ranks are necessary for a right posterior and not sufficient.

    Args:
        theta: true parameters, (N, D).
        samples: L independent samples of the posterior of each observation, (N, L, D).

    Raises:
        ValueError: if the shapes do not fit, or numbers are not finite.
    """
    theta, samples = _checked(theta, samples)
    return (samples < theta[:, None]).sum(1)


def tarp_ranks(
    key: PRNGKey,
    theta: Float[Array | np.ndarray, "N D"],
    samples: Float[Array | np.ndarray, "M L E"],
    references: Float[Array | np.ndarray, "R F"] | None = None,
) -> Int[np.ndarray, " N"]:
    """How many posterior samples are closer to a random point than the true parameters are.

    This is L times the number f of algorithm 2 in "tests of accuracy with random points" (Lemos et al. 2023,
    arXiv:2302.03026). The ball around the random point through the true parameters is a credible region of level f,
    so f is uniform for the right posterior, and its distribution function is the expected coverage. Unlike the ranks of
    single parameters it depends on all parameters at once. Reference points that do not depend on the observation, as
    here by default, cannot tell the prior from the posterior.

    Args:
        key: for the reference points.
        theta: true parameters, (N, D).
        samples: L independent samples of the posterior of each observation, (N, L, D).
        references: a point for each observation, (N, D), which may depend on the observation but not on the true
            parameters; by default uniform between the smallest and the largest true value of each parameter.

    Returns:
        Numbers from 0 to L, for `rank_curves`. Distances are Euclidean, in standard deviations of each parameter, true
        and sampled values together.

    Raises:
        ValueError: if the shapes do not fit, or numbers are not finite.
    """
    theta, samples = _checked(theta, samples)
    if references is None:
        share = np.asarray(jax.random.uniform(key, theta.shape), np.float64)
        references = theta.min(0) + np.ptp(theta, axis=0) * share
    points = np.asarray(references, np.float64)
    if points.shape != theta.shape:
        raise ValueError(f"references must have the shape of theta, {theta.shape}, not {points.shape}")
    spread = np.concatenate([theta[:, None], samples], 1).std((0, 1))  # the same if theta and a sample are exchanged
    unit = np.where(spread > 0, spread, 1.0)
    squared = lambda a, b: (((a - b) / unit) ** 2).sum(-1)
    return (squared(samples, points[:, None]) < squared(theta, points)[:, None]).sum(1)


def rank_curves(ranks: Int[np.ndarray, "N *D"], draws: int, probability: float = 0.95, points: int = 100) -> RankCurves:
    """Compares the empirical distribution functions of ranks with simultaneous bands for uniform ranks.

    Args:
        ranks: for each of N observations and D parameters, from 0 to `draws`; one column if there is no second axis.
        draws: the number L of samples that each rank was counted in.
        probability: that a curve of uniform ranks is inside the bands. Each parameter is compared alone: of D right
            parameters, on average D (1 - probability) are outside, so compare the smallest p-value times D with
            1 - probability for a statement about all.
        points: the largest number of levels.

    Raises:
        ValueError: if a rank is not from 0 to `draws`.
    """
    ranks = np.asarray(ranks).reshape(len(ranks), -1)
    if ranks.size == 0 or ranks.min() < 0 or ranks.max() > draws:
        raise ValueError(f"ranks must be from 0 to {draws}, the number of draws, and at least one")
    n, upto = len(ranks), _ranks_of_levels(draws, points)
    bands = uniform_bands(n, draws, probability, points)
    counts = np.stack([(ranks <= j).sum(0) for j in upto])
    ecdf, level = counts / n, bands.levels[:, None]
    tails = _tails(n, bands.levels)
    farthest, which = np.unique(np.take_along_axis(tails, counts, 1).min(0), return_inverse=True)
    p_value = np.array([1 - _probability(bands.levels, tails, tail) for tail in farthest])[which]
    edges = np.concatenate([[0], bands.levels, [1]])
    gap = np.pad(np.abs(ecdf - level), ((1, 1), (0, 0)))
    return RankCurves(
        bands.levels,
        ecdf,
        bands.low,
        bands.high,
        np.all((ecdf >= bands.low[:, None]) & (ecdf <= bands.high[:, None]), axis=0),
        p_value,
        np.trapezoid(gap, edges, axis=0),
    )


def uniform_bands(n: int, draws: int, probability: float = 0.95, points: int = 100) -> Bands:
    """Bands that contain the empirical distribution function of uniform ranks at all levels at once.

    The number of ranks up to j is binomial with n trials and probability (j + 1) / (L + 1). The bands are pointwise
    central intervals of this distribution, all of one level, which is chosen as the smallest one for which the whole
    curve is inside with the wanted probability (Säilynoja, Bürkner and Vehtari 2022, arXiv:2103.10522, section 2.2).
    That probability is computed exactly, by `inside_probability`, where the paper simulates or multiplies a Markov
    chain's transitions.

    Args:
        n: the number of ranks.
        draws: L; ranks are from 0 to L.
        probability: that the curve is inside.
        points: the largest number of levels; all multiples of 1 / (L + 1) if there are no more of these.

    Raises:
        ValueError: if a number is out of its range.
    """
    if min(n, draws, points) < 1 or not 0 < probability < 1:
        raise ValueError(
            f"n, draws and points must be at least 1, and the probability between 0 and 1, got {n}, {draws}, {points} "
            f"and {probability}"
        )
    levels = (_ranks_of_levels(draws, points) + 1) / (draws + 1)
    tails = _tails(n, levels)
    narrow, wide = 1.0, 0.0  # tail probabilities beyond which a count is outside
    for _ in range(40):
        middle = (narrow + wide) / 2
        if _probability(levels, tails, middle) >= probability:
            wide = middle
        else:
            narrow = middle
    low, high = _limits(tails, wide)
    return Bands(levels, low / n, high / n, inside_probability(n, levels, low, high))


def inside_probability(
    n: int, levels: Float[np.ndarray, " K"], low: Int[np.ndarray, " K"], high: Int[np.ndarray, " K"]
) -> float:
    """The probability that of n independent uniform numbers, low_k to high_k are at most level_k, for all k.

    The number of them up to a level is a Poisson process with rate n, given that it ends at n. Its distribution within
    the bounds is propagated from one level to the next by a convolution with the Poisson distribution of the increment,
    so all terms are positive and the result is exact to rounding (Moscovich and Nadler 2017, arXiv:1503.04363).

    Args:
        n: how many numbers.
        levels: increasing in [0, 1].
        low, high: the bounds of the counts, which they include.
    """
    log_factorial = gammaln(np.arange(n + 1) + 1.0)
    poisson = lambda count, mean: _poisson(log_factorial, count, mean)
    start, p, level = 0, np.ones(1), 0.0
    for level_k, first, last in zip(levels, np.maximum(low, 0), np.minimum(high, n), strict=True):
        if last < max(first, start):
            return 0.0
        increments = poisson(np.arange(last - start + 1), n * (level_k - level))
        p = np.convolve(p, increments)[max(first - start, 0) : last - start + 1]
        start, level = max(first, start), level_k
    rest = n - (start + np.arange(len(p)))
    ending = (p * poisson(rest, n * (1 - level))).sum()
    return float(min(ending / poisson(np.array([n]), float(n)).item(), 1.0))


def _poisson(log_factorial: np.ndarray, count: np.ndarray, mean: float | np.floating) -> np.ndarray:
    """The probabilities of counts of a Poisson distribution."""
    return np.exp(xlogy(count, mean) - mean - log_factorial[count])


def _ranks_of_levels(draws: int, points: int) -> Int[np.ndarray, " K"]:
    """Ranks j, evenly spaced between 0 and L - 1, at whose levels (j + 1) / (L + 1) curves are evaluated."""
    number = min(points, draws)
    return np.round(np.arange(1, number + 1) * (draws + 1) / (number + 1)).astype(int) - 1


def _tails(n: int, levels: Float[np.ndarray, " K"]) -> Float[np.ndarray, "K N1"]:
    """Twice the smaller tail probability of each count 0, ..., n at each level: P(X <= count) or P(X >= count)."""
    count, level = np.arange(n + 1), levels[:, None]
    return 2 * np.minimum(binom.cdf(count, n, level), binom.sf(count - 1, n, level))


def _limits(tails: Float[np.ndarray, "K N1"], tail: float) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest count of each level whose tail probability is larger than `tail`."""
    inside = tails > tail * _SAME
    low, high = inside.argmax(1), inside.shape[1] - 1 - inside[:, ::-1].argmax(1)
    return low, np.where(inside.any(1), high, -1)


def _probability(levels: Float[np.ndarray, " K"], tails: Float[np.ndarray, "K N1"], tail: float) -> float:
    """The probability that no count has a tail probability of at most `tail`."""
    return inside_probability(tails.shape[1] - 1, levels, *_limits(tails, tail))


def _checked(theta: Array | np.ndarray, samples: Array | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True parameters and samples as float64, if their shapes fit and they are finite."""
    theta, samples = np.asarray(theta, np.float64), np.asarray(samples, np.float64)
    n, d = theta.shape
    if samples.shape[::2] != (n, d) or samples.shape[1] < 1:
        raise ValueError(f"samples must be ({n}, L, {d}) for theta ({n}, {d}), got {samples.shape}")
    if not (np.isfinite(theta).all() and np.isfinite(samples).all()):
        bad = int((~np.isfinite(samples)).sum())
        raise ValueError(f"ranks need finite numbers, but {bad:,} numbers of the samples or some of theta are not")
    return theta, samples
