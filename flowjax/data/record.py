"""Conversion of the parts of a `DataSpec` to and from dictionaries for JSON (records).

Records are stored in workdirs and in weights files, which are not trusted, so every entry is checked.
"""

import math
import sys
from collections.abc import Callable
from typing import Any

from flowjax.conditions import KINDS, Field
from flowjax.data.affine import Affine, DataError
from flowjax.data.requests import DEQUANTISATIONS, check_field_name
from flowjax.ranges import MAX_COORDINATES

__all__ = [
    "ENTRIES",
    "LARGEST_INTEGER",
    "LARGEST_LIST",
    "ConditionRange",
    "affine_record",
    "bounds_record",
    "read_affine",
    "read_bounds",
    "read_condition",
    "read_entries",
]

_LARGEST_ENTRY, LARGEST_LIST = 2**31, 100_000
"""Limits on integers and on the lengths of lists in a record."""

LARGEST_INTEGER = 2**53
"""Limit on the absolute value of integer data: float64 can tell smaller integers apart."""

MOST_CONDITIONS = 64
"""Limit on the number of conditions in a record."""

ConditionRange = tuple[tuple[float, ...], tuple[float, ...]]
"""The smallest and the largest value of each entry of the last axis of a condition in the training data."""

Check = tuple[str, Callable[[Any], Any]]
"""A description of the valid values of an entry, for messages, and the check of a value."""


def _whole(value: Any) -> bool:
    """Whether a value of a record is a non-negative integer."""
    return type(value) is int and 0 <= value <= _LARGEST_ENTRY


