"""Improved precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

__all__ = ["Coverage", "precision_recall", "radii"]


class Coverage(NamedTuple):
    """The result of `precision_recall`.

    Attributes:
        precision: the fraction of samples in the manifold of the data.
        recall: the fraction of data in the manifold of the samples.
    """

    precision: float
    recall: float


def precision_recall(
    data: Float[np.ndarray, "N D"], samples: Float[np.ndarray, "M D"], k: int = 3, chunk: int = 1024
) -> Coverage:
    """Precision and recall of samples with respect to data.

    The manifold of a set is estimated by the union of balls around its rows, each of which reaches to the k-th nearest
    neighbour of its row. Precision and recall depend on N and M, so compare only values for equal numbers.

    Args:
        data, samples: features, (N, D) and (M, D).
        k: the number of neighbours, without the row itself.
        chunk: the number of rows processed together; chunk x max(N, M) distances are stored on the device in float32.

    Raises:
        ValueError: if there are at most k rows of data or of samples.
    """
    if min(len(data), len(samples)) <= k:
        raise ValueError(f"data and samples must have more than k = {k} rows, got {len(data)} and {len(samples)}")
    # A common centre is subtracted to reduce cancellation in |a|^2 + |b|^2 - 2 a.b.
    centre = data.mean(0, dtype=np.float64).astype(np.float32)
    x, y = (jnp.asarray(rows - centre, jnp.float32) for rows in (data, samples))
    near_x, near_y = radii(x, k, chunk), radii(y, k, chunk)
    return Coverage(float(_inside(x, near_x, y, chunk).mean()), float(_inside(y, near_y, x, chunk).mean()))


def radii(x: Float[Array, "N D"], k: int, chunk: int) -> Float[Array, " N"]:
    """The squared distance of each row to its k-th nearest neighbour."""
    parts = [_kth(x, _window(x, i, chunk), i + jnp.arange(chunk), k) for i in range(0, len(x), chunk)]
    return jnp.concatenate(parts)[: len(x)]


def _inside(x: Float[Array, "N D"], radius: Float[Array, " N"], points: Float[Array, "M D"], chunk: int) -> np.ndarray:
    """Whether each point lies in a ball around a row of x, (M,) bool."""
    parts = [_any_ball(x, radius, _window(points, i, chunk)) for i in range(0, len(points), chunk)]
    return np.asarray(jnp.concatenate(parts))[: len(points)]


def _window(x: Float[Array, "N D"], start: int, chunk: int) -> Float[Array, "chunk D"]:
    """`chunk` rows, padded by repeating the last row, so that all calls share one compiled program."""
    return x[jnp.minimum(start + jnp.arange(chunk), len(x) - 1)]


def _squared(a: Float[Array, "A D"], b: Float[Array, "B D"]) -> Float[Array, "A B"]:
    cross = jnp.matmul(a, b.T, precision="highest")
    return jnp.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * cross, 0.0)


@partial(jax.jit, static_argnames="k")
def _kth(x: Float[Array, "N D"], rows: Float[Array, "C D"], index: Int[Array, " C"], k: int) -> Float[Array, " C"]:
    others = jnp.where(index[:, None] == jnp.arange(len(x)), jnp.inf, _squared(rows, x))
    return -lax.top_k(-others, k)[0][:, -1]


@jax.jit
def _any_ball(x: Float[Array, "N D"], radius: Float[Array, " N"], points: Float[Array, "C D"]) -> Bool[Array, " C"]:
    return (_squared(points, x) <= radius).any(1)
