"""Columns of a table that hold the time of each row: how they are recognised, and checks of their order and gaps."""

import re
from typing import Any

import numpy as np

from flowjax.archives import printable
from flowjax.data.affine import DataError

__all__ = ["is_time", "remark_on_times"]

_NAMES = ("time", "date", "datetime", "date_time", "timestamp", "ds", "year", "index")
"""Names, in any capitalisation, of columns that are times if their numbers increase or they hold texts."""

_DATE = re.compile(r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}([ T]\d{1,2}:\d{2}.*)?")
_YEAR_FIRST = re.compile(r"\d{4}([-/.])\d{2}\1\d{2}([ T]\d{2}:\d{2}(:\d{2})?)?")

_GAP = 1.5
"""A step of time that is longer than this many usual ones is a gap; months differ by less."""


def is_time(name: str, column: Any) -> bool:
    """Whether a column of a pyarrow table holds times.

    These are columns whose type is a time; texts that are all dates, or that have a name like `date`; and numbers with
    such a name that increase from row to row.
    """
    from pyarrow import types

    kind, named = column.type, name.strip().lower() in _NAMES
    if types.is_temporal(kind):
        return True
    if types.is_string(kind) or types.is_large_string(kind):
        return named or (column.null_count < len(column) and all(_DATE.fullmatch(text) for text in _texts(column)))
    if not named or column.null_count or not (types.is_integer(kind) or types.is_floating(kind)):
        return False
    return bool(np.all(np.diff(column.to_numpy()) > 0))


def remark_on_times(path: str, name: str, column: Any) -> tuple[str, ...]:
    """Checks that the rows are in the order of time, and returns a remark about gaps between them.

    Args:
        path: the file, for messages.
        name: the name of the column.
        column: a pyarrow column for which `is_time` is true.

    Raises:
        DataError: if a time is not later than the one before.
    """
    times = _numbers(column)
    if times is None or len(times) < 2:
        return ()
    steps = np.diff(times)
    if (steps <= 0).any():
        row = int(np.argmax(steps <= 0)) + 2
        raise DataError(
            f"{path}: the rows must be in the order of time, but {printable(name)} does not increase at row {row:,}: "
            "sort the rows, and give each series a file of its own"
        )
    if gaps := int((steps > _GAP * np.median(steps)).sum()):
        return (f"{gaps:,} steps of {printable(name)} are longer than the usual one; windows reach across these gaps",)
    return ()


def _texts(column: Any) -> list[str]:
    return column.drop_null().to_pylist()


def _numbers(column: Any) -> np.ndarray | None:
    """Returns times as float64 numbers; None if one is missing, or if texts have another format than 2024-01-31."""
    from pyarrow import types

    if column.null_count or types.is_time(column.type) or types.is_duration(column.type):
        return None
    if types.is_temporal(column.type):
        return column.to_numpy().astype("datetime64[ms]").astype(np.float64)
    if types.is_integer(column.type) or types.is_floating(column.type):
        return column.to_numpy().astype(np.float64)
    texts = _texts(column)
    if not all(_YEAR_FIRST.fullmatch(text) for text in texts):
        return None
    try:
        return np.array([re.sub("[/.]", "-", text[:10]) + text[10:] for text in texts], "datetime64[s]").astype(float)
    except ValueError:  # such as month 13
        return None
