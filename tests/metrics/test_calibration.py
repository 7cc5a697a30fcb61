"""Ranks, expected coverage and their bands, against SciPy, simulation and conjugate normal posteriors."""

import math

import jax
import numpy as np
import pytest
from scipy import stats

from flowjax import metrics
from flowjax.metrics.calibration import inside_probability, uniform_bands

pytestmark = pytest.mark.analytic

N, L, D = 400, 99, 2
KEY = jax.random.key(0)


def conjugate(scale: float = 1.0, shift: float = 0.0, rho: float = 0.0, seed: int = 0):
    """Parameters from N(0, I), observations with noise N(0, I), and samples of the posterior N(x / 2, I / 2).

    The samples have `scale` times its standard deviation, are shifted by `shift` of these, and have the correlation
    `rho` in place of 0.
    """
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(N, D))
    x = theta + rng.normal(size=(N, D))
    z = rng.normal(size=(N, L, D))
    z[..., 1] = rho * z[..., 0] + math.sqrt(1 - rho**2) * z[..., 1]
    return theta, x[:, None] / 2 + math.sqrt(0.5) * (shift + scale * z), x


def coverage(theta, samples, references=None) -> metrics.RankCurves:
    return metrics.rank_curves(metrics.tarp_ranks(KEY, theta, samples, references), L)


def test_a_rank_is_that_of_scipy():
    theta, samples, _ = conjugate()
    both = np.concatenate([theta[:, None], samples], 1)
    np.testing.assert_array_equal(metrics.posterior_ranks(theta, samples), stats.rankdata(both, axis=1)[:, 0] - 1)


