"""The user's arrays beside `x`: conditions by name, source samples that come in pairs with x, and the mask of a set."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from flowjax.archives import printable
from flowjax.conditions import Field, field_of
from flowjax.data.affine import Affine, DataError
from flowjax.data.requests import DataRequest, FieldRequest
from flowjax.data.scales import feature_scales
from flowjax.data.spec import shortened
from flowjax.ranges import MAX_COORDINATES

__all__ = ["Beside", "keys_of", "read_beside", "rows_of_field", "scale_conditions"]


@dataclass(frozen=True)
class Beside:
    """Arrays whose rows belong to those of x; of each the training rows, or those of x_test.

    Attributes:
        cond: the conditions by name, without the label.
        x0: the source sample of each row, or None.
        mask: (N, n) bool of the elements of x that exist, or None.
    """

    cond: Mapping[str, Any]
    x0: Any = None
    mask: Any = None

    def arrays(self) -> list[Any]:
        """All arrays that are there."""
        return [a for a in (*self.cond.values(), self.x0, self.mask) if a is not None]


def keys_of(request: DataRequest) -> list[str]:
    """The names of the arrays that a request asks for by name, with those of their test rows."""
    names = [field.name for field in request.cond if field.name != "label"] + [request.pairs] * bool(request.pairs)
    return [key for name in names for key in (name, f"{name}_test")]


def read_beside(
    path: str, arrays: Mapping[str, Any], request: DataRequest
) -> tuple[tuple[Field, ...], Beside, Beside | None]:
    """The arrays beside x that a request asks for, checked against x.

    Args:
        path: the file or folder, for messages.
        arrays: by name, with `x`.
        request: names the arrays to read.

    Returns:
        The conditions that are not labels, the arrays of the rows of x, and those of the rows of x_test; None without.

    Raises:
        DataError: one line, if an array is missing, or is of another length, shape or type than it must be.
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
    """Rows of a condition as examples of its shape: numbers become vectors of one."""
    return array.reshape(-1, *field.shape)


def scale_conditions(
    path: str, fields: tuple[Field, ...], n: int, read: Callable[[str, np.ndarray], np.ndarray], most: int
) -> tuple[tuple[Affine, ...], tuple[str, ...]]:
    """The maps that standardise each feature of each condition, and notes about those that are constant.

    Args:
        path: the file or folder, for messages.
        fields: the conditions.
        n: number of training rows.
        read: from a condition's name and numbers of training rows to these rows.
        most: how many rows to take the moments of.

    Raises:
        DataError: one line, if a condition holds infinite values.
    """
    maps, notes = [], []
    for field in fields:
        rows = lambda index, field=field: rows_of_field(read(field.name, index), field)
        affine, constant = feature_scales(path, f"the condition {field.name}", n, rows, field.shape, most)
        maps.append(affine)
        if constant:
            shown = shortened(list(map(str, constant)), 8)
            notes.append(f"the condition {field.name} does not vary in its features {shown}: they keep the scale 1")
    return tuple(maps), tuple(notes)


def _pair(path: str, arrays: Mapping[str, Any], name: str, key: str) -> tuple[Any, Any]:
    """An array of the rows of x, and its test rows, of which there are as many as of x_test."""
    if name not in arrays:
        there = printable(shortened(sorted(a for a in arrays if not a.endswith("_test"))), 200)
        raise DataError(f"{path} holds no array named {name!r}, which {key} names: it has {there}")
    test, x_test = arrays.get(f"{name}_test"), arrays.get("x_test")
    if (test is None) != (x_test is None):
        here, missing = (f"{name}_test", "x_test") if x_test is None else ("x_test", f"{name}_test")
        raise DataError(f"{path}: there is {here} but no {missing}")
    for suffix, array, rows in (("", arrays[name], arrays["x"]), ("_test", test, x_test)):
        if array is not None and (array.ndim < 1 or rows is None or len(array) != len(rows)):
            raise DataError(f"{path}: {name}{suffix} must have one row for each row of x{suffix}")
    if test is not None and test.shape[1:] != arrays[name].shape[1:]:
        raise DataError(f"{path}: {name} has rows of shape {arrays[name].shape[1:]} and {name}_test {test.shape[1:]}")
    return arrays[name], test


def _field(path: str, request: FieldRequest, pair: tuple[Any, Any]) -> Field:
    """The field of an array of numbers."""
    name, shape = request.name, tuple(pair[0].shape[1:])
    for array in pair:
        if array is None or jnp.issubdtype(array.dtype, jnp.floating):
            continue
        if array.dtype.kind in "iub":
            raise DataError(
                f"{path}: the condition {name} holds whole numbers ({array.dtype}): save classes as y and name them "
                f"label, or convert numbers, {name}.astype('float32')"
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
            f"{path}: {name} holds the source of each row of x {x.shape}, so its shape cannot be {array.shape}"
        )
    floats = jnp.issubdtype(array.dtype, jnp.floating)
    if (x.dtype == np.uint8) != (array.dtype == np.uint8) or not (floats or array.dtype == np.uint8):
        raise DataError(f"{path}: x is {x.dtype} and {name} {array.dtype}: save both as uint8 images or as floats")


def _mask(path: str, arrays: Mapping[str, Any]) -> tuple[Any, Any]:
    """`mask` and `mask_test`, where x is (N, n, C) of numbers."""
    x = arrays["x"]
    if "mask" not in arrays:
        if "mask_test" in arrays:
            raise DataError(f"{path}: there is mask_test but no mask")
        return None, None
    if x.ndim != 3 or x.dtype == np.uint8:
        raise DataError(f"{path}: a mask is for sets x (N, n, C) of numbers, and x is {x.dtype} {x.shape}")
    masks = _pair(path, arrays, "mask", "x")
    for mask in masks:
        if mask is not None and (mask.dtype != np.bool_ or mask.shape[1:] != x.shape[1:2]):
            raise DataError(f"{path}: mask must be (N, {x.shape[1]}) of booleans, not {mask.shape} of {mask.dtype}")
    return masks
