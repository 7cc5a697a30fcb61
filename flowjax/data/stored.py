"""Opens arrays in a folder of NumPy files, which are memory-mapped, or of Zarr arrays."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowjax.archives import ArchiveError, check_limit, check_regular, one_line, printable
from flowjax.data.affine import DataError
from flowjax.data.formats import is_zarr_array
from flowjax.data.spec import shortened

__all__ = ["KEYS", "Stored", "open_files", "open_zarrs", "unused"]

KEYS = ("x", "y", "mask", "x_test", "y_test", "mask_test")
"""Names of the arrays that are always read if they exist."""

_WHOLE = ("y", "y_test")
"""Names of the arrays that are read completely at once; rows of other arrays are read when they are needed."""


@dataclass(frozen=True)
class Stored:
    """A TensorStore array with the interface of a NumPy array; it can be pickled.

    Attributes:
        store: the TensorStore.
    """

    store: Any

    @classmethod
    def at(cls, path: Path) -> "Stored":
        """Opens the Zarr array at `path`, if its chunks do not exceed the limit of `flowjax.archives`."""
        import tensorstore

        where = {"driver": "file", "path": f"{path}/"}
        store = tensorstore.open({"driver": "auto", "kvstore": where}, open=True, read=True).result()
        _check_size(
            path, "a chunk", [n or 1 for n in store.chunk_layout.read_chunk.shape or ()], store.dtype.numpy_dtype
        )
        return cls(store)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.store.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.store.dtype.numpy_dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.store[index].read().result()
        except Exception as error:  # TensorStore can raise any exception on damaged chunks
            raise DataError(f"{self.store.kvstore.path} cannot be read: {one_line(error)}") from None


def open_files(path: str, keys: Sequence[str] = KEYS) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Opens the arrays `x.npy`, `y.npy`, ... of a folder, or one `.npy` file, whatever its name, as `x`.

    Args:
        path: the folder or the file.
        keys: names of the arrays to open.

    Returns:
        The arrays by name, and notes for the user.

    Raises:
        DataError: if the folder or `x` is missing, or an array cannot be read.
    """
    read = lambda place: np.lib.format.open_memmap(place, mode="r")  # np.load would also open a zip file with that name
    if path and Path(path).suffix.lower() == ".npy" and not Path(path).is_dir():
        return {"x": _open(Path(path), read)}, ()
    folder = _folder("npy", path, "NumPy files x.npy, y.npy, x_test.npy and y_test.npy")
    return _read(folder, list(folder.glob("*.npy")), read, "x.npy", keys)


def open_zarrs(path: str, keys: Sequence[str] = KEYS) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Opens the Zarr arrays `x` or `x.zarr`, `y` or `y.zarr`, ... of a folder, or one Zarr array as `x`.

    Args:
        path: the folder, or the Zarr array.
        keys: names of the arrays to open.

    Returns:
        The arrays by name, and notes for the user.

    Raises:
        DataError: if the folder or `x` is missing, or an array cannot be read.
    """
    folder = _folder("zarr", path, "Zarr arrays x, y, x_test and y_test")
    if is_zarr_array(folder):
        return {"x": _open(folder, Stored.at)}, ()
    return _read(folder, [place for place in folder.iterdir() if is_zarr_array(place)], Stored.at, "x or x.zarr", keys)


def unused(names: list[str], keys: Sequence[str] = KEYS) -> tuple[str, ...]:
    """Returns the note about arrays that are not read, if there are any."""
    if not names:
        return ()
    shown = printable(shortened(sorted(names)), 200)
    return (f"not used: {shown}; only these arrays are read: {', '.join(keys)}",)


def _folder(name: str, path: str, content: str) -> Path:
    if not path:
        raise DataError(f"data.name is {name}, so data.path must be a folder: --config.data.path=FOLDER")
    folder = Path(path)
    if folder.is_file():
        raise DataError(f"{path} is a file, but data.name={name} needs a folder of {content}")
    if not folder.is_dir():
        raise DataError(f"no such folder: {path}")
    return folder


def _check_size(place: Path, what: str, shape: Sequence[int], dtype: np.dtype) -> None:
    """Checks that a part of a Zarr array that is read at once is within the limit, because it can declare any shape."""
    try:
        check_limit(math.prod(shape) * dtype.itemsize, 0)
    except ArchiveError as error:
        raise DataError(f"{place}: {what} of shape {tuple(shape)} is too large to be read at once: {error}") from None


def _open(place: Path, read: Callable[[Path], Any]) -> Any:
    """Opens one array without reading its rows."""
    try:
        if not place.is_dir():
            check_regular(place)
        return read(place)
    except DataError:
        raise
    except ArchiveError as error:
        raise DataError(str(error)) from None
    except Exception as error:  # NumPy and TensorStore can raise any exception on damaged files
        raise DataError(f"{place} cannot be read: {one_line(error)}") from None


def _read(
    folder: Path, places: list[Path], read: Callable[[Path], Any], wanted: str, keys: Sequence[str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    found = {}
    for place in (place for place in sorted(places) if place.stem in keys):
        found[place.stem] = _open(place, read)
    if "x" not in found:
        raise DataError(f"{folder} holds no {wanted}")
    for key in found.keys() & set(_WHOLE):
        if isinstance(found[key], Stored):
            _check_size(folder, key, found[key].shape, found[key].dtype)
        found[key] = np.asarray(found[key][...])
    return found, unused([place.name for place in places if place.stem not in keys], keys)
