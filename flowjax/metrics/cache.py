"""The cache folder for the Inception weights and for reference statistics of data sets."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowjax.files import written

__all__ = ["WEIGHTS", "cache_folder", "write_npz"]

WEIGHTS = "inception_2015_12_05.npz"
"""The file name of the Inception weights in the cache folder."""


def cache_folder() -> Path:
    """The cache folder: $FLOWJAX_CACHE if set, otherwise ~/.cache/flowjax."""
    return Path(os.environ.get("FLOWJAX_CACHE", "~/.cache/flowjax")).expanduser()


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays to an .npz file atomically, and creates its folder if necessary."""
    with written(path) as part, part.open("wb") as file:
        savez: Any = np.savez  # type checkers take every keyword for `allow_pickle`
        savez(file, **arrays)
