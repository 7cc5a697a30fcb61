"""The cache folder for the Inception weights and for reference statistics of data sets."""

import os
from pathlib import Path

__all__ = ["WEIGHTS", "cache_folder"]

WEIGHTS = "inception_2015_12_05.npz"
"""The file name of the Inception weights in the cache folder."""


def cache_folder() -> Path:
    """The cache folder: $FLOWJAX_CACHE if set, otherwise ~/.cache/flowjax."""
    return Path(os.environ.get("FLOWJAX_CACHE", "~/.cache/flowjax")).expanduser()
