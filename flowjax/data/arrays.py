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
import jax.numpy as jnp
import numpy as np

from flowjax import archives
from flowjax.batch import Batch
from flowjax.data.affine import Affine, DataError, image_scale
from flowjax.data.beside import Beside, keys_of, read_beside, rows_of_field, scale_conditions
from flowjax.data.dataset import ArrayRows, Dataset, held_out, resident, sample_rows
from flowjax.data.integers import Integers, observed_ranges
from flowjax.data.labels import number_labels
from flowjax.data.requests import DataRequest
from flowjax.data.scales import pixel_channels, standardisation
from flowjax.data.spec import AT_ONCE, DataSpec, shares_of, shortened
from flowjax.data.splits import held_out_tenth, stratified_rows
from flowjax.data.stored import KEYS, open_files, open_zarrs, unused
from flowjax.ranges import MAX_COORDINATES

__all__ = ["open_npy", "open_npz", "open_zarr", "read_npz"]

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
    return _open("npz", request, arrays, unused([key for key in arrays if key not in keys], keys))


def open_npy(request: DataRequest) -> Dataset:
    """Opens a folder of files `x.npy`, `y.npy`, ..., or one such file, as a data set; otherwise like `open_npz`."""
    return _open("npy", request, *open_files(request.path, [*KEYS, *keys_of(request)]))


def open_zarr(request: DataRequest) -> Dataset:
    """Opens a folder of Zarr arrays `x/` or `x.zarr/`, ..., or one such array, as a data set; otherwise like
    `open_npz`."""
    return _open("zarr", request, *open_zarrs(request.path, [*KEYS, *keys_of(request)]))


def _open(name: str, request: DataRequest, arrays: dict[str, Any], notes: tuple[str, ...]) -> Dataset:
    path, x, x_test = request.path, arrays["x"], arrays.get("x_test")
    notes += _check_rows(path, x)
    labels, test_labels, names, num_classes = _labels(path, arrays)
    fields, beside, beside_test = read_beside(path, arrays, request)
    size = int(np.prod(x.shape[1:])) * (1 if _is_pixels(x) else 4)
    size += sum(math.prod(a.shape[1:]) * min(a.dtype.itemsize, 4) for a in beside.arrays())
    fits = resident(len(x) * size)
    without, test_rows = _split(x, x_test, labels, fits)
    rows = ArrayRows(_batch(x, labels, beside), without)
    held = rows.arrays if beside_test is None else _batch(x_test, test_labels, beside_test)
    tested = ArrayRows(held).take(test_rows)
    seen = len(rows) if fits else _SAMPLED
    column = lambda array: lambda index: ArrayRows(Batch(array), without).take(index).x1
    levels, normalise, integers, remarks = _scale(path, x, beside.mask, column, len(rows), seen, request.normalise)
    maps, constant = scale_conditions(path, fields, len(rows), lambda key, i: column(beside.cond[key])(i), seen)
    read_test = _pixels if levels else partial(_numbers, integers)
    test_cond = dict(tested.cond or {})
    known = labels if labels is None or without is None else np.delete(labels, without)
    shares, gaps = _shares(known, num_classes, names)
    shape, has_mask = tuple(x.shape[1:]), beside.mask is not None
    spec = DataSpec(name, shape, normalise, num_classes, levels, names, shares, fields, maps, has_mask, integers.ranges)
    encoded = replace(rows, encode=spec.encode_rows)
    test = _present(read_test(path, _present(tested.x1, tested.mask)), tested.mask)
    notes += remarks + constant + (() if levels else _check_test(spec, test))
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
) -> tuple[int, Affine, Integers, tuple[str, ...]]:
    """Returns the number of levels of x, its affine map, its integers, and notes for the user."""
    shape, read = x.shape[1:], column(x)
    if not _is_pixels(x):
        present = lambda index: read(index)[column(mask)(index)]
        whole = x.dtype.kind in "iub"
        integers = observed_ranges(path, len(x), lambda index: x[index], shape, AT_ONCE) if whole else Integers()
        dtype = np.dtype(np.float64) if whole else x.dtype
        affine, notes = standardisation(path, n, read if mask is None else present, shape, dtype, most, how)
        if not whole:
            return 0, affine, integers, notes
        note = (
            f"x holds integers ({x.dtype}), which are dequantised: k becomes uniform on [k, k + 1) in training, and "
            "samples are integers; store real numbers as floats"
        )
        return 0, integers.dequantised(affine), integers, (note, *notes)
    if how == "feature":
        raise DataError(f"{path}: data.normalise 'feature' is for vectors, but x holds images: use 'channel'")
    return 256, pixel_channels(n, read, shape, most) if how == "channel" else image_scale(256), Integers(), ()


