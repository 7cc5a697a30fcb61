"""Points that are scored: checked before any solve, with one line about those that are far from the training data."""

import numpy as np

from flowjax.data import Affine, DataSpec
from flowjax.errors import ConfigError
from flowjax.likelihood import rows_text
from flowjax.training.writers import say

__all__ = ["FAR", "check_array", "check_finite", "check_points", "warn_far"]

FAR = 10.0
"""A point is reported if one of its coordinates exceeds this as an input of the network.

The unit is a standard deviation of the training data if the run standardises them, and otherwise that of the data."""


def check_points(spec: DataSpec, x: np.ndarray) -> None:
    """Checks the shape and the values of points in data space.

    Raises:
        ConfigError: if the shape is not (N, *spec.shape), a value is NaN or infinite, or a pixel is out of its range.
    """
    check_array(spec, x, "points")
    largest = spec.levels - 1 if np.issubdtype(x.dtype, np.integer) else spec.levels  # k + u may reach the last edge
    if spec.levels and len(x) and (x.min() < 0 or x.max() > largest):
        raise ConfigError(f"pixels of this run lie in 0 to {spec.levels - 1}, not {x.min():g} to {x.max():g}")


def check_array(spec: DataSpec, x: np.ndarray, what: str) -> None:
    """Raises ConfigError if an array is not (N, *spec.shape), or a value is NaN or infinite; `what` names it."""
    if np.ndim(x) != len(spec.shape) + 1 or x.shape[1:] != tuple(spec.shape):
        raise ConfigError(f"{what} must have the shape (N, {', '.join(map(str, spec.shape))}), not {np.shape(x)}")
    if fault := check_finite(x):
        raise ConfigError(f"{what} {fault}")


def check_finite(x: np.ndarray) -> str:
    """Why points (N, *event) cannot be scored: "have NaN or infinite values in rows 1, 2..."; empty if they can."""
    bad = np.flatnonzero(~np.isfinite(np.asarray(x, np.float64)).reshape(len(x), -1).all(1))
    return f"have NaN or infinite values in {rows_text(bad)}: remove or repair them" if len(bad) else ""


def warn_far(spec: DataSpec, encoded: np.ndarray) -> None:
    """Prints a line on stderr if points are far outside the training data, where a network has learned nothing.

    Args:
        spec: of the data; their scale is one standard deviation of the training data, if they were normalised.
        encoded: (N, *shape) points in model space.
    """
    far = np.abs(encoded).reshape(len(encoded), -1).max(1, initial=0.0)
    if len(rows := np.flatnonzero(far > FAR)):
        unit = "units of the network's input" if spec.normalise == Affine() else "standard deviations"
        say(
            f"likelihood: warning: {rows_text(rows)} of the points are up to {far.max():.3g} {unit} from the "
            "mean of the training data: the network has not learned the density there"
        )
