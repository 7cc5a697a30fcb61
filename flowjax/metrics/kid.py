"""Kernel Inception distance: maximum mean discrepancy of features under a cubic kernel (Binkowski et al. 2018)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

__all__ = ["Estimate", "kernel_distance"]


class Estimate(NamedTuple):
    """A mean over subsets, and its standard error."""

    value: float
    stderr: float


def kernel_distance(
    x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"], *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> Estimate:
    """Squared maximum mean discrepancy, unbiased, under k(a, b) = (a . b / D + 1)^3, as the mean over random subsets.

    Zero on average for equal distributions, whatever N: so it may be negative.

    Args:
        x, y: features.
        subsets: how many pairs of subsets.
        size: rows of each subset, drawn without replacement; all rows where there are fewer.
        seed: of the subsets.

    Returns:
        The mean, and the deviation over subsets divided by the root of their number: too small where the subsets
        together draw on more rows than there are, and NaN where each would be all rows.
    """
    size = min(size, len(x), len(y))
    if size < 2:
        raise ValueError(f"at least two rows of each are needed, got {len(x)} and {len(y)}")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features of one dimension are needed, got {x.shape[1]} and {y.shape[1]}")
    if len(x) == len(y) == size:
        subsets = 1
    rng = np.random.default_rng(seed)
    draw = lambda rows: jnp.asarray(rows[rng.choice(len(rows), size, replace=False)], jnp.float32)
    values = [_combine(*(np.asarray(s, np.float64) for s in _sums(draw(x), draw(y)))) for _ in range(subsets)]
    stderr = float(np.std(values, ddof=1) / np.sqrt(subsets)) if subsets > 1 else float("nan")
    return Estimate(float(np.mean(values)), stderr)


@jax.jit
def _sums(x: Float[Array, "S D"], y: Float[Array, "S D"]) -> tuple[Float[Array, " S"], ...]:
    """Sums over each row of the kernel: of x with the other x, of y with the other y, of x with y."""
    kernel = lambda a, b: (jnp.matmul(a, b.T, precision="highest") / a.shape[1] + 1) ** 3
    off = ~jnp.eye(len(x), dtype=bool)
    return kernel(x, x).sum(1, where=off), kernel(y, y).sum(1, where=off), kernel(x, y).sum(1)


def _combine(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> float:
    """Gretton et al. 2012, eq. 3; the row sums are added in float64, for the difference is small beside them."""
    s = len(xx)
    return float((xx.sum() + yy.sum()) / (s * (s - 1)) - 2 * xy.sum() / s**2)
