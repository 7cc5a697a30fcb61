"""The affine map between data space (samples and densities) and model space (networks and paths).

data = scale * model + shift        log p_data = log p_model - sum over all coordinates of log scale
"""

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

__all__ = ["Affine", "DataError", "image_scale"]

Numbers = TypeVar("Numbers", Array, np.ndarray, np.float32, float)


class DataError(ValueError):
    """A data set is missing or cannot be read. The message is one line and says what to do."""


@dataclass(frozen=True)
class Affine:
    """The affine map data = scale * model + shift.

    Attributes:
        scale: one number for all coordinates, or a tuple with one number for each entry of the last axis of an example
            (coordinates of a vector, channels of an image or a sequence).
        shift: a number or a tuple, in the same way.

    Raises:
        DataError: if a scale is not positive and finite, a shift is not finite, or two tuples have different lengths.
    """

    scale: float | tuple[float, ...] = 1.0
    shift: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        for scale in _listed(self.scale):
            if not 0 < scale < math.inf:
                raise DataError(f"the scale of the data must be a positive finite number, not {scale}")
        for shift in _listed(self.shift):
            if not math.isfinite(shift):
                raise DataError(f"the shift of the data must be a finite number, not {shift}")
        lengths = {len(values) for values in (self.scale, self.shift) if isinstance(values, tuple)}
        if len(lengths) > 1 or 0 in lengths:
            raise DataError("scale and shift must be tuples of the same length, with at least one entry")

    @property
    def features(self) -> int | None:
        """The required length of the last axis; None if the map has one scale and one shift."""
        return next((len(values) for values in (self.scale, self.shift) if isinstance(values, tuple)), None)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether examples of this shape can be mapped."""
        return self.features is None or shape[-1:] == (self.features,)

    def to_model(self, x: Numbers) -> Numbers:
        """Maps from data space to model space."""
        return (x - _like(self.shift, x)) / _like(self.scale, x)

    def to_data(self, x: Numbers) -> Numbers:
        """Maps from model space to data space."""
        return x * _like(self.scale, x) + _like(self.shift, x)

    def log_prob_to_data(self, log_prob: Numbers, d: int) -> Numbers:
        """Converts log-densities in nats from model space to data space.

        Args:
            log_prob: log-densities in model space.
            d: number of coordinates of an example.
        """
        if isinstance(self.scale, tuple):
            return log_prob - d // len(self.scale) * math.fsum(map(math.log, self.scale))
        return log_prob - d * math.log(self.scale)

    def near(self, other: "Affine") -> bool:
        """Whether two maps agree up to 1e-5 of the other's scale, because sums can be rounded differently elsewhere."""
        if (self.features or 0) != (other.features or 0):
            return False
        scale, shift, *rest = (np.asarray(v) for v in (self.scale, self.shift, other.scale, other.shift))
        close = lambda a, b: bool(np.all(np.abs(a - b) <= 1e-5 * rest[0]))
        return close(scale, rest[0]) and close(shift, rest[1])

    def resolved_by_float32(self) -> bool:
        """Whether float32 resolves the data: |shift| <= 1000 scale, and the scale is between 2^-100 and 2^100."""
        scale, shift = np.asarray(self.scale), np.abs(self.shift)
        return bool(np.all((shift <= 1000 * scale) & (scale > 2.0**-100) & (scale < 2.0**100)))


def image_scale(levels: int) -> Affine:
    """Returns the map whose model space is [-1, 1] for pixels in [0, levels - 1]: x / 127.5 - 1 for 8 bits."""
    half = (levels - 1) / 2
    return Affine(half, half)


def _listed(values: float | tuple[float, ...]) -> tuple[float, ...]:
    return values if isinstance(values, tuple) else (values,)


def _like(values: float | tuple[float, ...], x: Any) -> Any:
    """Converts a tuple into an array: of the dtype of x if x is a JAX array, and of float64 otherwise."""
    if not isinstance(values, tuple):
        return values
    return jnp.asarray(values, x.dtype) if hasattr(x, "aval") else np.asarray(values, np.float64)
