"""Data sets from arrays of the user: `x`, and optionally `y`, `x_test` and `y_test`, in an .npz file or a folder.

In a folder each array is a NumPy file (`x.npy`, memory-mapped) or a Zarr array (`x/` or `x.zarr/`, version 2 or 3,
opened with TensorStore). The path of a single `.npy` file or Zarr array is x alone, whatever its name. A set that does
not fit on the device is streamed (`data.stream`) row by row, so Zarr chunks of one or few rows are read fastest.

`x` holds uint8 images (N, H, W, C), floating-point numbers of any type and byte order, which are standardised, or
vectors or sequences of integers of any type, which are dequantised (`data.integers`). If there is no `x_test`, a fixed
random tenth of the rows of each class is held out, and at most 10,000 rows of a streamed set.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flowjax import archives
from flowjax.batch import Batch
from flowjax.data.affine import Affine, DataError, image_scale
from flowjax.data.beside import Beside, keys_of, read_beside, rows_of_field, scale_conditions
from flowjax.data.bounds import Bounds
from flowjax.data.checks import check_rows, check_test, is_pixels, numbers, pixels
from flowjax.data.columns import Column
from flowjax.data.dataset import ArrayRows, Dataset, held_out, resident, sample_rows
from flowjax.data.integers import Integers, observed_ranges
from flowjax.data.labels import number_labels
from flowjax.data.requests import DataRequest
from flowjax.data.scales import pixel_channels, standardisation
from flowjax.data.spec import AT_ONCE, DataSpec, shares_of, shortened
from flowjax.data.splits import held_out_tenth, stratified_rows
from flowjax.data.stored import KEYS, open_files, open_zarrs, unused

__all__ = ["open_arrays", "open_npy", "open_npz", "open_zarr", "read_npz"]

_UNBOUNDED = Bounds()

_SAMPLED = 10_000
"""Number of rows of a streamed set from which mean and scale are estimated, and the most that are held out of it."""


def read_npz(path: str | Path, *keys: str) -> dict[str, np.ndarray]:
    """Reads the arrays of an untrusted .npz file (`archives.read_npz`).

    Args:
        path: path of the file.
        keys: names of arrays of which one must be there; "x" by default.

    Returns:
        The arrays by name.

    Raises:
        DataError: if the file cannot be read or holds none of these arrays.
    """
    keys = keys or ("x",)
    try:
        arrays = archives.read_npz(path)
    except archives.ArchiveError as error:
        raise DataError(str(error)) from None
    if not any(key in arrays for key in keys):
        wanted, found = " or ".join(map(repr, keys)), archives.printable(", ".join(arrays), 200) or "none"
        raise DataError(f"{path} holds no array named {wanted}: it has {found}")
    return arrays


def open_npz(request: DataRequest) -> Dataset:
    """Opens an .npz file as a data set.

    Raises:
        DataError: if the file cannot be read, or an array has an invalid shape, dtype or value.
    """
    path, keys = request.path, [*KEYS, *keys_of(request)]
    if not path:
        raise DataError("data.name is npz, so data.path must be the path of the file: --config.data.path=mine.npz")
    arrays = read_npz(path)
    return open_arrays("npz", request, arrays, unused([key for key in arrays if key not in keys], keys))


def open_npy(request: DataRequest) -> Dataset:
    """Opens a folder of files `x.npy`, `y.npy`, ..., or one such file, as a data set; otherwise like `open_npz`."""
    return open_arrays("npy", request, *open_files(request.path, [*KEYS, *keys_of(request)]))


def open_zarr(request: DataRequest) -> Dataset:
    """Opens a folder of Zarr arrays `x/` or `x.zarr/`, ..., or one such array, as a data set; otherwise like
    `open_npz`."""
    return open_arrays("zarr", request, *open_zarrs(request.path, [*KEYS, *keys_of(request)]))


def open_arrays(
    name: str,
    request: DataRequest,
    arrays: dict[str, Any],
    notes: tuple[str, ...],
    columns: tuple[Column, ...] = (),
    bounds: Bounds = _UNBOUNDED,
) -> Dataset:
    """Makes a data set of arrays.

    Args:
        name: `data.name`.
        request: names the conditions and pairs among the arrays, and how they are standardised.
        arrays: the arrays by name: x, and optionally y, mask, and those of test rows.
        notes: remarks for the user.
        columns: the columns of a table (`DataSpec.columns`), whose numbers are float64.
        bounds: the support of each entry of the last axis of x.

    Raises:
        DataError: if an array has an invalid shape, dtype or value, or x has rows outside the bounds.
    """
    path, x, x_test = request.path, arrays["x"], arrays.get("x_test")
    notes += check_rows(path, x)
    labels, test_labels, names, num_classes = _labels(path, arrays)
    fields, beside, beside_test = read_beside(path, arrays, request)
    size = int(np.prod(x.shape[1:])) * (1 if is_pixels(x) else 4)
    size += sum(math.prod(a.shape[1:]) * min(a.dtype.itemsize, 4) for a in beside.arrays())
    fits = resident(len(x) * size)
    without, test_rows = _split(x, x_test, labels, fits)
    rows = ArrayRows(_batch(x, labels, beside), without)
    held = rows.arrays if beside_test is None else _batch(x_test, test_labels, beside_test)
    tested = ArrayRows(held).take(test_rows)
    seen = len(rows) if fits else _SAMPLED
    column = lambda array: lambda index: ArrayRows(Batch(array), without).take(index).x1
    how = request.normalise or "feature" * bool(columns)
    if bounds:
        _check_bounds(path, bounds, x, x_test)
    unbounded = lambda array: lambda index: bounds.to_unbounded(np.asarray(column(array)(index), np.float64))
    read = unbounded if bounds else column
    levels, normalise, integers, remarks = _scale(path, x, beside.mask, read, len(rows), seen, how, columns)
    maps, ranges, constant = scale_conditions(path, fields, len(rows), lambda key, i: column(beside.cond[key])(i), seen)
    read_test = pixels if levels else partial(numbers, integers)
    test_cond = dict(tested.cond or {})
    known = labels if labels is None or without is None else np.delete(labels, without)
    shares, gaps = _shares(known, num_classes, names)
    shape, has_mask = tuple(x.shape[1:]), beside.mask is not None
    spec = DataSpec(
        *(name, shape, normalise, num_classes, levels, names, shares, fields, maps, has_mask, integers.ranges, columns),
        bounds=bounds.ranges,
        condition_ranges=ranges,
    )
    encoded = replace(rows, encode=spec.encode_rows)
    test = _present(read_test(path, _present(tested.x1, tested.mask)), tested.mask)
    notes += remarks + constant + (() if levels else check_test(spec, test))
    stored = spec.float_dtype

    def load() -> Batch:
        some, index = max(1, AT_ONCE // spec.d), np.arange(len(encoded))
        parts = [encoded.take(index[i : i + some]) for i in range(0, len(index), some)]
        return jax.tree.map(lambda *a: np.concatenate(a), *parts)

    return Dataset(
        spec=spec,
        test=test.astype(stored),
        test_cond=test_cond | {field.name: rows_of_field(test_cond[field.name], field) for field in fields},
        test_x0=None if tested.x0 is None else read_test(path, _present(tested.x0, tested.mask)).astype(stored),
        test_mask=tested.mask,
        arrays=load if fits else tuple,
        sample=sample_rows if fits else None,
        rows=None if fits else encoded,
        test_rows=test_rows,
        notes=notes + gaps,
    )


def _check_bounds(path: str, bounds: Bounds, *arrays: Any) -> None:
    for array in arrays:
        if array is not None and (outside := int(np.sum(~bounds.contain(array)))):
            raise DataError(f"{path}: {outside} of {len(array)} rows of x are outside the bounds {bounds.ranges}")


def _batch(x: Any, labels: np.ndarray | None, beside: Beside) -> Batch:
    return Batch(x, ({} if labels is None else {"label": labels}) | dict(beside.cond), beside.x0, beside.mask)


def _present(x: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Sets the elements that do not exist to 0."""
    return x if mask is None else np.where(mask[..., None], x, np.zeros((), x.dtype))


