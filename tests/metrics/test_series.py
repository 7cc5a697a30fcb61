"""Autocorrelations of series against a closed form."""

import numpy as np
import pytest

from flowjax import metrics

pytestmark = pytest.mark.analytic


def test_autocorrelation_of_autoregressive_series():
    """x_{t+1} = r x_t + sqrt(1 - r^2) z has the autocorrelation r^k. Channel 1 is white noise, and channel 2 constant.

    A product of lag k has the variance 1 + r^(2k) <= 2. Within a series of 20 the means of products are correlated, so
    the standard error over 4,000 series is at most sqrt(2 / 4000) = 0.022, without a gain from the times. The error of
    the variance, by which the mean is divided, has the same size. Four times the sum of the two errors is 0.18.
    """
    r, random = 0.8, np.random.default_rng(0)
    noise = random.normal(size=(4000, 20, 2))
    x = np.zeros((4000, 20, 3))
    x[:, 0, 0], x[:, :, 1], x[:, :, 2] = noise[:, 0, 0], noise[:, :, 1], 7.0
    for t in range(1, 20):
        x[:, t, 0] = r * x[:, t - 1, 0] + np.sqrt(1 - r**2) * noise[:, t, 0]
    x = 3 * x + 5
    found = metrics.autocorrelation(x, 5)
    np.testing.assert_allclose(found[:, 0], r ** np.arange(1, 6), atol=0.18)
    np.testing.assert_allclose(found[:, 1], 0, atol=0.18)
    np.testing.assert_array_equal(found[:, 2], 0)
    gap = np.abs(metrics.autocorrelation(x[..., :1], 10) - metrics.autocorrelation(x[..., 1:2], 10))
    error = metrics.autocorrelation_error(x[..., :1], x[..., 1:2])
    assert error == pytest.approx((gap.max(), np.sqrt((gap**2).mean())))
    assert metrics.autocorrelation_error(x, x[:, ::-1]).largest < 1e-12, (
        "the lags of reversed series are the same pairs"
    )
    with pytest.raises(ValueError, match="must be from 1 to 19"):
        metrics.autocorrelation(x, 20)