def _split(x: Any, x_test: Any, labels: np.ndarray | None, fits: bool) -> tuple[np.ndarray | None, np.ndarray]:
    """Returns the rows of x that are held out (None for none), and the test rows of x_test or, without it, of x."""
    if x_test is not None:
        return None, stratified_rows(len(x_test), held_out(len(x_test), x.shape[1:]))
    most = held_out(len(x), x.shape[1:])
    held = held_out_tenth(len(x), labels, most if fits else min(most, _SAMPLED))
    return held, held


def _check_rows(path: str, x: Any) -> tuple[str, ...]:
    """Checks the shape and dtype of x, and returns a note if its channels may come first."""
    if x.ndim < 2 or len(x) < 2:
        raise DataError(f"{path}: x must be (N, *event) with N >= 2, not {x.shape}")
    if 0 in x.shape:
        raise DataError(f"{path}: x has an empty axis: its shape is {x.shape}")
    if math.prod(x.shape[1:]) > MAX_COORDINATES:  # checked before a row is read, because a file can declare any shape
        raise DataError(f"{path}: an example of shape {x.shape[1:]} has more than {MAX_COORDINATES:,} numbers")
    channels_first = x.ndim == 4 and x.shape[1] in (1, 3, 4) and x.shape[3] > 4
    turn = f"x of shape {x.shape} has its channels first, but they must come last: x = x.transpose(0, 2, 3, 1)"
    if x.dtype == np.uint8 and x.ndim == 3:
        raise DataError(
            f"{path}: uint8 data must be images (N, H, W, C), not {x.shape}: for grey images use x = x[..., None], and "
            "for sequences of integers x.astype('int64')"
        )
    if _is_pixels(x):
        if channels_first:
            raise DataError(f"{path}: {turn}")
    elif x.dtype.kind in "iub":
        if x.ndim > 3:
            raise DataError(
                f"{path}: x holds {x.dtype} of shape {x.shape}, but integers must be 8-bit images, vectors (N, D) or "
                "sequences (N, L, C): convert images with x.astype('uint8') or x.astype('float32')"
            )
    elif not jnp.issubdtype(x.dtype, jnp.floating):
        complex_ = jnp.issubdtype(x.dtype, jnp.complexfloating)
        how = "numpy.stack([x.real, x.imag], -1)" if complex_ else "x.astype('float32')"
        raise DataError(f"{path}: x must hold integers or floats, not {x.dtype}: convert it, for example with {how}")
    return (f"perhaps {turn}",) if channels_first else ()


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


def _is_pixels(x: Any) -> bool:
    """Whether an array holds 8-bit images."""
    return x.dtype == np.uint8 and x.ndim == 4


def _pixels(path: str, test: np.ndarray) -> np.ndarray:
    """Converts test rows of uint8 images, which must be integers from 0 to 255 of any dtype."""
    if test.dtype == np.uint8:
        return test
    real = test.dtype.kind in "iu" or jnp.issubdtype(test.dtype, jnp.floating)
    whole = real and bool(np.all((test >= 0) & (test <= 255) & (test == np.floor(test))))
    if not whole or (test.dtype.kind not in "iu" and test.max() <= 1):
        seen = f" between {test.min():g} and {test.max():g}" if real else ""
        raise DataError(
            f"{path}: x is uint8, so x_test must hold integers from 0 to 255 too, but it is {test.dtype}{seen}: store "
            "both with the same dtype and scale"
        )
    return test.astype(np.uint8)


def _numbers(integers: Integers, path: str, test: np.ndarray) -> np.ndarray:
    """Converts test rows of real numbers or integers to float64 without loss."""
    if test.dtype.kind not in "iub" and not jnp.issubdtype(test.dtype, jnp.floating):
        raise DataError(f"{path}: x_test must hold real numbers as x does, not {test.dtype}")
    if test.dtype.kind in "iu" and np.any((test > 2**53) | (test < -(2**53))):
        raise DataError(f"{path}: x_test holds integers beyond 2^53, which float64 rounds")
    test = test.astype(np.float64)
    if not np.isfinite(test).all():
        raise DataError(f"{path}: x_test holds values that are not finite")
    if integers and not integers.are_whole(test):
        raise DataError(f"{path}: x holds integers, so x_test must hold integers too: store both with the same dtype")
    return test


def _check_test(spec: DataSpec, test: np.ndarray) -> tuple[str, ...]:
    """Returns a note if mean or scale of the test rows are unlike those of the training rows.

    Raises:
        DataError: if float32 cannot represent the test rows in model space.
    """
    y = spec.to_model(test)
    mean, std = float(y.mean(dtype=np.float64)), float(y.std(dtype=np.float64))
    if y.size < 100 or (abs(mean) < 3 and 0.1 < std < 10):
        return ()
    return (
        f"the test rows do not look like the training rows: their mean is {mean:.3g} standard deviations of x away, "
        f"and their standard deviation {std:.3g} times as large",
    )
