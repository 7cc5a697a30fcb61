"""Files that are made once and kept: the Inception weights and reference statistics."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowjax.files import written

__all__ = ["WEIGHTS", "cache_folder", "write_npz"]

WEIGHTS = "inception_2015_12_05.npz"
"""Name of the weights' file in the folder."""


def cache_folder() -> Path:
    """Where they are: $FLOWJAX_CACHE, or ~/.cache/flowjax."""
    return Path(os.environ.get("FLOWJAX_CACHE", "~/.cache/flowjax")).expanduser()


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz whole or not at all. Makes the folder."""
    with written(path) as part, part.open("wb") as file:
        savez: Any = np.savez  # whose keywords are arrays, but for one that a checker takes them all for
        savez(file, **arrays)