def _scale(
    path: str,
    x: Any,
    mask: Any,
    column: Callable[[Any], Callable[[np.ndarray], np.ndarray]],
    n: int,
    most: int,
    how: str,
    columns: tuple[Column, ...],
) -> tuple[int, Affine, Integers, tuple[str, ...]]:
    """Returns the number of levels of x, its affine map, its integers, and notes for the user."""
    shape, read = x.shape[1:], column(x)
    if not is_pixels(x):
        present = lambda index: read(index)[column(mask)(index)]
        integers, dtype, note = _integers_of(x, columns) if columns else Integers(), x.dtype, ()
        if x.dtype.kind in "iub":
            integers = observed_ranges(path, len(x), lambda index: x[index], shape, AT_ONCE)
            dtype = np.dtype(np.float64)
            note = (
                f"x holds integers ({x.dtype}), which are dequantised in training: by default k becomes uniform on "
                "[k, k + 1) (data.dequantisation), and samples are integers; store real numbers as floats",
            )
        named = [archives.printable(one.name) for one in columns if not one.condition]
        affine, notes = standardisation(path, n, read if mask is None else present, shape, dtype, most, how, named)
        return 0, integers.dequantised(affine) if integers else affine, integers, note + notes
    if how == "feature":
        raise DataError(f"{path}: data.normalise 'feature' is for vectors, but x holds images: use 'channel'")
    return 256, pixel_channels(n, read, shape, most) if how == "channel" else image_scale(256), Integers(), ()


