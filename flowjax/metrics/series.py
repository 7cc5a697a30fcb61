"""How far the autocorrelations of two samples of series are apart."""

import numpy as np
from jaxtyping import Float

from flowjax.metrics.marginals import CorrelationError

__all__ = ["autocorrelation", "autocorrelation_error"]


def autocorrelation(x: Float[np.ndarray, "N L C"], lags: int) -> Float[np.ndarray, "lags C"]:
    """The autocorrelation of each channel at the lags 1, ..., `lags`, pooled over series and times.

    At lag k it is the mean over the N series and the L - k pairs of times of (x_t - m) (x_{t+k} - m) / v, where m and v
    are the mean and the variance of the channel over all series and times. For stationary series it estimates the
    autocorrelation function, with an error of order 1 / sqrt(N L). Channels that are constant have autocorrelation 0.

    Args:
        x: the series.
        lags: the largest lag, less than L.

    Raises:
        ValueError: if the lag is not between 1 and L - 1.
    """
    if not 1 <= lags < x.shape[1]:
        raise ValueError(f"the largest lag of series of length {x.shape[1]} must be from 1 to {x.shape[1] - 1}")
    centred = np.asarray(x, np.float64) - x.mean((0, 1), dtype=np.float64)
    variance = (centred**2).mean((0, 1))
    products = [(centred[:, :-k] * centred[:, k:]).mean((0, 1)) for k in range(1, lags + 1)]
    return np.stack(products) / np.where(variance > 0, variance, 1.0)


def autocorrelation_error(
    x: Float[np.ndarray, "N L C"], y: Float[np.ndarray, "M L C"], lags: int | None = None
) -> CorrelationError:
    """The largest and the root-mean-square difference of the autocorrelations of two samples of series.

    Args:
        x, y: the series.
        lags: the largest lag; None for half of the length.

    Returns:
        The differences over lags and channels.

    Raises:
        ValueError: if the lag is not between 1 and L - 1.
    """
    lags = max(1, x.shape[1] // 2) if lags is None else lags
    return CorrelationError.of(autocorrelation(x, lags) - autocorrelation(y, lags))
