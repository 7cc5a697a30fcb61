"""Files that are whole or not there, folders moved out of the way, and JSON without NaN."""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["json_text", "remove_unfinished", "set_aside", "written"]


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which takes its place at the end; after an error nothing has changed.

    Two processes may write at once: one of them is the last. The folder is made.

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
    """Removes what a process that died inside `written` has left: unfinished files of these names (a glob pattern)."""
    for part in folder.glob(f".{names}.*.part"):
        with contextlib.suppress(OSError):
            part.unlink()


def set_aside(path: Path, folder: Path) -> None:
    """Moves a file or folder into `folder`, under a name that says when."""
    folder.mkdir(parents=True, exist_ok=True)
    path.rename(folder / f"{path.name}-{time.strftime('%Y%m%dT%H%M%S')}.{time.time_ns() % 10**9:09d}")


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON, which has no NaN and no infinity: they become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
