"""Files that are made once and kept: the Inception weights and reference statistics."""

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

WEIGHTS = "inception_2015_12_05.npz"
"""Name of the weights' file in the folder."""


def cache_folder() -> Path:
    """Where they are: $FLOWJAX_CACHE, or ~/.cache/flowjax."""
    return Path(os.environ.get("FLOWJAX_CACHE", "~/.cache/flowjax")).expanduser()


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes an .npz whole or not at all, also if two processes write it at once. Makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            savez: Any = np.savez  # whose keywords are arrays, but for one that a checker takes them all for
            savez(file, **arrays)
        os.chmod(part, 0o644)  # mkstemp's files are for their owner alone
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
