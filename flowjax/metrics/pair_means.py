"""Means of a function of the distance over pairs of points, a block of rows at a time."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from flowjax.spaces import EUCLIDEAN

__all__ = ["PairMeans", "pair_means"]

_BLOCK = 512

_FEW = 4
"""Up to this dimension, differences are squared; above it, squared norms and inner products are used."""


class PairMeans(NamedTuple):
    """Means over pairs of points.

    Attributes:
        xx: over the pairs of different points of the first sample.
        yy: over the pairs of different points of the second sample.
        xy: over the pairs of a point of the first and a point of the second sample.
    """

    xx: Float[Array, ""]
    yy: Float[Array, ""]
    xy: Float[Array, ""]


def pair_means(
    function: Callable[[Array], Array],
    x: Float[Array | np.ndarray, "N *event"],
    y: Float[Array | np.ndarray, "M *other"],
    *,
    block: int = _BLOCK,
) -> PairMeans:
    """The means of `function` of the squared distance over the pairs within and between two samples.

    Distances are computed for `block` rows at a time, so that the memory is O(block (N + M)). Both samples are centred
    first, and each mean is that of the means of the rows, which bounds the rounding error of float32.

    Args:
        function: of an array of squared distances, elementwise.
        x, y: the samples, (N, *event) and (M, *event).
        block: the number of rows for which distances are kept at a time.

    Raises:
        ValueError: if a sample has fewer than two points, or the samples differ in dimension.
    """
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(f"the points of both samples must have the same shape, got {x.shape[1:]} and {y.shape[1:]}")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"both samples must have at least two points, got {len(x)} and {len(y)}")
    centre = y.mean(0)
    a, b = (jnp.asarray(points - centre).reshape(len(points), -1) for points in (x, y))
    xx = _mean(function, a, a, block, same=True)
    yy = _mean(function, b, b, block, same=True)
    return PairMeans(xx, yy, _mean(function, a, b, block, same=False))


def _mean(
    function: Callable[[Array], Array], x: Float[Array, "N D"], y: Float[Array, "M D"], block: int, *, same: bool
) -> Float[Array, ""]:
    n, m = len(x), len(y)
    block = min(block, n)
    blocks = -(-n // block)
    rows = jnp.arange(blocks * block).reshape(blocks, block)
    columns = jnp.arange(m)

    def mean_of_rows(index: Array) -> Array:
        values = function(_distance_squared(x[jnp.minimum(index, n - 1)], y))
        if same:
            values = jnp.where(index[:, None] == columns, 0.0, values)
        return values.sum(1) / (m - same)

    return lax.map(mean_of_rows, rows).reshape(-1)[:n].mean()


def _distance_squared(a: Float[Array, "B D"], b: Float[Array, "M D"]) -> Float[Array, "B M"]:
    if a.shape[1] > _FEW:
        return EUCLIDEAN.pairwise_distance_squared(a, b)
    # coordinate by coordinate, which compiles to one loop without an array (B, M, D)
    return sum((jnp.square(a[:, k, None] - b[:, k]) for k in range(a.shape[1])), jnp.zeros((len(a), len(b))))
