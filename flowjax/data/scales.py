"""The mean and the standard deviation that standardise numbers, and what is remarkable about them."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from flowjax.data.affine import Affine, DataError
from flowjax.data.record import LARGEST_LIST
from flowjax.data.spec import AT_ONCE, shortened
from flowjax.data.splits import stratified_rows

__all__ = ["feature_scales", "pixel_channels", "standardisation"]

_SAMPLE = 2**20
"""Numbers of the sample that is looked at for outliers and for features of different scales."""

_NARROW = 1e-3
"""Of the standard deviation: values within so little are hardly told apart by a network."""


_RATIO = 3.0
"""Between the standard deviations of columns: from here on each column has its own scale by default."""


def standardisation(
    where: str,
    n: int,
    read: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, ...],
    dtype: Any,
    most: int,
    how: str = "global",
) -> tuple[Affine, tuple[str, ...]]:
    """The affine map whose shift is the mean and whose scale is the standard deviation, in float64.

    Numbers that are constant have scale 1.

    Args:
        where: the file, for messages.
        n: number of training rows.
        read: from increasing numbers of training rows to these rows, (k, *shape), or of sets with a mask to all their
            elements that exist, (m, C).
        shape: of a row.
        dtype: of the stored numbers.
        most: how many rows to take the moments of; a sample that represents all, if there are more.
        how: "global", over all numbers; "feature", of each coordinate of vectors; "channel", of each entry of the last
            axis of images and sequences; "" for "feature" where the columns of vectors have standard deviations that
            differ by more than a factor of three, and otherwise "global".

    Returns:
        The map, and notes for the user about constant data, outliers, features of very different scales, and numbers
        that were stored with too few digits.

    Raises:
        DataError: one line, if values are not finite, if they vary and their deviation is not a positive number, or if
            `how` is not for examples of this shape.
    """
    if (how == "feature" and len(shape) != 1) or (how == "channel" and len(shape) == 1):
        what, other = ("vectors", "channel") if how == "feature" else ("images and sequences", "feature")
        raise DataError(f"{where}: data.normalise {how!r} is for {what}, and rows of x are {shape}: take {other!r}")
    if how in ("feature", "channel") and shape[-1] > LARGEST_LIST:
        raise DataError(f"{where}: data.normalise {how!r} is for at most {LARGEST_LIST:,} features, not {shape[-1]:,}")
    notes: tuple[str, ...] = ()
    if how == "" and len(shape) == 1 and 1 < shape[0] <= LARGEST_LIST:
        _, std, low, high, complete = _feature_moments(_chunks(n, read, shape, most))
        if complete and _differ(std, low, high):
            how = "feature"
            notes = (
                "data.normalise is 'feature', one scale for each column of x, because the columns' standard deviations "
                "differ by more than a factor of three; 'global' takes one scale for all",
            )
    sample = lambda: np.asarray(read(stratified_rows(n, max(1, min(n, _SAMPLE // math.prod(shape))))), np.float64)
    eps = float(jnp.finfo(dtype).eps)
    if how in ("feature", "channel"):
        affine, constant = feature_scales(where, "x", n, read, shape, most, missing=False)
        varying = [c for c in range(shape[-1]) if c not in constant]
        if not varying:
            return affine, (f"every {_FEATURES[how]} of x is constant: there is nothing to learn",)
        if constant:
            shown = shortened(list(map(str, sorted(constant))), 8)
            notes += (f"{_FEATURES[how]}s of x that do not vary keep the scale 1: {shown}",)
        seen = sample()
        remarks = (_remark_on_feature(f"{_FEATURES[how]} {c} of x", seen[..., c], affine, c, eps) for c in varying)
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


def feature_scales(
    where: str,
    name: str,
    n: int,
    read: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, ...],
    most: int,
    missing: bool = True,
) -> tuple[Affine, set[int]]:
    """The map that standardises each entry of the last axis, and which entries are constant: these have scale 1.

    Args:
        name: of the array, for messages.
        where, n, read, shape, most: as for `standardisation`.
        missing: whether NaN is allowed, for what is not given; it is left out.

    Raises:
        DataError: one line, if values are not finite, or if they vary and their deviation is not a positive number.
    """
    mean, std, low, high, complete = _feature_moments(_chunks(n, read, shape, most))
    given = low <= high  # an entry that is nowhere given has no extremes
    if not (missing or complete) or not np.isfinite(low[given]).all() or not np.isfinite(high[given]).all():
        raise DataError(f"{where}: {name} holds values that are not finite")
    constant = ~given | (low == high)
    for c in np.flatnonzero(~constant & ~((std > 0) & (std < math.inf))):
        raise _out_of_range(where, f"entry {c} of the last axis of {name}", low[c], high[c])
    shift = np.where(given, np.where(constant, low, mean), 0.0)
    scale = np.where(constant, 1.0, std)
    return Affine(tuple(scale.tolist()), tuple(shift.tolist())), set(np.flatnonzero(constant).tolist())


def pixel_channels(n: int, read: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], most: int) -> Affine:
    """The map that standardises each channel of dequantised pixels: k is uniform on [k, k + 1)."""
    mean, std, low, high, _ = _feature_moments(_chunks(n, read, shape, most))
    scale = np.where(low == high, 1.0, np.sqrt(std**2 + 1 / 12))
    return Affine(tuple(scale.tolist()), tuple((mean + 0.5).tolist()))


_FEATURES = {"feature": "column", "channel": "channel"}


def _out_of_range(where: str, name: str, low: float, high: float) -> DataError:
    return DataError(
        f"{where}: {name} lies between {low:g} and {high:g}, where squares are out of the range of float64: multiply x "
        "by a power of ten"
    )


def _chunks(
    n: int, read: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], most: int
) -> Iterator[np.ndarray]:
    """Rows in float64, of at most `most` rows that represent all."""
    rows, some = stratified_rows(n, min(n, most)), max(1, AT_ONCE // math.prod(shape))
    chunks = (np.asarray(read(rows[i : i + some]), np.float64) for i in range(0, len(rows), some))
    return (chunk for chunk in chunks if chunk.size)


def _feature_moments(chunks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, bool]:
    """`_moments` of each entry of the last axis, in which NaN is left out, and whether there was none."""
    complete = True
    count, mean, squares, low, high = np.zeros(1), np.zeros(1), np.zeros(1), np.full(1, math.inf), np.full(1, -math.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        for chunk in chunks:
            x = chunk.reshape(-1, chunk.shape[-1])
            given = ~np.isnan(x)
            complete = complete and bool(given.all())
            n = given.sum(0)
            own = np.where(given, x, 0.0).sum(0) / np.maximum(n, 1)
            total, gap = count + n, own - mean
            share = n / np.maximum(total, 1)
            squares = squares + (np.where(given, x - own, 0.0) ** 2).sum(0) + gap**2 * (count * share)
            mean, count = mean + gap * share, total
            low = np.minimum(low, np.where(given, x, math.inf).min(0))
            high = np.maximum(high, np.where(given, x, -math.inf).max(0))
        return mean, np.sqrt(squares / np.maximum(count, 1)), low, high, complete


def _differ(std: np.ndarray, low: np.ndarray, high: np.ndarray) -> bool:
    """Whether some columns vary more than three times as much as others; constant ones count where others vary."""
    if not (np.isfinite(low).all() and np.isfinite(high).all() and np.isfinite(std).all()):
        return False  # which is refused when the scale is taken
    least, most = np.where(low == high, 0.0, std).min(), np.where(low == high, 0.0, std).max()
    return bool(most > _RATIO * least)


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
    return mean, float(np.sqrt(squares / max(count, 1))), low, high


def _remark_on_feature(name: str, sample: np.ndarray, affine: Affine, c: int, eps: float) -> str | None:
    """What is unusual about one entry of the last axis, if anything is."""
    scale, shift = np.asarray(affine.scale)[c], np.asarray(affine.shift)[c]
    given = sample[~np.isnan(sample)]
    return next(iter(_remarks(name, given, float(shift), float(scale), eps)), None) if given.size else None


def _remarks(name: str, sample: np.ndarray, mean: float, std: float, eps: float) -> Iterable[str]:
    """What is unusual about a sample (k, *shape) of data of this mean and deviation, stored with precision eps."""
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
                "of it: a network will hardly see that. Take data.normalise=feature"
            )
