"""Tables of the user: CSV, TSV and Parquet files (`read_table`), whose columns are real, integer or a category.

Real columns are standardised. Integers, and the codes of categories in order of frequency, are dequantised
(`data.integers`). The columns that `data.cond` names are conditions: a number becomes a vector of length 1, a category
a one-hot vector, and the column `label` (or `y` if there is no column `label`) holds classes. A tenth of the rows is
held out, as for arrays.
"""

from typing import Any

import numpy as np

from flowjax.archives import printable
from flowjax.arguments import separate
from flowjax.data.affine import DataError
from flowjax.data.arrays import open_arrays
from flowjax.data.columns import Column, one_hot
from flowjax.data.dataset import Dataset
from flowjax.data.read_table import check_has, read_table, read_values
from flowjax.data.requests import DataRequest
from flowjax.data.spec import shortened

__all__ = ["open_table"]


def open_table(request: DataRequest, drop: str = "") -> Dataset:
    """Opens a table as a data set of vectors (N, D).

    Args:
        request: its path is a .csv, .tsv or .parquet file.
        drop: names of columns to leave out, separated by commas.

    Raises:
        DataError: if the file cannot be read, a column has missing values or a type that cannot be used, or a column
            that `data.cond` or `drop` names does not exist.
    """
    path = request.path
    if not path:
        raise DataError("data.name is table, so data.path must be a file: --config.data.path=mine.csv")
    if request.pairs:
        raise DataError(f"data.pairs is {request.pairs!r}, but a table has no pairs: use arrays in an .npz file")
    table = read_table(path)
    names = table.column_names
    dropped = [name for name in separate(drop) if name]
    label = next((name for name in ("label", "y") if name in names), "label")
    asked = {field.name: label if field.name == "label" else field.name for field in request.cond}
    for key, wanted in (("data.cond", asked.values()), ("drop", dropped)):
        check_has(path, names, wanted, key)
    read = {name: read_values(path, name, table.column(name)) for name in names if name not in dropped}
    features = [name for name in read if name not in asked.values()]
    if not features:
        raise DataError(f"{path} has no column that is not a condition or dropped: there is nothing to learn")
    required = [*features, label] if "label" in asked else features
    if missing := {name: n for name in required if (n := int(np.isnan(read[name].values).sum()))}:
        counted = shortened([f"{n:,} in the column {printable(name)}" for name, n in missing.items()], 5)
        raise DataError(
            f"{path} has missing values, {counted}: fill them in, or remove these rows; only columns of data.cond "
            "other than the label may have missing values"
        )
    arrays: dict[str, Any] = {"x": np.stack([read[name].values for name in features], -1)}
    columns = [Column(name, read[name].kind, read[name].categories) for name in features]
    for field, name in asked.items():
        one = read[name]
        if field == "label":
            texts = np.array(one.categories)
            arrays["y"] = texts[one.values.astype(int)] if one.kind == "category" else one.values
            continue
        columns.append(Column(name, one.kind, one.categories, condition=True))
        arrays[name] = one_hot(one.values, len(one.categories)) if one.kind == "category" else one.values
    return open_arrays("table", request, arrays, (_note(path, columns, len(table)),), tuple(columns))


def _note(path: str, columns: list[Column], rows: int) -> str:
    """Returns a line that says how each column is read."""
    shown = [
        printable(column.name)
        + (f" ({len(column.categories)} categories)" if column.categories else f" ({column.kind})")
        + (" as a condition" if column.condition else "")
        for column in columns
    ]
    return f"{path}: {rows:,} rows; columns: {shortened(shown)}"
