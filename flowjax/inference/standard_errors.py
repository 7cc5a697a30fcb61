"""Standard errors of means over points."""

import math

import numpy as np
from jaxtyping import Float

__all__ = ["standard_error_of_mean"]


def standard_error_of_mean(values: Float[np.ndarray, " N"]) -> float | None:
    """s / sqrt(N) with the unbiased variance s^2 (ddof = 1); None for one value, or if a value is not finite."""
    values = np.asarray(values, np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    return float(values.std(ddof=1) / math.sqrt(len(values)))
