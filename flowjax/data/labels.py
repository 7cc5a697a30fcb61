"""Labels in arrays of the user: any integers or strings, which are numbered as classes 0, 1, ..., K - 1.

The classes are the distinct values of the training labels, in increasing order. If the values are not 0, 1, ..., K - 1
already, they are recorded as the names of the classes, integers as their decimal text.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from flowjax.archives import printable
from flowjax.data.affine import DataError
from flowjax.data.spec import MOST_CLASSES, all_integers, shortened

__all__ = ["number_labels", "read_labels"]

_Values = list[int] | list[str]


def number_labels(
    where: str, y: np.ndarray, rows: int, y_test: np.ndarray | None = None, test_rows: int = 0
) -> tuple[Int32[np.ndarray, " rows"], Int32[np.ndarray, " test_rows"] | None, tuple[str, ...], int]:
    """Numbers the classes of training labels, and gives the test labels the same numbers.

    Args:
        where: the file, for messages.
        y: the training labels: integers, floats with integer values, booleans, or strings.
        rows: the required number of training labels.
        y_test: the test labels, or None.
        test_rows: the required number of test labels.

    Returns:
        The classes of the training rows; those of the test rows, or None; the names of the classes, which are empty if
        the values are 0, 1, ... already; and the number of classes.

    Raises:
        DataError: if a label is neither an integer nor a string, there is not one label for each row, there are too
            many classes, or a test label is not among the training labels.
    """
    values, index = _distinct(where, "y", y, rows)
    if len(values) > MOST_CLASSES:
        raise DataError(f"{where}: y holds {len(values)} different labels, but the limit is {MOST_CLASSES} classes")
    plain = values == list(range(len(values)))
    names = () if plain else tuple(map(str, values))
    if y_test is None:
        return index.astype(np.int32), None, names, len(values)
    found, test_index = _distinct(where, "y_test", y_test, test_rows)
    if isinstance(values[0], str) != isinstance(found[0], str):
        raise DataError(f"{where}: one of y and y_test holds strings and the other numbers: store both in the same way")
    number: dict[Any, int] = {value: k for k, value in enumerate(values)}
    if unknown := [k for k, value in enumerate(found) if value not in number]:
        shown = printable(shortened([repr(found[k]) for k in unknown], 5), 200)
        raise DataError(
            f"{where}: y_test holds labels that no row of y has ({shown}; {np.isin(test_index, unknown).sum()} rows): "
            "leave these test rows out, or train on rows of these classes too"
        )
    return (
        index.astype(np.int32),
        np.array([number[value] for value in found], np.int32)[test_index],
        names,
        len(values),
    )


def read_labels(
    where: str, key: str, y: np.ndarray, rows: int, names: Sequence[str] = ()
) -> Int32[np.ndarray, " rows"]:
    """Converts labels, given after training, to the classes of a run.

    Args:
        where: the file, for messages.
        key: the name of the array, for messages.
        y: the labels. Strings are names of classes. Integers are names too if all names are integers (the values of the
            labels in the training data), and otherwise numbers of classes.
        rows: the required number of labels.
        names: the names of the classes, in order; empty if they have none.

    Raises:
        DataError: if a label cannot be converted, or there is not one label for each row.
    """
    values, index = _distinct(where, key, y, rows)
    number = {name: k for k, name in enumerate(names)}
    if isinstance(values[0], str) or all_integers(names):
        if unknown := [value for value in values if str(value) not in number]:
            classes = f"the classes are {printable(shortened(names), 200)}" if names else "the classes have no names"
            raise DataError(f"{where}: {key} holds the label {unknown[0]!r:.80}, but {classes}")
        return np.array([number[str(value)] for value in values], np.int32)[index]
    if wrong := [value for value in values if not 0 <= int(value) < MOST_CLASSES]:
        raise DataError(f"{where}: {key} must hold labels 0, 1, ..., but one label is {wrong[0]}")
    return np.array(values, np.int32)[index]


def _distinct(where: str, key: str, y: np.ndarray, rows: int) -> tuple[_Values, np.ndarray]:
    """Returns the distinct labels in increasing order, and the index of the label of each row."""
    if y.shape != (rows,):
        raise DataError(f"{where}: {key} must hold one label for each of the {rows} rows, but its shape is {y.shape}")
    if y.dtype.kind == "S":
        y = np.char.decode(y, "utf-8", "replace")
    if y.dtype.kind not in "biufU":
        raise DataError(f"{where}: {key} must hold integers or strings as labels, not {y.dtype}")
    if y.dtype.kind == "f" and not (whole := np.isfinite(y) & (y == np.floor(y))).all():
        raise DataError(f"{where}: {key} must hold one integer for each row, but one label is {y[~whole][0]}")
    values, index = np.unique(y, return_inverse=True)
    return [str(v) for v in values] if y.dtype.kind == "U" else [int(v) for v in values], index
