"""Distances between marginals and correlations, against SciPy and exact values."""

import numpy as np
import pytest
from scipy import stats

from flowjax import metrics

pytestmark = pytest.mark.analytic


def test_marginal_distances_are_those_of_scipy():
    """Samples of different sizes, with ties, and columns of scales from 1e-5 to 1e4; both results are exact."""
    rng = np.random.default_rng(0)
    scales = np.array([3e-5, 1.0, 1e4])
    x, y = scales * rng.normal(size=(70, 3)).round(1), scales * (0.3 + rng.normal(size=(41, 3)).round(1))
    got = metrics.marginal_distances(x, y)
    for i in range(3):
        expected = stats.wasserstein_distance(x[:, i], y[:, i]) / y[:, i].std()
        assert got.wasserstein[i] == pytest.approx(expected, rel=1e-10)
        assert got.kolmogorov[i] == pytest.approx(stats.ks_2samp(x[:, i], y[:, i])[0], rel=1e-12)
    shifted = metrics.marginal_distances(x + 2 * x.std(0), x)
    np.testing.assert_allclose(shifted.wasserstein, 2, rtol=1e-10)
    with pytest.raises(ValueError, match="the same shape"):
        metrics.marginal_distances(x, y[:, :2])


def test_correlations_of_orthogonal_columns():
    """a and b are orthogonal, so their correlation is 0, and that of a and a + b is 1 / sqrt(2) in two of four pairs of
    columns (a, b, a + b). Constant columns are left out.
    """
    a, b, constant = np.array([1.0, 1, -1, -1]), np.array([1.0, -1, 1, -1]), np.ones(4)
    pair = metrics.correlation_error(np.stack([a, 100 * b], 1), np.stack([a, a + b], 1))
    assert pair == pytest.approx((0.5**0.5, 0.5**0.5))
    wide = metrics.correlation_error(np.stack([a, b, a, constant], 1), np.stack([a, b, a + b, a], 1))
    # the differences of the correlations of (a, b), (a, third) and (b, third) are 0, 1 - 1 / sqrt(2) and 1 / sqrt(2)
    rms = np.sqrt(((1 - 0.5**0.5) ** 2 + 0.5) / 3)
    assert wide == pytest.approx((0.5**0.5, rms))
    assert metrics.correlation_error(np.stack([constant, a], 1), np.stack([a, a], 1)) == (0.0, 0.0)
    with pytest.raises(ValueError, match="at least 2 rows"):
        metrics.correlation_error(np.ones((1, 2)), np.ones((5, 2)))
