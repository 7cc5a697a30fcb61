"""Samples of integer data rounded to their levels on the device, to the same bits as by NumPy."""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from flowjax.data import DataSpec
from flowjax.typing import Batched

__all__ = ["level_thresholds", "to_levels"]

_KEPT = 8
"""Data sets whose thresholds are kept."""


@jax.jit
def to_levels(thresholds: Array, x: Batched) -> UInt8[Array, "B *event"]:
    """`DataSpec.finish` of integer data, on the device: a quarter of the bytes are fetched.

    Thresholds are those of all numbers, (K,), or those of each channel, (K, C).

    By comparisons with `thresholds`, not by its formula: there a compiler may fuse the product and the sum into one
    rounding, and a sample on the edge of a level would be another. NaN, as in NumPy, is 0.
    """
    search = lambda thresholds, x: jnp.searchsorted(thresholds, x, side="right")
    levels = search(thresholds, x) if thresholds.ndim == 1 else jax.vmap(search, (-1, -1), -1)(thresholds, x)
    return jnp.where(jnp.isnan(x), 0, levels).astype(jnp.uint8)


@lru_cache(_KEPT)
def level_thresholds(spec: DataSpec) -> np.ndarray:
    """The smallest float32 that `spec.finish` takes to each level from 1 on: by bisection over all floats in order.

    Returns:
        (K,) for K + 1 levels, or (K, C) where each of C channels has its own scale.
    """
    levels = np.arange(1, spec.levels)
    if spec.normalise.features is not None:
        levels = np.repeat(levels[:, None], spec.normalise.features, 1)
    low, high = np.full(levels.shape, -0x7F7FFFFF), np.full(levels.shape, 0x7F7FFFFF)  # the finite ones
    with np.errstate(over="ignore"):
        while np.any(high - low > 1):
            middle = (low + high) // 2
            reached = spec.finish(_float_of_rank(middle)) >= levels
            low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return _float_of_rank(high)


def _float_of_rank(rank: np.ndarray) -> np.ndarray:
    """The float32 that is `rank` places above 0."""
    return np.where(rank >= 0, rank, -rank | 0x80000000).astype(np.uint32).view(np.float32)
