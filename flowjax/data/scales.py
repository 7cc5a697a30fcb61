"""Estimates the mean and the standard deviation that standardise data, and warns about unusual data."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from flowjax.data.affine import Affine, DataError
from flowjax.data.record import LARGEST_LIST
from flowjax.data.spec import AT_ONCE, shortened
from flowjax.data.splits import stratified_rows

__all__ = ["FeatureScales", "feature_scales", "pixel_channels", "standardisation"]

_SAMPLE = 2**20
"""Size, in numbers, of the sample that is searched for outliers and features of different scales."""

_NARROW = 1e-3
"""Values within this fraction of the standard deviation are hardly distinguished by a network."""


_RATIO = 3.0
"""Columns are scaled separately by default if their standard deviations differ by more than this factor."""


def standardisation(
    where: str,
    n: int,
    read: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, ...],
    dtype: Any,
    most: int,
    how: str = "global",
    names: Sequence[str] = (),
) -> tuple[Affine, tuple[str, ...]]:
    """Returns the affine map whose shift is the mean and whose scale is the standard deviation, in float64.

    Constant numbers get scale 1.

    Args:
        where: the file, for messages.
        n: number of training rows.
        read: function from increasing indices of training rows to these rows, (k, *shape), or for sets with a mask to
            all their elements that exist, (m, C).
        shape: the shape of a row.
        dtype: dtype of the stored numbers.
        most: the largest number of rows from which moments are computed; if there are more, a representative sample
            is used.
        how: "global" for one scale; "feature" for one per coordinate of vectors; "channel" for one per entry of the
            last axis of images and sequences; "" for "feature" if the standard deviations of the columns of vectors
            differ by more than a factor of three, and otherwise "global".
        names: the names of the columns, for messages.

    Returns:
        The map, and notes for the user about constant data, outliers, features of very different scales, and numbers
        that were stored with too few digits.

    Raises:
        DataError: if values are not finite, if their standard deviation overflows or underflows, or if `how` does not
            fit the shape.
    """
    if (how == "feature" and len(shape) != 1) or (how == "channel" and len(shape) == 1):
        what, other = ("vectors", "channel") if how == "feature" else ("images and sequences", "feature")
        raise DataError(f"{where}: data.normalise {how!r} is for {what}, but rows of x are {shape}: use {other!r}")
    if how in ("feature", "channel") and shape[-1] > LARGEST_LIST:
        raise DataError(f"{where}: data.normalise {how!r} is for at most {LARGEST_LIST:,} features, not {shape[-1]:,}")
    notes: tuple[str, ...] = ()
    if how == "" and len(shape) == 1 and 1 < shape[0] <= LARGEST_LIST:
        _, std, low, high, complete = _feature_moments(_chunks(n, read, shape, most))
        if complete and _differ(std, low, high):
            how = "feature"
            notes = (
                "data.normalise is 'feature', one scale for each column of x, because the columns' standard deviations "
                "differ by more than a factor of three; 'global' uses one scale for all",
            )
    sample = lambda: np.asarray(read(stratified_rows(n, max(1, min(n, _SAMPLE // math.prod(shape))))), np.float64)
    eps = float(jnp.finfo(dtype).eps)
    if how in ("feature", "channel"):
        affine, constant, _, _ = feature_scales(where, "x", n, read, shape, most, missing=False)
        varying = [c for c in range(shape[-1]) if c not in constant]
        if not varying:
            return affine, (f"every {_FEATURES[how]} of x is constant: there is nothing to learn",)
        if constant:
            shown = shortened([names[c] if names else str(c) for c in sorted(constant)], 8)
            notes += (f"{_FEATURES[how]}s of x that do not vary keep the scale 1: {shown}",)
        seen = sample()
        named = lambda c: f"the column {names[c]}" if names else f"{_FEATURES[how]} {c} of x"
        remarks = (_remark_on_feature(named(c), seen[..., c], affine, c, eps) for c in varying)
        return affine, notes + tuple(itertools.islice((remark for remark in remarks if remark), 1))
    mean, std, low, high = _moments(_chunks(n, read, shape, most))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise DataError(f"{where}: x holds values that are not finite")
    if low == high:
        return Affine(1.0, low), (f"all values of x are {low:g}: there is nothing to learn",)
    if not 0 < std < math.inf:
        raise _out_of_range(where, "x", low, high)
    seen = sample()
    return Affine(std, mean), notes + tuple(_remarks("x", seen if len(shape) == 1 else seen.ravel(), mean, std, eps))


class FeatureScales(NamedTuple):
    """What `feature_scales` finds.

    Attributes:
        affine: the map that standardises each entry of the last axis.
        constant: the entries that are constant or never given, which have scale 1.
        low, high: the smallest and the largest value of each entry; 0 for entries that are never given.
    """

    affine: Affine
    constant: set[int]
    low: tuple[float, ...]
    high: tuple[float, ...]


def feature_scales(
    where: str,
    name: str,
    n: int,
    read: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, ...],
    most: int,
    missing: bool = True,
) -> FeatureScales:
    """Returns the map that standardises each entry of the last axis, the constant entries, and the range of each.

    Args:
        where: the file, for messages.
        name: name of the array, for messages.
        n: number of training rows.
        read: function from increasing indices of training rows to these rows.
        shape: the shape of a row.
        most: the largest number of rows from which moments are computed.
        missing: whether NaN is allowed and marks missing values, which are left out.

    Raises:
        DataError: if values are not finite, or their standard deviation overflows or underflows.
    """
    mean, std, low, high, complete = _feature_moments(_chunks(n, read, shape, most))
    given = low <= high  # false for entries that are NaN in all rows
    if not (missing or complete) or not np.isfinite(low[given]).all() or not np.isfinite(high[given]).all():
        raise DataError(f"{where}: {name} holds values that are not finite")
    constant = ~given | (low == high)
    for c in np.flatnonzero(~constant & ~((std > 0) & (std < math.inf))):
        raise _out_of_range(where, f"entry {c} of the last axis of {name}", low[c], high[c])
    shift = np.where(given, np.where(constant, low, mean), 0.0)
    scale = np.where(constant, 1.0, std)
    ends = (tuple(np.where(given, end, 0.0).tolist()) for end in (low, high))
    return FeatureScales(
        Affine(tuple(scale.tolist()), tuple(shift.tolist())), set(np.flatnonzero(constant).tolist()), *ends
    )


def pixel_channels(n: int, read: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], most: int) -> Affine:
    """Returns the map that standardises each channel of dequantised pixels (k becomes uniform on [k, k + 1)).

    Args:
        n: number of training rows.
        read: function from increasing indices of training rows to these rows.
        shape: the shape of a row.
        most: the largest number of rows from which moments are computed.
    """
    mean, std, low, high, _ = _feature_moments(_chunks(n, read, shape, most))
    scale = np.where(low == high, 1.0, np.sqrt(std**2 + 1 / 12))
    return Affine(tuple(scale.tolist()), tuple((mean + 0.5).tolist()))


_FEATURES = {"feature": "column", "channel": "channel"}


def _out_of_range(where: str, name: str, low: float, high: float) -> DataError:
    return DataError(
        f"{where}: {name} lies between {low:g} and {high:g}, where float64 cannot hold its variance: multiply x "
        "by a power of ten"
    )


def _chunks(
    n: int, read: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], most: int
) -> Iterator[np.ndarray]:
    """Yields a representative sample of at most `most` rows in float64, in chunks."""
    rows, some = stratified_rows(n, min(n, most)), max(1, AT_ONCE // math.prod(shape))
    chunks = (np.asarray(read(rows[i : i + some]), np.float64) for i in range(0, len(rows), some))
    return (chunk for chunk in chunks if chunk.size)


def _feature_moments(chunks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, bool]:
    """Returns `_moments` of each entry of the last axis without NaN, and whether there was no NaN."""
    complete = True
    count, mean, squares, low, high = np.zeros(1), np.zeros(1), np.zeros(1), np.full(1, math.inf), np.full(1, -math.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        for chunk in chunks:
            x = chunk.reshape(-1, chunk.shape[-1])
            given = ~np.isnan(x)
            complete = complete and bool(given.all())
            n = given.sum(0)
            chunk_mean = np.where(given, x, 0.0).sum(0) / np.maximum(n, 1)
            total, gap = count + n, chunk_mean - mean
            share = n / np.maximum(total, 1)
            squares = squares + (np.where(given, x - chunk_mean, 0.0) ** 2).sum(0) + gap**2 * (count * share)
            mean, count = mean + gap * share, total
            low = np.minimum(low, np.where(given, x, math.inf).min(0))
            high = np.maximum(high, np.where(given, x, -math.inf).max(0))
        return mean, np.sqrt(squares / np.maximum(count, 1)), low, high, complete


def _differ(std: np.ndarray, low: np.ndarray, high: np.ndarray) -> bool:
    """Whether standard deviations of columns differ by more than the factor `_RATIO`; that of a constant is 0."""
    if not (np.isfinite(low).all() and np.isfinite(high).all() and np.isfinite(std).all()):
        return False  # an error when the scale is computed
    least, most = np.where(low == high, 0.0, std).min(), np.where(low == high, 0.0, std).max()
    return bool(most > _RATIO * least)


def _moments(chunks: Iterable[np.ndarray]) -> tuple[float, float, float, float]:
    """Returns mean, standard deviation, minimum and maximum; chunks are merged as in Chan et al. 1983, eq. 2.1."""
    count, mean, squares, low, high = 0, 0.0, 0.0, math.inf, -math.inf
    with np.errstate(over="ignore", invalid="ignore"):
        for x in chunks:
            chunk_mean = float(x.mean())
            total, gap = count + x.size, chunk_mean - mean
            squares += float(((x - chunk_mean) ** 2).sum()) + np.float64(gap) ** 2 * (count * x.size / total)
            mean, count = mean + gap * x.size / total, total
            low, high = float(np.minimum(low, x.min())), float(np.maximum(high, x.max()))  # NumPy propagates NaN here
    return mean, float(np.sqrt(squares / max(count, 1))), low, high


def _remark_on_feature(name: str, sample: np.ndarray, affine: Affine, c: int, eps: float) -> str | None:
    """Returns the first remark about one entry of the last axis, or None."""
    scale, shift = np.asarray(affine.scale)[c], np.asarray(affine.shift)[c]
    given = sample[~np.isnan(sample)]
    return next(iter(_remarks(name, given, float(shift), float(scale), eps)), None) if given.size else None


def _remarks(name: str, sample: np.ndarray, mean: float, std: float, eps: float) -> Iterable[str]:
    """Yields remarks about a sample (k, *shape) of data with this mean and std, stored with precision eps."""
    if eps * abs(mean) > 0.05 * std:
        yield (
            f"{name} was stored with too few digits: its mean is {mean:g}, its standard deviation {std:g}, and its "
            f"type rounds to about {eps * abs(mean):.2g}. Subtract the mean in float64 before storing"
        )
    for share in (50, 90):
        low, high = np.percentile(sample, [50 - share / 2, 50 + share / 2])
        if high > low:
            if high - low < _NARROW * std:
                yield (
                    f"{share}% of the values of {name} lie between {low:.7g} and {high:.7g}, but outliers make their "
                    f"standard deviation {std:.4g}: a network can hardly distinguish the other values. Remove or clip "
                    "the outliers, or transform x, for example with numpy.arcsinh"
                )
                return
            break
    if sample.ndim == 2 and sample.shape[1] > 1:
        stds = sample.std(0)
        if narrow := np.flatnonzero((stds > 0) & (stds < _NARROW * std)).tolist():
            shown = ", ".join(map(str, narrow[:8])) + ", ..." * (len(narrow) > 8)
            yield (
                f"one scale is used for all columns of x, {std:g}, and columns {shown} vary by less than a thousandth "
                "of it, which a network hardly sees. Use data.normalise=feature"
            )
