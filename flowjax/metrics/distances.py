"""Distances between two samples: Wasserstein-2, exact and sliced, and maximum mean discrepancy."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.metrics.pair_means import pair_means
from flowjax.spaces import EUCLIDEAN
from flowjax.transport import assign, entropic_potentials, pairwise_cost
from flowjax.typing import PRNGKey

__all__ = [
    "gaussian_mmd",
    "mmd",
    "sliced_wasserstein2_squared",
    "wasserstein2_squared",
    "wasserstein2_squared_pairs",
]

_MEDIAN_ROWS = 1000


def wasserstein2_squared(x: Float[np.ndarray, "N *event"], y: Float[np.ndarray, "M *event"]) -> float:
    """The exact squared Wasserstein-2 distance between two samples of equal size, by optimal assignment in float64.

    It takes about 0.1 s for a thousand points; the time grows like N^2 to N^3.

    Args:
        x, y: the samples, (N, *event) each.

    Raises:
        ValueError: if the samples differ in size or in dimension.
    """
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    if x.shape != y.shape:
        raise ValueError(f"the two samples must have the same size, got {x.shape} and {y.shape}")
    centre = y.mean(0, dtype=np.float64)  # subtracted in float64, so that float32 keeps the distances
    x, y = x - centre, y - centre
    rows = assign(x, y, *_potentials(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)))
    return float(((x[rows] - y) ** 2).sum(1).mean())


_potentials = jax.jit(lambda x, y: entropic_potentials(pairwise_cost(x, y)))


def wasserstein2_squared_pairs(x: np.ndarray, y: np.ndarray, size: int = 1000, pairs: int = 25) -> float:
    """The mean of `wasserstein2_squared` over disjoint pairs of blocks of points.

    The distance between two finite samples of the same distribution is positive as well, so compare the result with
    that distance.

    Args:
        x, y: the samples, (N, *event) and (M, *event).
        size: the number of points per block.
        pairs: the largest number of pairs of blocks.

    Raises:
        ValueError: if a sample has fewer than `size` points.
    """
    count = min(pairs, len(x) // size, len(y) // size)
    if count < 1:
        raise ValueError(f"both samples must have at least {size} points, got {len(x)} and {len(y)}")
    blocks = [slice(i * size, (i + 1) * size) for i in range(count)]
    with ThreadPoolExecutor() as pool:  # SciPy's solver releases the GIL
        return float(np.mean(list(pool.map(lambda b: wasserstein2_squared(x[b], y[b]), blocks))))


def mmd(x: Float[Array, "N *event"], y: Float[Array, "M *event"]) -> Float[Array, ""]:
    """The unbiased squared maximum mean discrepancy with a sum of Gaussian kernels (Gretton et al. 2012, eq. 3).

    The bandwidths are 1/4, 1/2, 1, 2 and 4 times the median distance between x and y. If the median is 0, the root mean
    squared distance is used instead, and if all distances are 0 the result is 0. The estimate has mean zero for equal
    distributions, so it may be negative.

    Args:
        x, y: the samples, (N, *event) and (M, *event).

    Raises:
        ValueError: if a sample has fewer than two points.
    """
    x, y = x.reshape(x.shape[0], -1), y.reshape(y.shape[0], -1)
    n, m = x.shape[0], y.shape[0]
    if n < 2 or m < 2:
        raise ValueError(f"both samples must have at least two points, got {n} and {m}")
    xx, yy, xy = (EUCLIDEAN.pairwise_distance_squared(*pair) for pair in ((x, x), (y, y), (x, y)))
    median, mean = jnp.median(xy), xy.mean()
    unit = jnp.where(median > 0, median, jnp.where(mean > 0, mean, 1.0))
    bandwidths = jnp.array([0.25, 0.5, 1.0, 2.0, 4.0])
    kernel = lambda d: jnp.exp(-d[..., None] / (2 * bandwidths**2 * unit)).sum(-1)
    off = lambda d: (kernel(d).sum() - jnp.trace(kernel(d))) / (d.shape[0] * (d.shape[0] - 1))
    return off(xx) + off(yy) - 2 * kernel(xy).mean()


@partial(jax.jit, static_argnames="block")
def gaussian_mmd(
    x: Float[Array | np.ndarray, "N *event"],
    y: Float[Array | np.ndarray, "M *other"],
    bandwidth: float | Float[Array, ""] | None = None,
    *,
    block: int = 512,
) -> Float[Array, ""]:
    """The unbiased squared maximum mean discrepancy with one Gaussian kernel (Gretton et al. 2012, eq. 3).

    The kernel is k(a, b) = exp(-|a - b|^2 / (2 h^2)). By default its bandwidth h is the median distance between
    different points among the first 1,000 of y. If y is the reference, samples of several models are therefore compared
    with the same kernel. The estimate has mean zero for equal distributions, so it may be negative. Distances are
    computed for `block` rows at a time, so that tens of thousands of points fit into memory. `mmd` adds five kernels
    of different bandwidths.

    Args:
        x: the samples, (N, *event).
        y: the reference, (M, *event).
        bandwidth: h, in the unit of the data; None for the median. If the median is 0, h is 1.
        block: the number of rows for which distances are kept at a time.

    Raises:
        ValueError: if a sample has fewer than two points, or the samples differ in dimension.
    """
    if bandwidth is None:
        some = jnp.asarray(y[:_MEDIAN_ROWS])
        apart = ~jnp.eye(len(some), dtype=bool)
        squared = jnp.nanmedian(jnp.where(apart, EUCLIDEAN.pairwise_distance_squared(some, some), jnp.nan))
        squared = jnp.where(squared > 0, squared, 1.0)
    else:
        squared = jnp.square(bandwidth)
    means = pair_means(lambda distance: jnp.exp(-distance / (2 * squared)), x, y, block=block)
    return means.xx + means.yy - 2 * means.xy


@partial(jax.jit, static_argnames="projections")
def sliced_wasserstein2_squared(
    key: PRNGKey,
    x: Float[Array | np.ndarray, "N *event"],
    y: Float[Array | np.ndarray, "M *other"],
    *,
    projections: int = 512,
) -> Float[Array, ""]:
    """The squared sliced Wasserstein-2 distance (Bonneel et al. 2015, eq. 4), for samples of many dimensions.

    It is the mean over random unit vectors of the squared Wasserstein-2 distance between the projections of the two
    samples on the vector, which sorting finds exactly. It takes O(projections N (d + log N)), where the exact distance
    takes up to O(N^3). Like that one it is positive for two finite samples of the same distribution, but the excess
    falls like 1 / N in any dimension. A shift by v changes it by |v|^2 / d.

    Args:
        key: for the unit vectors.
        x, y: the samples, (N, *event) each.
        projections: the number of unit vectors.

    Raises:
        ValueError: if the samples differ in size or in dimension.
    """
    if x.shape != y.shape:
        raise ValueError(f"the two samples must have the same size, got {x.shape} and {y.shape}")
    centre = y.mean(0)
    a, b = (jnp.asarray(points - centre).reshape(len(points), -1) for points in (x, y))
    directions = jax.random.normal(key, (a.shape[1], projections))
    directions /= jnp.linalg.norm(directions, axis=0)
    along = lambda points: jnp.sort(jnp.matmul(points, directions, precision="highest").T, axis=1)
    return ((along(a) - along(b)) ** 2).mean()