def test_ranks_in_the_right_posterior_are_uniform():
    """By the chi-square test of SciPy in ten bins of ten ranks, and by the bands."""
    curves = metrics.rank_curves(ranks := metrics.posterior_ranks(*conjugate()[:2]), L)
    for column, p_value in zip(ranks.T, curves.p_value, strict=True):
        assert stats.chisquare(np.bincount(column // 10, minlength=10)).pvalue > 0.01
        assert p_value > 0.05
    assert curves.inside.all()
    assert (curves.area < 0.05).all()  # 0.31 / sqrt(N) = 0.016 on average


@pytest.mark.parametrize("wrong", [{"scale": 0.5}, {"scale": 1.5}, {"shift": 1.0}])
def test_wrong_posteriors_are_outside_of_the_bands(wrong):
    """With half the standard deviation, for example, the true parameters are among the lowest 10% of the samples with
    probability Phi(-1.28 / 2) = 0.26 in place of 0.1, which is ten standard errors of the share of 400.
    """
    theta, samples, _ = conjugate(**wrong)
    for curves in (metrics.rank_curves(metrics.posterior_ranks(theta, samples), L), coverage(theta, samples)):
        assert not curves.inside.any()
        assert (curves.p_value < 1e-3).all()


def test_expected_coverage_sees_a_wrong_correlation_that_the_ranks_of_parameters_do_not_see():
    theta, samples, _ = conjugate(rho=0.95)
    assert metrics.rank_curves(metrics.posterior_ranks(theta, samples), L).inside.all()
    assert not coverage(theta, samples).inside.any()


def test_the_expected_coverage_of_right_posteriors_is_inside_the_bands():
    """Of 40 data sets, 2 are outside on average, and 9 or more with probability 2e-4 by the binomial distribution."""
    ranks = [metrics.tarp_ranks(KEY, *conjugate(seed=seed)[:2]) for seed in range(40)]
    assert (~metrics.rank_curves(np.stack(ranks, 1), L).inside).sum() <= 8
    assert stats.binom.sf(8, 40, 0.05) < 3e-4


def test_the_prior_is_told_from_the_posterior_by_reference_points_that_depend_on_the_observation():
    theta, _, x = conjugate()
    prior = np.random.default_rng(1).normal(size=(N, L, D))
    assert coverage(theta, prior).p_value > 0.01
    assert not coverage(theta, prior, x).inside.any()


def test_far_from_a_reference_point_the_order_of_distances_is_that_of_values():
    theta, samples, _ = conjugate()
    far = np.full((N, 1), -1e3)
    got = metrics.tarp_ranks(KEY, theta[:, :1], samples[..., :1], far)
    np.testing.assert_array_equal(got, metrics.posterior_ranks(theta, samples)[:, 0])


@pytest.mark.parametrize(("n", "distance"), [(12, 0.3), (50, 0.15), (140, 0.08)])
def test_the_probability_inside_bounds_is_the_distribution_of_kolmogorov_and_smirnov(n, distance):
    """|F - u| is at most d everywhere, if just before u = i / n - d fewer than i, and just after u = i / n + d more
    than i numbers are at most u. SciPy computes the distribution of the statistic in another way: up to n = 140 it
    multiplies matrices, and for more numbers it has an expansion that is less accurate.
    """
    i = np.arange(n + 1)
    bounds = [(k / n - distance, 0, k - 1) for k in i] + [(k / n + distance, k + 1, n) for k in i]
    levels, low, high = map(np.array, zip(*sorted(b for b in bounds if 0 < b[0] < 1), strict=True))
    assert inside_probability(n, levels, low, high) == pytest.approx(stats.kstwo.cdf(distance, n), rel=1e-9)


def test_one_level_has_the_binomial_distribution():
    got = inside_probability(20, np.array([0.3]), np.array([4]), np.array([8]))
    assert got == pytest.approx(stats.binom.cdf(8, 20, 0.3) - stats.binom.cdf(3, 20, 0.3), rel=1e-12)
    assert inside_probability(20, np.array([0.3, 0.4]), np.array([5, 0]), np.array([20, 4])) == 0


@pytest.mark.parametrize(("n", "draws", "points"), [(100, 20, 100), (250, 999, 50)])
def test_uniform_ranks_are_inside_the_bands_with_their_probability(n, draws, points):
    """Of 20,000 sets of ranks, the share inside has the standard deviation sqrt(0.95 * 0.05 / 20,000) = 0.0015; five of
    them are allowed. Pointwise intervals of 95% contain whole curves far less often.
    """
    bands = uniform_bands(n, draws, points=points)
    assert len(bands.levels) == min(draws, points)
    assert 0.95 <= bands.probability < 0.96
    rng, sets = np.random.default_rng(0), 20_000
    multinomial = rng.multinomial(n, np.diff(bands.levels, prepend=0, append=1), size=sets)
    curves = multinomial[:, :-1].cumsum(1) / n
    inside = lambda low, high: float(((curves >= low) & (curves <= high)).all(1).mean())
    spread = math.sqrt(bands.probability * (1 - bands.probability) / sets)
    assert inside(bands.low, bands.high) == pytest.approx(bands.probability, abs=5 * spread)
    pointwise = [stats.binom.ppf(q, n, bands.levels) / n for q in (0.025, 0.975)]
    assert inside(*pointwise) < 0.8


def test_p_values_of_uniform_ranks_are_uniform():
    """Of 2,000 sets, the share with a p-value of at most a is a within five of its standard deviations, and up to the
    largest step of the distribution, which the counts of 200 ranks make smaller than 0.01. The verdict about the bands
    is that of the p-value.
    """
    ranks = np.random.default_rng(0).integers(0, 31, (200, 2000))
    curves = metrics.rank_curves(ranks, 30)
    for a in (0.05, 0.2, 0.5, 0.9):
        share = float((curves.p_value <= a).mean())
        assert share == pytest.approx(a, abs=5 * math.sqrt(a * (1 - a) / 2000) + 0.01)
    np.testing.assert_array_equal(curves.inside, curves.p_value > 1 - uniform_bands(200, 30).probability + 1e-9)


def test_areas_of_equal_and_of_constant_ranks():
    """The gap of ranks that are all 0 is 1 - k / (L + 1) at level k, and 0 at the ends."""
    equal, constant = np.repeat(np.arange(10), 7), np.zeros(70, int)
    curves = metrics.rank_curves(np.stack([equal, constant], 1), 9)
    np.testing.assert_allclose(curves.area, [0, 9 / 20], atol=1e-12)
    np.testing.assert_allclose(curves.p_value, [1, 0], atol=1e-6)


def test_ranks_need_finite_samples_that_fit():
    theta, samples, _ = conjugate()
    with pytest.raises(ValueError, match=r"must be \(400, L, 2\)"):
        metrics.posterior_ranks(theta, samples[:, :, :1])
    samples[3, 4, 0] = np.nan
    with pytest.raises(ValueError, match="need finite numbers, but 1 numbers of the samples"):
        metrics.posterior_ranks(theta, samples)
    with pytest.raises(ValueError, match="from 0 to 99"):
        metrics.rank_curves(np.array([0, 100]), 99)
    with pytest.raises(ValueError, match="references must have the shape"):
        metrics.tarp_ranks(KEY, theta, conjugate()[1], theta[:3])
    with pytest.raises(ValueError, match="the probability between 0 and 1"):
        uniform_bands(10, 10, 1.0)
