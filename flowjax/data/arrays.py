"""The user's own arrays: `x`, and if there are any, `y`, `x_test` and `y_test`, in one .npz file or in a folder.

In a folder each array is a NumPy file (`x.npy`, mapped into memory) or a Zarr array (`x/` or `x.zarr/`, of either
version, opened by TensorStore). A set that does not fit on the device is streamed (`data.stream`) row by row: chunks of
one or few rows are read fastest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowjax import archives
from flowjax.data.dataset import (
    Affine,
    ArrayRows,
    DataError,
    Dataset,
    DataSpec,
    held_out,
    image_scale,
    resident,
    sample_rows,
)

_SEEN = 10_000
"""Rows whose mean and deviation standardise numbers: the first."""


def read_npz(path: str | Path, key: str = "x") -> dict[str, np.ndarray]:
    """Reads the arrays of an .npz file, which may come from a stranger (`archives.read_npz`).

    Raises:
        DataError: one line, if it cannot be read or holds no array named `key`.
    """
    try:
        arrays = archives.read_npz(path)
    except archives.ArchiveError as error:
        raise DataError(str(error)) from None
    if key not in arrays:
        raise DataError(
            f"{path} holds no array named {key!r}: it has {archives.printable(', '.join(arrays), 200) or 'none'}"
        )
    return arrays


def open_npz(path: str) -> Dataset:
    """`x` (N, *event): uint8 images (N, H, W, C), or floats, standardised by one mean and one deviation.

    Where there is no `x_test`, the last tenth of `x` is held out (the order of the file is kept).
    """
    if not path:
        raise DataError("data.name is npz, so data.path must name the file: --config.data.path=mine.npz")
    return _open("npz", path, read_npz(path))


def open_npy(path: str) -> Dataset:
    """A folder of `x.npy` and its like; otherwise as `open_npz`."""
    return _open("npy", path, _read_folder("npy", path, ("{}.npy",), lambda p: np.load(p, mmap_mode="r")))


def open_zarr(path: str) -> Dataset:
    """A folder of Zarr arrays `x/` or `x.zarr/` and their like; otherwise as `open_npz`."""
    return _open("zarr", path, _read_folder("zarr", path, ("{}", "{}.zarr"), Stored.at))


@dataclass(frozen=True)
class Stored:
    """A TensorStore array that reads like NumPy's; it can be pickled."""

    store: Any

    @classmethod
    def at(cls, path: Path) -> "Stored":
        import tensorstore

        where = {"driver": "file", "path": f"{path}/"}
        return cls(tensorstore.open({"driver": "auto", "kvstore": where}, open=True, read=True).result())

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.store.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.store.dtype.numpy_dtype

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        return self.store[index].read().result()


def _read_folder(
    name: str, path: str, files: tuple[str, ...], read: Callable[[Path], Any]
) -> dict[str, np.ndarray | Stored]:
    if not path:
        raise DataError(f"data.name is {name}, so data.path must name a folder: --config.data.path=FOLDER")
    found = {}
    for key in ("x", "y", "x_test", "y_test"):
        place = next((p for p in (Path(path) / file.format(key) for file in files) if p.exists()), None)
        if place is None:
            continue
        try:
            found[key] = read(place)
        except Exception as error:  # numpy and TensorStore raise what they like on damaged files
            raise DataError(f"{place} cannot be read: {str(error).splitlines()[0][:160]}") from None
    if "x" not in found:
        raise DataError(f"{path} holds no {' or '.join(file.format('x') for file in files)}")
    return {key: a if key in ("x", "x_test") else np.asarray(a[:]) for key, a in found.items()}


def _open(name: str, path: str, arrays: dict[str, Any]) -> Dataset:
    x, y = arrays["x"], arrays.get("y")
    if x.ndim < 2 or len(x) < 2:
        raise DataError(f"{path}: x must be (N, *event) with N >= 2, not {x.shape}")
    _check_labels(path, "y", y, len(x))
    if "x_test" in arrays:
        test, test_labels, rows = arrays["x_test"], arrays.get("y_test"), len(x)
        if test.shape[1:] != x.shape[1:] or len(test) == 0:
            raise DataError(f"{path}: x_test must be (N, {', '.join(map(str, x.shape[1:]))}), N >= 1, not {test.shape}")
        if (y is None) != (test_labels is None):
            raise DataError(f"{path}: of y and y_test one is there and the other is not")
        _check_labels(path, "y_test", test_labels, len(test))
    else:
        test, test_labels = x, y
        rows = len(x) - max(1, len(x) // 10)
    begin = 0 if "x_test" in arrays else rows
    kept = held_out(len(test) - begin, x.shape[1:])
    test = np.asarray(test[begin : begin + kept])
    test_labels = None if test_labels is None else test_labels[begin : begin + kept]
    known = None if y is None else y[:rows]
    num_classes = 0 if known is None or test_labels is None else 1 + int(max(known.max(), test_labels.max()))
    levels, normalise = _kind(path, x, rows, test)
    cast = (lambda a: a) if levels else (lambda a: a.astype(np.float32))
    fits = resident(x.nbytes)
    spec = DataSpec(name, tuple(x.shape[1:]), normalise, num_classes=num_classes, levels=levels)
    return Dataset(
        spec=spec,
        test=test.astype(np.float32),
        test_labels=None if test_labels is None else test_labels.astype(np.int32),
        arrays=(lambda: (cast(np.asarray(x[:rows])), None if known is None else known.astype(np.int32)))
        if fits
        else tuple,
        sample=sample_rows if fits else None,
        rows=None if fits else ArrayRows(x, known, rows),
    )


def _kind(path: str, x: Any, rows: int, test: np.ndarray) -> tuple[int, Affine]:
    """The levels of pixels and their scale; or 0 and the mean and deviation of numbers."""
    if x.dtype == np.uint8:
        if x.ndim != 4:
            raise DataError(f"{path}: uint8 data are images (N, H, W, C), not {x.shape}")
        return 256, image_scale(256)
    if not np.issubdtype(x.dtype, np.floating):
        raise DataError(f"{path}: x must be uint8 or floating point, not {x.dtype}")
    seen = np.asarray(x[: rows if resident(x.nbytes) else min(rows, _SEEN)], np.float32)
    if not (np.isfinite(seen).all() and np.isfinite(test).all()):
        raise DataError(f"{path}: x holds values that are not finite")
    return 0, Affine(float(seen.std()) or 1.0, float(seen.mean()))


def _check_labels(path: str, key: str, y: np.ndarray | None, rows: int) -> None:
    if y is not None and (y.shape != (rows,) or not np.issubdtype(y.dtype, np.integer) or y.min() < 0):
        raise DataError(f"{path}: {key} must hold one label 0, 1, ... for each of the {rows} rows")
