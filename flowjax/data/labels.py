"""Labels in arrays of the user: integers, or strings that become class names."""

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int32

from flowjax.archives import printable
from flowjax.data.affine import DataError
from flowjax.data.spec import MOST_CLASSES, shortened

__all__ = ["is_text", "names_of", "read_labels"]

_RENUMBER = "number them with numpy.unique(y, return_inverse=True)[1]"


def is_text(y: np.ndarray) -> bool:
    """Whether labels are strings."""
    return y.dtype.kind in "US"


def names_of(arrays: Iterable[np.ndarray | None]) -> tuple[str, ...]:
    """Returns the distinct strings in arrays of labels, sorted; empty if no array holds strings."""
    texts = [_texts(y) for y in arrays if y is not None and is_text(y)]
    return tuple(str(name) for name in np.unique(np.concatenate(texts))) if texts else ()


def read_labels(
    where: str, key: str, y: np.ndarray, rows: int, names: Sequence[str] = ()
) -> Int32[np.ndarray, " rows"]:
    """Converts labels of any supported dtype to integers 0, 1, ....

    Args:
        where: the file, for messages.
        key: the name of the array, for messages.
        y: the labels: integers, floats with integer values, booleans, or strings.
        rows: the required number of labels.
        names: the class names, in order, for labels that are strings.

    Raises:
        DataError: if a label cannot be converted without loss, or there is not one label for each row.
    """
    if y.shape != (rows,):
        raise DataError(f"{where}: {key} must hold one label for each of the {rows} rows, but its shape is {y.shape}")
    if is_text(y):
        return _numbered(where, key, _texts(y), names)
    if y.dtype.kind not in "biuf":
        raise DataError(f"{where}: {key} must hold integers or strings as labels, not {y.dtype}")
    if y.dtype.kind == "f" and not np.all(y == np.floor(y)):  # also finds NaN, which is not equal to itself
        wrong = y[~(y == np.floor(y))][0]
        raise DataError(f"{where}: {key} must hold one integer for each row, but one label is {wrong}")
    low, high = y.min(), y.max()
    if low < 0:
        raise DataError(f"{where}: {key} must hold labels 0, 1, ..., but one label is {low}")
    if high >= MOST_CLASSES:
        raise DataError(
            f"{where}: {key} holds the label {int(high) if high < 2**64 else high}, but the largest possible label is "
            f"{MOST_CLASSES - 1}: {_RENUMBER}"
        )
    return y.astype(np.int32)


def _numbered(where: str, key: str, y: np.ndarray, names: Sequence[str]) -> np.ndarray:
    if len(names) > MOST_CLASSES:
        raise DataError(f"{where}: the labels are {len(names)} different strings, but the limit is {MOST_CLASSES}")
    known, index = np.unique(y, return_inverse=True)
    number = {name: k for k, name in enumerate(names)}
    if unknown := [str(name) for name in known if str(name) not in number]:
        classes = f"the classes are {printable(shortened(names), 200)}" if names else "the classes have no names"
        raise DataError(f"{where}: {key} holds the label {unknown[0][:80]!r}, but {classes}")
    return np.array([number[str(name)] for name in known], np.int32)[index]


def _texts(y: np.ndarray) -> np.ndarray:
    """Decodes labels that are stored as bytes."""
    return np.char.decode(y, "utf-8", "replace") if y.dtype.kind == "S" else y
