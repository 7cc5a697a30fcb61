"""The metrics that `flowjax evaluate` adds for rows of numbers: marginals, correlations, energy distance and C2ST."""

import jax
import numpy as np
from jaxtyping import Float

from flowjax import metrics
from flowjax.data import DataSpec

__all__ = ["OF_TABLES", "compare_rows", "in_model_space", "table_metrics"]

_NAMES = (
    *("marginal_w1", "marginal_w1_max", "marginal_ks_max", "correlation_error", "correlation_error_max"),
    *("autocorrelation_error", "energy_distance"),
)

OF_TABLES = (*(name + end for name in _NAMES for end in ("", "_true")), "c2st")
"""The names of these metrics."""

_CORRELATED = 1000
"""The largest number of features whose correlations are compared."""

_ENERGY_ROWS = 5000
_C2ST_ROWS, _FEWEST_OF_C2ST, _C2ST_FEATURES = 1000, 100, 20
"""With these rows and features, the classifiers are trained in seconds on two CPU cores."""

_SEED = 74


def in_model_space(spec: DataSpec, x: np.ndarray) -> np.ndarray:
    """Rows in model space, where features with scales of their own count alike, and float32 keeps digits of distances.

    Integers stay whole: they are not dequantised.
    """
    return np.asarray(spec.normalise.to_model(spec.unbounded(np.asarray(x, np.float64))), np.float32)


def table_metrics(
    samples: Float[np.ndarray, "N *event"],
    data: Float[np.ndarray, "N *event"],
    other: Float[np.ndarray, "N *event"],
    unit: float = 1.0,
) -> dict[str, float]:
    """Compares samples with data that are not images, and as a noise floor two sets of data in the same way.

    Args:
        samples: of a run, (N, *event), in the units of its model space.
        data: as many rows of data.
        other: as many other rows of data. Metrics whose name ends in `_true` compare them with `data`.
        unit: that of the energy distance, in which it is returned.

    Returns:
        marginal_w1, marginal_w1_max: the mean and the largest Wasserstein-1 distance of a feature, in standard
            deviations of the feature.
        marginal_ks_max: the largest Kolmogorov-Smirnov statistic of a feature.
        correlation_error, correlation_error_max: the root mean square and the largest difference of the correlations;
            for 2 to 1,000 features.
        autocorrelation_error: the root mean square difference of the autocorrelations; for series (L, C).
        energy_distance: of up to 5,000 rows.
        c2st: the accuracy of the classifier two-sample test on up to 1,000 rows, for at most 20 features and at least
            100 rows. It is 0.5 for equal distributions, so it needs no noise floor.
    """
    found = {}
    for end, rows in (("", samples), ("_true", other)):
        found |= {name + end: value for name, value in compare_rows(rows, data, unit).items()}
    features = data[0].size
    if len(data) >= _FEWEST_OF_C2ST and features <= _C2ST_FEATURES:
        found["c2st"] = float(metrics.c2st(jax.random.key(_SEED), data[:_C2ST_ROWS], samples[:_C2ST_ROWS]))
    return {name: found[name] for name in OF_TABLES if name in found}


def compare_rows(
    rows: Float[np.ndarray, "N *event"], data: Float[np.ndarray, "M *event"], unit: float = 1.0
) -> dict[str, float]:
    """The metrics of `table_metrics` for one set of rows, without the classifier two-sample test."""
    marginal = metrics.marginal_distances(rows, data)
    found = {
        "marginal_w1": float(marginal.wasserstein.mean()),
        "marginal_w1_max": float(marginal.wasserstein.max()),
        "marginal_ks_max": float(marginal.kolmogorov.max()),
        "energy_distance": unit * float(metrics.energy_distance(rows[:_ENERGY_ROWS], data[:_ENERGY_ROWS])),
    }
    if 1 < data[0].size <= _CORRELATED:
        found["correlation_error_max"], found["correlation_error"] = metrics.correlation_error(rows, data)
    if data.ndim == 3 and data.shape[1] > 1:
        found["autocorrelation_error"] = metrics.autocorrelation_error(rows, data).rms
    return found
