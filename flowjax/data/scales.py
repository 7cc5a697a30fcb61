"""The mean and the standard deviation that standardise numbers, and what is remarkable about them."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from flowjax.data.affine import Affine, DataError
from flowjax.data.spec import AT_ONCE
from flowjax.data.splits import spread

_SAMPLE = 2**20
"""Numbers of the sample that is looked at for outliers and for features of different scales."""

_NARROW = 1e-3
"""Of the standard deviation: values within so little are hardly told apart by a network."""


def standardisation(
    where: str, n: int, read: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], dtype: Any, most: int
) -> tuple[Affine, tuple[str, ...]]:
    """The affine map whose shift is the mean and whose scale is the standard deviation, both over all values.

    The moments are computed in float64, chunk by chunk. Constant data have scale 1.

    Args:
        where: the file, for messages.
        n: number of training rows.
        read: from increasing numbers of training rows to these rows, (k, *shape).
        shape: of a row.
        dtype: of the stored numbers.
        most: how many rows to take the moments of; a spread sample, if there are more.

    Returns:
        The map, and notes for the user about constant data, outliers, features of very different scales, and numbers
        that were stored with too few digits.

    Raises:
        DataError: one line, if values are not finite, or if they vary and their deviation is not a positive number.
    """
    d = math.prod(shape)
    rows, some = spread(n, min(n, most)), max(1, AT_ONCE // d)
    chunks = (np.asarray(read(rows[i : i + some]), np.float64) for i in range(0, len(rows), some))
    mean, std, low, high = _moments(chunks)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"{where}: x holds values that are not finite")
    if low == high:
        return Affine(1.0, low), (f"all values of x are {low:g}: there is nothing to learn",)
    if not 0 < std < math.inf:
        raise DataError(
            f"{where}: x lies between {low:g} and {high:g}, where squares are out of the range of float64: multiply x "
            "by a power of ten"
        )
    sample = np.asarray(read(spread(n, max(1, min(n, _SAMPLE // d)))), np.float64)
    return Affine(std, mean), tuple(_remarks(sample, mean, std, float(jnp.finfo(dtype).eps)))


def _moments(chunks: Iterable[np.ndarray]) -> tuple[float, float, float, float]:
    """Mean, standard deviation, smallest and largest value; chunks are merged as in Chan et al. 1983, eq. 2.1."""
    count, mean, squares, low, high = 0, 0.0, 0.0, math.inf, -math.inf
    with np.errstate(over="ignore", invalid="ignore"):
        for x in chunks:
            own = float(x.mean())
            total, gap = count + x.size, own - mean
            squares += float(((x - own) ** 2).sum()) + np.float64(gap) ** 2 * (count * x.size / total)
            mean, count = mean + gap * x.size / total, total
            low, high = float(np.minimum(low, x.min())), float(np.maximum(high, x.max()))  # these pass NaN on
    return mean, float(np.sqrt(squares / count)), low, high


def _remarks(sample: np.ndarray, mean: float, std: float, eps: float) -> Iterable[str]:
    """What is unusual about a sample (k, *shape) of data of this mean and deviation, stored with precision eps."""
    if eps * abs(mean) > 0.05 * std:
        yield (
            f"x was stored with too few digits: its mean is {mean:g}, its standard deviation {std:g}, and its type "
            f"rounds to about {eps * abs(mean):.2g}. Subtract the mean in float64 before storing"
        )
    for share in (50, 90):
        low, high = np.percentile(sample, [50 - share / 2, 50 + share / 2])
        if high > low:
            if high - low < _NARROW * std:
                yield (
                    f"{share}% of the values of x lie between {low:.7g} and {high:.7g}, but outliers make their "
                    f"standard deviation {std:.4g}: in float32, or to a network, the rest is one value. Remove or clip "
                    "the outliers, or transform x, for example by numpy.arcsinh"
                )
                return
            break
    if sample.ndim == 2 and sample.shape[1] > 1:
        spreads = sample.std(0)
        if narrow := np.flatnonzero((spreads > 0) & (spreads < _NARROW * std)).tolist():
            shown = ", ".join(map(str, narrow[:8])) + ", ..." * (len(narrow) > 8)
            yield (
                f"one scale is used for all columns of x, {std:g}, and columns {shown} vary by less than a thousandth "
                "of it: a network will hardly see that. Bring the columns to similar scales"
            )
