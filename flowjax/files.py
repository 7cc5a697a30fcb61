"""Atomic writes of files, moving files out of the way, and JSON without NaN."""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["TABLES", "json_text", "remove_unfinished", "set_aside", "written"]

TABLES = (".csv", ".tsv", ".parquet")
"""The suffixes of the files to which samples of tables are written."""


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """Writes a file atomically: yields a temporary path in the same folder, which replaces `path` at the end.

    After an error `path` is unchanged. Two processes may write at once; the last one wins. The folder is created.

    Example:
        with written(workdir / "config.json") as part:
            part.write_text("{}")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def remove_unfinished(folder: Path, names: str = "*") -> None:
    """Removes temporary files that a process which died inside `written` has left.

    Args:
        folder: the folder to clean.
        names: glob pattern of the names under which the files would have been written.
    """
    for part in folder.glob(f".{names}.*.part"):
        with contextlib.suppress(OSError):
            part.unlink()


def set_aside(path: Path, folder: Path) -> None:
    """Moves a file or folder into `folder`, which is created, and appends the time to its name."""
    folder.mkdir(parents=True, exist_ok=True)
    path.rename(folder / f"{path.name}-{time.strftime('%Y%m%dT%H%M%S')}.{time.time_ns() % 10**9:09d}")


def json_text(value: Any, indent: int | None = None) -> str:
    """Returns a value as JSON; NaN and infinities, which JSON does not have, become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
