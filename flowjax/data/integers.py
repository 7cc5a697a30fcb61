"""Integers that are not pixels: which entries of the last axis are integers, and the range of each in the data.

They are dequantised like pixels: in training a value k becomes uniform on [k, k + 1), before the affine map, so that
the data have a density; samples are floored back, and clipped to the range. Integrated over [k, k + 1), the learned
density is the probability of k.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flowjax.data.affine import Affine, DataError
from flowjax.data.record import LARGEST_INTEGER, LARGEST_LIST

__all__ = ["Integers", "observed_ranges"]

_UNIFORM = 1 / 12
"""The variance of the uniform distribution on [0, 1), which dequantisation adds."""

_EXACT_IN_FLOAT32 = 2**24
"""float32 holds all integers up to this absolute value."""


@dataclass(frozen=True)
class Integers:
    """The entries of the last axis that are integers.

    Attributes:
        ranges: for each entry of the last axis (a column, a channel) the smallest and the largest integer, or None
            where it is a real number. One range stands for all entries; () if there are no integers.
    """

    ranges: tuple[tuple[int, int] | None, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.ranges)

    @property
    def where(self) -> np.ndarray:
        """Which entries are integers, as bool."""
        return np.array([one is not None for one in self.ranges], bool)

    @property
    def complete(self) -> bool:
        """Whether all entries are integers."""
        return bool(self) and None not in self.ranges

    @property
    def exact_in_float32(self) -> bool:
        return all(abs(bound) <= _EXACT_IN_FLOAT32 for one in self.ranges if one is not None for bound in one)

    def are_whole(self, x: np.ndarray) -> bool:
        """Whether the integer entries of rows hold integers, so that they have to be dequantised."""
        some = x[..., self.where] if len(self.ranges) > 1 else x
        return bool(np.all(some == np.floor(some)))

    def steps(self, affine: Affine) -> np.ndarray:
        """The width of [k, k + 1) in model space for each entry; 0 where it is a real number."""
        return np.where(self.where, 1 / np.asarray(affine.scale, np.float64), 0.0)

    def rounded(self, x: np.ndarray) -> np.ndarray:
        """Floors the integer entries of samples in data space, and clips them to their ranges; NaN stays NaN."""
        low = np.array([-math.inf if one is None else one[0] for one in self.ranges])
        high = np.array([math.inf if one is None else one[1] for one in self.ranges])
        return np.where(self.where, np.clip(np.floor(x), low, high), x)

    def dequantised(self, affine: Affine) -> Affine:
        """Returns the map that standardises dequantised data.

        The uniform distribution on [0, 1) adds 1/2 to the mean and 1/12 to the variance.

        Args:
            affine: the map that standardises the data before dequantisation; constant entries have scale 1.
        """
        constant = np.array([one is not None and one[0] == one[1] for one in self.ranges])
        scale, shift = np.asarray(affine.scale), np.asarray(affine.shift)
        if affine.features is None and (len(self.ranges) == 1 or self.complete):
            constant = constant.all()
            variance = _UNIFORM + (0.0 if constant else float(scale) ** 2)
            return Affine(math.sqrt(variance), float(shift) + 0.5)
        wide = np.sqrt(np.where(constant, 0.0, scale**2) + _UNIFORM)
        return Affine(
            tuple(np.where(self.where, wide, scale).tolist()), tuple(np.where(self.where, shift + 0.5, shift).tolist())
        )


def observed_ranges(
    where: str, n: int, read: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], at_once: int
) -> Integers:
    """Returns the range of each entry of the last axis of an array of integers; one range if there are too many.

    Args:
        where: the file, for messages.
        n: number of rows.
        read: function from indices of rows to these rows.
        shape: the shape of a row.
        at_once: how many numbers are read at a time.

    Raises:
        DataError: if a value is beyond 2^53, where float64 cannot tell integers apart.
    """
    some = max(1, at_once // math.prod(shape))
    axis = tuple(range(len(shape))) if shape[-1] <= LARGEST_LIST else None
    lows, highs = [], []
    for i in range(0, n, some):
        x = np.asarray(read(np.arange(i, min(n, i + some))))
        lows.append([int(v) for v in np.atleast_1d(x.min(axis))])
        highs.append([int(v) for v in np.atleast_1d(x.max(axis))])
    ranges = tuple((min(low), max(high)) for low, high in zip(zip(*lows), zip(*highs), strict=True))  # noqa: B905
    for bound in (bound for one in ranges for bound in one):
        if abs(bound) > LARGEST_INTEGER:
            raise DataError(
                f"{where}: x holds the integer {bound}, beyond 2^53, where float64 cannot tell integers apart: "
                "subtract an offset, or store x as float64 if the last digits do not matter"
            )
    return Integers(ranges)
