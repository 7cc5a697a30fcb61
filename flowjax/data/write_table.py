"""Writes samples of a run on a table as a table: CSV, TSV or Parquet with the names and kinds of its columns."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowjax.data.affine import DataError
from flowjax.data.columns import Column
from flowjax.data.spec import DataSpec
from flowjax.extras import require
from flowjax.files import written

__all__ = ["check_writable", "write_table"]


def check_writable(spec: DataSpec) -> None:
    """Checks that samples can be written as a table, before they are drawn.

    Raises:
        DataError: if the data are not a table.
        MissingPackage: if pyarrow is not installed.
    """
    if not spec.columns or len(spec.shape) != 1:
        raise DataError(f"only samples of a table can be written as one, and the data of this run are {spec.name}")
    require("pyarrow", "data")


def write_table(path: Path, spec: DataSpec, samples: np.ndarray, cond: Mapping[str, np.ndarray]) -> None:
    """Writes samples atomically: integers as integers, and categories as their texts.

    The columns of x come first. Those that were conditions follow if they were given, and then `label`, the value of
    the class. A value that is NaN is missing.

    Args:
        path: the file, whose suffix is one of `flowjax.files.TABLES`.
        spec: the description of the table.
        samples: (N, D), in data space.
        cond: the conditions of the samples by name, in data space (`flowjax.inference.Samples.cond`).
    """
    import pyarrow
    from pyarrow import csv, parquet

    features = [column for column in spec.columns if not column.condition]
    values = {column.name: _values(column, samples[:, k]) for k, column in enumerate(features)}
    for column in spec.columns:
        if column.condition and column.name in cond:
            given = cond[column.name]
            values[column.name] = _values(column, _codes(given) if column.categories else given[:, 0])
    if "label" in cond:
        label = "label" if "label" not in values else "label of the class"
        values[label] = _labels(spec, cond["label"])
    table = pyarrow.table(values)
    with written(path) as part:
        if path.suffix == ".parquet":
            parquet.write_table(table, part)
        else:
            csv.write_csv(table, part, csv.WriteOptions(delimiter="\t" if path.suffix == ".tsv" else ","))


def _codes(rows: np.ndarray) -> np.ndarray:
    """The codes of one-hot rows; NaN where a row is NaN."""
    return np.where(np.isnan(rows).any(-1), np.nan, rows.argmax(-1))


def _values(column: Column, numbers: np.ndarray) -> Any:
    """The values of a column as a pyarrow array."""
    import pyarrow

    missing = np.isnan(numbers)
    if column.kind == "real":
        return pyarrow.array(numbers, mask=missing)
    whole = pyarrow.array(np.where(missing, 0, numbers).astype(np.int64), mask=missing)
    return whole if column.kind == "integer" else pyarrow.array(column.categories, pyarrow.string()).take(whole)


def _labels(spec: DataSpec, labels: np.ndarray) -> Any:
    """The labels as the data have them: integers, or the names of classes; missing where there is no class."""
    import pyarrow

    missing, classes = labels < 0, np.maximum(labels, 0).astype(np.int64)
    texts = spec.class_names and not spec.integer_names
    return pyarrow.array(np.array(spec.class_names)[classes] if texts else spec.label_values(classes), mask=missing)
