"""Arrays that accompany `x`: conditions by name, source samples paired with x, and the mask of a set."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from flowjax.archives import printable
from flowjax.conditions import Field, field_of
from flowjax.data.affine import Affine, DataError
from flowjax.data.record import ConditionRange
from flowjax.data.requests import DataRequest, FieldRequest
from flowjax.data.scales import feature_scales
from flowjax.data.spec import shortened
from flowjax.ranges import MAX_COORDINATES

__all__ = ["Beside", "keys_of", "read_beside", "rows_of_field", "scale_conditions"]


@dataclass(frozen=True)
class Beside:
    """Arrays that have one row for each row of x, or for each row of x_test.

    Attributes:
        cond: conditions by name, without the label.
        x0: the source sample paired with each row, or None.
        mask: (N, n) bool, true for the elements of x that exist, or None.
    """

    cond: Mapping[str, Any]
    x0: Any = None
    mask: Any = None

    def arrays(self) -> list[Any]:
        """Returns all arrays that are not None."""
        return [a for a in (*self.cond.values(), self.x0, self.mask) if a is not None]


def keys_of(request: DataRequest) -> list[str]:
    """Returns the names of the arrays that a request names, and of the arrays of their test rows."""
    names = [field.name for field in request.cond if field.name != "label"] + [request.pairs] * bool(request.pairs)
    return [key for name in names for key in (name, f"{name}_test")]


def read_beside(
    path: str, arrays: Mapping[str, Any], request: DataRequest
) -> tuple[tuple[Field, ...], Beside, Beside | None]:
    """Returns the arrays that a request names, after checking them against x.

    Args:
        path: the file or folder, for messages.
        arrays: all arrays by name, including `x`.
        request: names the arrays to read.

    Returns:
        The fields of the conditions that are not labels, the arrays for the rows of x, and the arrays for the rows of
        x_test, or None if there is no x_test.

    Raises:
        DataError: if an array is missing, or has an invalid length, shape or dtype.
    """
    wanted = [field for field in request.cond if field.name != "label"]
    pairs = {field.name: _pair(path, arrays, field.name, "data.cond") for field in wanted}
    fields = tuple(_field(path, field, pairs[field.name]) for field in wanted)
    x0 = _pair(path, arrays, request.pairs, "data.pairs") if request.pairs else (None, None)
    for array in x0:
        _check_source(path, request.pairs, array, arrays["x"])
    mask = _mask(path, arrays)
    train, test = (Beside({name: pair[i] for name, pair in pairs.items()}, x0[i], mask[i]) for i in range(2))
    return fields, train, None if arrays.get("x_test") is None else test


def rows_of_field(array: np.ndarray, field: Field) -> np.ndarray:
    """Reshapes the rows of a condition to the shape of its field: a scalar becomes a vector of one number."""
    return array.reshape(-1, *field.shape)


def scale_conditions(
    path: str, fields: tuple[Field, ...], n: int, read: Callable[[str, np.ndarray], np.ndarray], most: int
) -> tuple[tuple[Affine, ...], tuple[ConditionRange, ...], tuple[str, ...]]:
    """Returns the maps that standardise the features of the conditions, the ranges of these features, and notes.

    Args:
        path: the file or folder, for messages.
        fields: the conditions.
        n: number of training rows.
        read: function (name of a condition, indices of training rows) -> these rows.
        most: the largest number of rows from which moments are computed.

    Raises:
        DataError: if a condition holds infinite values.
    """
    maps, ranges, notes = [], [], []
    for field in fields:
        rows = lambda index, field=field: rows_of_field(read(field.name, index), field)
        affine, constant, low, high = feature_scales(path, f"the condition {field.name}", n, rows, field.shape, most)
        maps.append(affine)
        ranges.append((low, high))
        if constant:
            shown = shortened(list(map(str, constant)), 8)
            notes.append(f"the condition {field.name} has constant features, which keep the scale 1: {shown}")
    return tuple(maps), tuple(ranges), tuple(notes)


def _pair(path: str, arrays: Mapping[str, Any], name: str, key: str) -> tuple[Any, Any]:
    """Returns an array with one row per row of x, and its test array with one row per row of x_test, or None."""
    if name not in arrays:
        there = printable(shortened(sorted(a for a in arrays if not a.endswith("_test"))), 200)
        raise DataError(f"{path} holds no array named {name!r}, which {key} asks for: it has {there}")
    test, x_test = arrays.get(f"{name}_test"), arrays.get("x_test")
    if (test is None) != (x_test is None):
        here, missing = (f"{name}_test", "x_test") if x_test is None else ("x_test", f"{name}_test")
        raise DataError(f"{path}: there is {here} but no {missing}")
    for suffix, array, rows in (("", arrays[name], arrays["x"]), ("_test", test, x_test)):
        if array is not None and (array.ndim < 1 or rows is None or len(array) != len(rows)):
            counts = "" if array.ndim < 1 or rows is None else f" ({len(rows)}), but it has {len(array)}"
            raise DataError(f"{path}: {name}{suffix} must have one row for each row of x{suffix}{counts}")
    if test is not None and test.shape[1:] != arrays[name].shape[1:]:
        raise DataError(f"{path}: {name} has rows of shape {arrays[name].shape[1:]} and {name}_test {test.shape[1:]}")
    return arrays[name], test


def _field(path: str, request: FieldRequest, pair: tuple[Any, Any]) -> Field:
    """Returns the field of a numeric condition, after checking its arrays."""
    name, shape = request.name, tuple(pair[0].shape[1:])
    for array in pair:
        if array is None or jnp.issubdtype(array.dtype, jnp.floating):
            continue
        if array.dtype.kind in "iub":
            raise DataError(
                f"{path}: the condition {name} holds integers ({array.dtype}): save classes as y and name them label, "
                f"or convert numbers with {name}.astype('float32')"
            )
        raise DataError(f"{path}: the condition {name} must hold floating-point numbers, not {array.dtype}")
    if math.prod(shape) > MAX_COORDINATES or 0 in shape:
        raise DataError(f"{path}: the condition {name} cannot have examples of shape {shape}")
    try:
        return Field(name, request.kind, shape or (1,)) if request.kind else field_of(name, shape)  # type: ignore[arg-type]
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def _check_source(path: str, name: str, array: Any, x: Any) -> None:
    if array is None:
        return
    if tuple(array.shape[1:]) != tuple(x.shape[1:]):
        raise DataError(
            f"{path}: {name} must have a source sample for each row of x {x.shape}, but its shape is {array.shape}"
        )
    floats = jnp.issubdtype(array.dtype, jnp.floating)
    same = floats if jnp.issubdtype(x.dtype, jnp.floating) else array.dtype.kind in "iub"
    if (x.dtype == np.uint8) != (array.dtype == np.uint8) or not same:
        raise DataError(
            f"{path}: x is {x.dtype} and {name} is {array.dtype}: both must be uint8, both other integers, or both "
            "floats"
        )


def _mask(path: str, arrays: Mapping[str, Any]) -> tuple[Any, Any]:
    """Returns `mask` and `mask_test`, which are allowed if x is (N, n, C) and floating point."""
    x = arrays["x"]
    if "mask" not in arrays:
        if "mask_test" in arrays:
            raise DataError(f"{path}: there is mask_test but no mask")
        return None, None
    if x.ndim != 3 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise DataError(f"{path}: a mask needs floating-point sets x (N, n, C), but x is {x.dtype} {x.shape}")
    masks = _pair(path, arrays, "mask", "x")
    for mask in masks:
        if mask is not None and (mask.dtype != np.bool_ or mask.shape[1:] != x.shape[1:2]):
            raise DataError(
                f"{path}: mask must be bool of shape (N, {x.shape[1]}), not {mask.dtype} of shape {mask.shape}"
            )
        if mask is not None and (empty := np.flatnonzero(~np.asarray(mask).any(1))).size:
            raise DataError(
                f"{path}: the mask leaves {empty.size} of {len(mask)} sets without an element (the first is row "
                f"{empty[0]}): remove these rows"
            )
    return masks
