"""The columns of a table: names, kinds and categories, as the description of a data set records them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from flowjax.archives import printable
from flowjax.data.affine import DataError
from flowjax.data.record import LARGEST_LIST, TRUTH, Check, read_entries

__all__ = ["Column", "check_columns", "codes_of", "column_record", "one_hot", "read_column"]

ColumnKind = Literal["real", "integer", "category"]

_LONGEST_NAME = 1000


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: the name of the column.
        kind: "real" for real numbers, "integer", or "category" for texts and booleans, which are coded 0, 1, ....
        categories: the text of each code of a category, in order of frequency; () for numbers.
        condition: whether the column is a condition of the network, not a coordinate of x.
    """

    name: str
    kind: ColumnKind
    categories: tuple[str, ...] = ()
    condition: bool = False


def one_hot(codes: np.ndarray, categories: int) -> np.ndarray:
    """Returns one-hot rows (N, K) for the codes (N,) of K categories; a row is NaN where the code is NaN (missing)."""
    rows = (codes[:, None] == np.arange(categories)).astype(np.float64)
    return np.where(np.isnan(codes)[:, None], np.nan, rows)


def codes_of(column: Column, texts: np.ndarray) -> np.ndarray:
    """Returns the codes (N,) of the texts of a category; an empty text is missing, NaN, unless it is a category.

    Raises:
        DataError: if a text is not one of the categories.
    """
    code = {"": math.nan} | {text: float(k) for k, text in enumerate(column.categories)}
    found = list(map(str, texts))
    if unknown := next((text for text in found if text not in code), None):
        shown = printable(", ".join(column.categories[:20]), 200)
        raise DataError(f"the condition {column.name} has no category {printable(unknown)!r}: it has {shown}")
    return np.array([code[text] for text in found])


def column_record(column: Column) -> dict[str, Any]:
    """Returns the dictionary that `read_column` reads."""
    return {
        "name": column.name,
        "kind": column.kind,
        "categories": list(column.categories),
        "condition": column.condition,
    }


def _texts(value: Any) -> bool:
    strings = isinstance(value, list) and len(value) <= LARGEST_LIST and all(isinstance(one, str) for one in value)
    return strings and len(set(value)) == len(value)


_CHECKS: dict[str, Check] = {
    "name": ("a text that is not empty", lambda v: isinstance(v, str) and 0 < len(v) <= _LONGEST_NAME),
    "kind": (f"one of {', '.join(get_args(ColumnKind))}", lambda v: isinstance(v, str) and v in get_args(ColumnKind)),
    "categories": ("a list of different strings", _texts),
    "condition": TRUTH,
}


def read_column(record: Any) -> Column:
    """Reads a column from a record of an untrusted file.

    Raises:
        DataError: if an entry is missing or invalid; the message names it.
    """
    what = "the description of the data: a column"
    found = read_entries(what, record, _CHECKS)
    if (found["kind"] == "category") != bool(found["categories"]):
        raise DataError(f"{what}: a {found['kind']} cannot have {len(found['categories'])} categories")
    return Column(found["name"], found["kind"], tuple(found["categories"]), found["condition"])


def check_columns(
    columns: Sequence[Column],
    shape: tuple[int, ...],
    integers: Sequence[tuple[int, int] | None],
    conditions: dict[str, tuple[int, ...]],
) -> None:
    """Checks that the columns fit the other entries of the description of a data set.

    Args:
        columns: the columns, or () for data that are not a table.
        shape: the shape of an example, whose last axis the columns describe.
        integers: the ranges of its integers (`Integers.ranges`).
        conditions: the shape of each condition that is not a label, by name.

    Raises:
        DataError: if they do not fit.
    """
    if not columns:
        return
    what = "the description of the data: columns"
    if len({column.name for column in columns}) < len(columns):
        raise DataError(f"{what} have the same name")
    features = [column for column in columns if not column.condition]
    if shape[-1:] != (len(features),):
        raise DataError(f"{what} describe {len(features)} coordinates for examples of shape {shape}")
    for column, one in zip(features, integers or [None] * len(features), strict=True):
        is_codes = column.kind != "category" or one == (0, len(column.categories) - 1)
        if (one is None) != (column.kind == "real") or not is_codes:
            raise DataError(f"{what}: {printable(column.name)} is {column.kind}, but its integers are {one}")
    for column in columns:
        expected = (max(1, len(column.categories)),)
        if column.condition and conditions.get(column.name) != expected:
            raise DataError(f"{what}: {printable(column.name)} is not a condition of the shape {expected}")
