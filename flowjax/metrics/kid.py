"""The kernel Inception distance: the maximum mean discrepancy of features with a cubic kernel."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = ["Estimate", "kernel_distance"]


class Estimate(NamedTuple):
    """A mean over subsets.

    Attributes:
        value: the mean.
        stderr: its standard error.
    """

    value: float
    stderr: float


def kernel_distance(
    x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"], *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> Estimate:
    """The kernel Inception distance (Binkowski et al. 2018, arXiv:1801.01401).

    It is the unbiased squared maximum mean discrepancy with the kernel k(a, b) = (a . b / D + 1)^3, averaged over
    random subsets. It has mean zero for equal distributions and any N, so it may be negative.

    Args:
        x, y: features, (N, D) and (M, D).
        subsets: the number of pairs of subsets.
        size: the number of rows of each subset, sampled without replacement; at most N and M.
        seed: the seed for the subsets.

    Returns:
        The mean over subsets, and its standard error if the subsets were independent. The standard error is too small
        if the subsets overlap much, and NaN if there is only one subset.

    Raises:
        ValueError: if there are fewer than two rows, or x and y differ in D.
    """
    size = min(size, len(x), len(y))
    if size < 2:
        raise ValueError(f"both arrays must have at least two rows, got {len(x)} and {len(y)}")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features must have the same dimension, got {x.shape[1]} and {y.shape[1]}")
    if len(x) == len(y) == size:
        subsets = 1
    rng = np.random.default_rng(seed)
    draw = lambda rows: jnp.asarray(rows[rng.choice(len(rows), size, replace=False)], jnp.float32)
    values = [_combine(*(np.asarray(s, np.float64) for s in _sums(draw(x), draw(y)))) for _ in range(subsets)]
    stderr = float(np.std(values, ddof=1) / np.sqrt(subsets)) if subsets > 1 else float("nan")
    return Estimate(float(np.mean(values)), stderr)


@jax.jit
def _sums(x: Float[Array, "S D"], y: Float[Array, "S D"]) -> tuple[Float[Array, " S"], ...]:
    """Row sums of the kernel matrices of (x, x) and (y, y) without their diagonals, and of (x, y)."""
    kernel = lambda a, b: (jnp.matmul(a, b.T, precision="highest") / a.shape[1] + 1) ** 3
    off = ~jnp.eye(len(x), dtype=bool)
    return kernel(x, x).sum(1, where=off), kernel(y, y).sum(1, where=off), kernel(x, y).sum(1)


def _combine(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> float:
    """Gretton et al. 2012, eq. 3. The row sums are added in float64, because they nearly cancel."""
    s = len(xx)
    return float((xx.sum() + yy.sum()) / (s * (s - 1)) - 2 * xy.sum() / s**2)
