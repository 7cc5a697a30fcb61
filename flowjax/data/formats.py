"""The format of the user's own data, which follows from the suffix of a file or from the content of a folder."""

import json
import os
from pathlib import Path

from flowjax.archives import one_line, printable
from flowjax.data.affine import DataError

__all__ = ["check_format", "format_of", "is_zarr_array"]

_FILES = {
    ".npz": "npz",
    ".npy": "npy",
    ".csv": "table",
    ".tsv": "table",
    ".parquet": "table",
    ".pq": "table",
}
"""The data set that reads a file with this suffix."""

_KINDS = {
    "npz": "an .npz file",
    "npy": "a NumPy array or a folder of them",
    "zarr": "a Zarr array or a folder of them",
    "table": "a table in a .csv, .tsv or .parquet file",
    "folder": "a folder of images",
    "pairs": "a folder of pairs that a model has made",
}
"""What the data sets that read the user's own data need at `data.path`."""


def format_of(path: str) -> str:
    """Returns the name of the data set that reads a file or a folder.

    A folder holds Zarr arrays if its name ends in `.zarr` or if it or one of its subfolders is a Zarr array, NumPy
    arrays if it has a file `*.npy`, and otherwise images. The file `pairs.json` marks pairs of a model.

    Args:
        path: `data.path`.

    Returns:
        A name in `flowjax.data.DATASETS`, such as "npz".

    Raises:
        DataError: if the path does not exist, or the suffix of the file belongs to no format.
    """
    place = Path(path)
    if not place.is_dir():
        if not place.exists():
            raise DataError(f"data.path: no such file or folder: {printable(path, 200)}")
        suffix = place.suffix.lower()
        if suffix in _FILES:
            return _FILES[suffix]
        raise DataError(
            f"the format of {printable(path, 200)} is not known: data.path must be a file that ends in "
            f"{', '.join(_FILES)}, or a folder of NumPy arrays, Zarr arrays or images"
        )
    return _format_of_folder(place)


def check_format(name: str, path: str) -> None:
    """Checks that `data.name` and `data.path` do not contradict each other.

    Args:
        name: the name of a data set, without arguments in brackets.
        path: `data.path`, which may be empty or not exist.

    Raises:
        DataError: if the data set reads the user's own data, and the path is clearly of another format.
    """
    place = Path(path)
    if name not in _KINDS or not path or not place.exists():
        return  # the data set itself says that its path is missing
    if not place.is_dir():
        found = _FILES.get(place.suffix.lower())
    else:
        found = _format_of_folder(place)
        found = None if found == "folder" else found  # any folder may hold images
    if found is not None and found != name:
        raise DataError(
            f"data.name is {name!r}, which reads {_KINDS[name]}, but {printable(path, 200)} is {_found(found, place)}: "
            f"use data.name={found}, or leave data.name empty to go by data.path"
        )


def is_zarr_array(place: Path) -> bool:
    """Whether a folder is a Zarr array of version 2 or 3. A Zarr group is not one."""
    if (place / ".zarray").is_file():
        return True
    try:
        return json.loads((place / "zarr.json").read_bytes()).get("node_type") != "group"
    except OSError:
        return False
    except (ValueError, AttributeError, RecursionError):
        return True  # a damaged array, which is refused when it is opened


def _format_of_folder(place: Path) -> str:
    if (place / "pairs.json").is_file():
        return "pairs"
    if place.suffix.lower() == ".zarr" or is_zarr_array(place):
        return "zarr"
    try:
        with os.scandir(place) as entries:
            found = [entry for entry in entries if entry.name.endswith(".npy") or entry.is_dir()]
    except OSError as error:
        raise DataError(f"{printable(str(place), 200)} cannot be listed: {one_line(error)}") from None
    if any(entry.is_dir() and is_zarr_array(Path(entry.path)) for entry in found):
        return "zarr"
    return "npy" if any(entry.name.endswith(".npy") for entry in found) else "folder"


def _found(name: str, place: Path) -> str:
    """Describes a file or a folder of a format for a message."""
    if name in ("npy", "zarr") and place.is_dir():
        return f"a folder with {'NumPy' if name == 'npy' else 'Zarr'} arrays"
    return {"npy": "a single NumPy array"}.get(name, _KINDS[name])