def _number(value: Any) -> bool:
    """Whether a value of a record is a finite number."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # false for NaN


def _listed(one: Callable[[Any], Any]) -> Callable[[Any], bool]:
    """Returns a check whether a value is a list whose elements all pass the check `one`."""
    return lambda value: isinstance(value, list) and len(value) <= LARGEST_LIST and all(map(one, value))


def _shape(value: Any) -> bool:
    return bool(_listed(_whole)(value) and value and len(value) <= 8 and min(value) > 0)


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _range(value: Any) -> bool:
    """Whether a value of a record is None, or a range [low, high] of integers."""
    if value is None:
        return True
    bound = lambda one: type(one) is int and abs(one) <= LARGEST_INTEGER
    return isinstance(value, list) and len(value) == 2 and all(map(bound, value)) and value[0] <= value[1]


def _interval(value: Any) -> bool:
    """Whether a value of a record is an interval [low, high], in which null stands for no bound."""
    if not isinstance(value, list) or len(value) != 2 or not all(v is None or _number(v) for v in value):
        return False
    return None in value or value[0] < value[1]


TRUTH: Check = ("true or false", lambda value: isinstance(value, bool))
SHAPE: Check = ("a list of positive integers", _shape)
SCALE: Check = ("a positive number, or a list of them", lambda v: _positive(v) or (_listed(_positive)(v) and v))
SHIFT: Check = ("a number, or a list of them", lambda v: _number(v) or (_listed(_number)(v) and v))

_CONDITION: dict[str, Check] = {
    "name": ("a string", lambda value: isinstance(value, str)),
    "kind": (f"one of {', '.join(kind for kind in KINDS if kind != 'label')}", lambda v: v in KINDS and v != "label"),
    "shape": SHAPE,
    "scale": SCALE,
    "shift": SHIFT,
    "zero_is_null": TRUTH,
    "low": ("a list of numbers", _listed(_number)),
    "high": ("a list of numbers", _listed(_number)),
}


ENTRIES: dict[str, Check] = {
    "name": ("a string", lambda value: isinstance(value, str)),
    "shape": SHAPE,
    "scale": SCALE,
    "shift": SHIFT,
    "num_classes": ("a non-negative integer", _whole),
    "levels": ("a non-negative integer", _whole),
    "class_names": ("a list of strings", _listed(lambda one: isinstance(one, str))),
    "class_shares": ("a list of numbers from 0 to 1", _listed(lambda one: _number(one) and 0 <= one <= 1)),
    "conditions": (
        f"a list of at most {MOST_CONDITIONS} conditions",
        lambda value: isinstance(value, list) and len(value) <= MOST_CONDITIONS,
    ),
    "has_mask": TRUTH,
    "integers": ("a list of ranges [low, high] of integers, or null for real numbers", _listed(_range)),
    "columns": ("a list of columns", _listed(lambda one: isinstance(one, dict))),
    "bounds": ("a list of intervals [low, high], with null for no bound", _listed(_interval)),
    "paired_source": ("a string", lambda value: isinstance(value, str)),
    "dequantisation": (f"one of {', '.join(DEQUANTISATIONS)}", lambda value: value in DEQUANTISATIONS),
}
"""The entries of a record and their checks."""

_ABSENT = {
    "has_mask": False,
    "zero_is_null": False,
    "integers": [],
    "columns": [],
    "bounds": [],
    "low": [],
    "high": [],
    "paired_source": "",
    "dequantisation": "uniform",
}
"""The values of entries that records of earlier versions do not have."""


def read_entries(what: str, record: Any, checks: dict[str, Check]) -> dict[str, Any]:
    """Checks the entries of a record and returns them.

    Args:
        what: a description of the record, for messages.
        record: a value from a JSON file.
        checks: the check of each entry; all are required except those in `_ABSENT`.

    Raises:
        DataError: if an entry is missing or invalid; the message names it.
    """
    if not isinstance(record, dict):
        raise DataError(f"{what} must be a JSON object, not {record!r:.40}")
    record = {key: value for key, value in _ABSENT.items() if key in checks} | record
    for key, (kind, fits) in checks.items():
        if key not in record or not fits(record[key]):
            found = f"is {record[key]!r:.40}" if key in record else "is missing"
            raise DataError(f"{what}: {key} {found}; it must be {kind}")
    return record


def affine_record(affine: Affine) -> dict[str, Any]:
    """Returns the scale and the shift of a map as numbers or lists."""
    plain = lambda values: list(values) if isinstance(values, tuple) else values
    return {"scale": plain(affine.scale), "shift": plain(affine.shift)}


def read_affine(what: str, entries: dict[str, Any], shape: tuple[int, ...]) -> Affine:
    """Returns the affine map of checked entries.

    Args:
        what: a description of the record, for messages.
        entries: the entries, which `read_entries` has checked.
        shape: the shape of one example.

    Raises:
        DataError: if the scale and the shift do not fit the shape.
    """
    of = lambda value: tuple(map(float, value)) if isinstance(value, list) else float(value)
    affine = Affine(of(entries["scale"]), of(entries["shift"]))
    if not affine.fits(shape):
        raise DataError(f"{what}: scale and shift have {affine.features} entries for examples of shape {shape}")
    return affine


def bounds_record(bounds: tuple[tuple[float, float], ...]) -> list[list[float | None]]:
    """Returns intervals as lists, with None for infinite bounds, which JSON does not have."""
    return [[bound if math.isfinite(bound) else None for bound in one] for one in bounds]


def read_bounds(what: str, bounds: list[Any], shape: tuple[int, ...], whole: bool) -> tuple[tuple[float, float], ...]:
    """Returns the intervals of checked entries.

    Args:
        what: a description of the record, for messages.
        bounds: the entries, which `read_entries` has checked.
        shape: the shape of one example.
        whole: whether the data are pixels or have integers, which cannot have bounds.

    Raises:
        DataError: if there is not one interval for each entry of the last axis, or the data are integers.
    """
    if bounds and (len(bounds) != shape[-1] or whole):
        raise DataError(
            f"{what}: bounds must have an interval for each of the {shape[-1]} entries of the last axis, and only real "
            f"numbers can have bounds"
        )
    side = lambda bound, without: without if bound is None else float(bound)
    return tuple((side(low, -math.inf), side(high, math.inf)) for low, high in bounds)


def read_condition(record: Any) -> tuple[Field, Affine, ConditionRange]:
    """Reads a condition, the affine map of its numbers and their range, which may be empty, from a record.

    Raises:
        DataError: if the record is invalid.
    """
    what = "the description of the data: a condition"
    entries = read_entries(what, record, _CONDITION)
    shape = tuple(entries["shape"])
    if math.prod(shape) > MAX_COORDINATES:
        raise DataError(f"{what}: an example of shape {shape} has more than {MAX_COORDINATES:,} numbers")
    try:
        check_field_name(entries["name"])
        field = Field(entries["name"], entries["kind"], shape, zero_is_null=entries["zero_is_null"])
    except ValueError as error:
        raise DataError(f"{what}: {error}") from None
    low, high = (tuple(map(float, entries[end])) for end in ("low", "high"))
    if len(low) != len(high) or len(low) not in (0, shape[-1]) or any(a > b for a, b in zip(low, high, strict=True)):
        raise DataError(f"{what}: low and high must be the ends of a range for each entry of the last axis")
    return field, read_affine(what, entries, shape), (low, high)