def _integers_of(x: np.ndarray, columns: tuple[Column, ...]) -> Integers:
    """Returns the ranges of the columns of a table that are integers or codes of categories."""
    kinds = [one.kind for one in columns if not one.condition]
    if all(kind == "real" for kind in kinds):
        return Integers()
    ends = zip(kinds, x.min(0), x.max(0), strict=True)
    return Integers(tuple(None if kind == "real" else (int(low), int(high)) for kind, low, high in ends))


def _split(x: Any, x_test: Any, labels: np.ndarray | None, fits: bool) -> tuple[np.ndarray | None, np.ndarray]:
    """Returns the rows of x that are held out (None for none), and the test rows of x_test or, without it, of x."""
    if x_test is not None:
        return None, stratified_rows(len(x_test), held_out(len(x_test), x.shape[1:]))
    most = held_out(len(x), x.shape[1:])
    held = held_out_tenth(len(x), labels, most if fits else min(most, _SAMPLED))
    return held, held


def _labels(path: str, arrays: dict[str, Any]) -> tuple[np.ndarray | None, np.ndarray | None, tuple[str, ...], int]:
    """Returns the classes of y and y_test, and the names and the number of the classes, after checking x_test."""
    y, y_test = arrays.get("y"), arrays.get("y_test")
    x_test = arrays.get("x_test")
    if x_test is None and y_test is not None:
        raise DataError(f"{path}: there is y_test but no x_test")
    if x_test is not None and (x_test.shape[1:] != arrays["x"].shape[1:] or len(x_test) == 0):
        shape = ", ".join(map(str, arrays["x"].shape[1:]))
        raise DataError(f"{path}: x_test must be (N, {shape}), N >= 1, not {x_test.shape}")
    if x_test is not None and (y is None) != (y_test is None):
        given, missing = ("y_test", "y") if y is None else ("y", "y_test")
        raise DataError(f"{path}: there is {given} but no {missing}: give both or neither")
    if y is None:
        return None, None, (), 0
    return number_labels(path, y, len(arrays["x"]), y_test, 0 if x_test is None else len(x_test))


def _shares(
    known: np.ndarray | None, classes: int, names: tuple[str, ...]
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Returns the shares of the classes of the training rows, and a note about classes that were all held out."""
    if known is None:
        return (), ()
    counts = np.bincount(known, minlength=classes)
    missing = [archives.printable(names[k]) if names else str(k) for k in np.flatnonzero(counts == 0).tolist()]
    note = f"these classes have no training rows, because their only row was held out: {shortened(missing, 8)}"
    return shares_of(counts), (note,) if missing else ()
