"""Tables of the user: CSV, TSV and Parquet files, read with pyarrow, whose columns are real, integer or a category.

Real columns are standardised. Integers, and the codes of categories in order of frequency, are dequantised
(`data.integers`). The columns that `data.cond` names are conditions: a number becomes a vector of length 1, a category
a one-hot vector, and the column `label` (or `y` if there is no column `label`) holds classes. A tenth of the rows is
held out, as for arrays.
"""

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowjax.archives import ArchiveError, check_limit, check_regular, one_line, printable
from flowjax.arguments import separate
from flowjax.data.affine import DataError
from flowjax.data.arrays import open_arrays
from flowjax.data.columns import Column, ColumnKind, one_hot
from flowjax.data.dataset import Dataset
from flowjax.data.record import LARGEST_INTEGER
from flowjax.data.requests import DataRequest
from flowjax.data.spec import shortened
from flowjax.extras import require

__all__ = ["MOST_CATEGORIES", "open_table"]

MOST_CATEGORIES = 1000
"""The largest number of categories of a column."""


class _Read(NamedTuple):
    """The values of a column: float64 numbers, the codes of a category; NaN where a value is missing."""

    kind: ColumnKind
    values: np.ndarray
    categories: tuple[str, ...] = ()


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
    table = _table(path)
    names = _checked_names(path, table.column_names)
    dropped = [name for name in separate(drop) if name]
    label = next((name for name in ("label", "y") if name in names), "label")
    asked = {field.name: label if field.name == "label" else field.name for field in request.cond}
    for key, wanted in (("data.cond", asked.values()), ("drop", dropped)):
        if absent := [name for name in wanted if name not in names]:
            has = printable(shortened(names), 300)
            raise DataError(f"{path} has no column {printable(absent[0])!r}, which {key} names: it has {has}")
    read = {name: _column(path, name, table.column(name)) for name in names if name not in dropped}
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


def _table(path: str) -> Any:
    """Reads a file as a pyarrow table."""
    require("pyarrow", "data")
    place = Path(path)
    try:
        check_regular(place)
        return _parquet(place) if place.suffix.lower() in (".parquet", ".pq") else _csv(place)
    except ArchiveError as error:
        text = str(error)
        raise DataError(text if path in text else f"{path}: {text}") from None
    except DataError:
        raise
    except Exception as error:  # pyarrow can raise any exception on damaged files
        raise DataError(f"{path} cannot be read: {one_line(error)}") from None


def _parquet(place: Path) -> Any:
    from pyarrow import parquet

    with parquet.ParquetFile(place) as file:
        meta, size = file.metadata, place.stat().st_size
        unpacked = sum(max(0, meta.row_group(i).total_byte_size) for i in range(meta.num_row_groups))
        check_limit(max(unpacked, 8 * meta.num_rows * meta.num_columns), size)
        return file.read()


def _csv(place: Path) -> Any:
    import pyarrow
    from pyarrow import csv as arrow

    delimiter = "\t" if place.suffix.lower() == ".tsv" else ","
    whole = min(place.stat().st_size + 1, 2**31 - 1)  # one block, so that the type of a column fits all of its values
    try:
        return arrow.read_csv(
            place,
            arrow.ReadOptions(block_size=whole),
            arrow.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            arrow.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False),
        )
    except pyarrow.ArrowInvalid as error:
        if line := _ragged_line(place, delimiter):
            raise DataError(f"{place}: {line}") from None
        raise DataError(f"{place} cannot be read: {one_line(error)}") from None


def _ragged_line(place: Path, delimiter: str) -> str:
    """Describes the first line of a text file that has another number of values than the first line, if there is one.

    Raises:
        csv.Error: if the file is no text table.
    """
    with place.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = csv.reader(file, delimiter=delimiter)
        expected = next((len(row) for row in rows if row), 0)
        for row in rows:
            if row and len(row) != expected:
                return f"line {rows.line_num} has {len(row)} values, but the first line names {expected} columns"
    return ""


def _checked_names(path: str, names: list[str]) -> list[str]:
    """Returns the names of the columns, after checking that the first line of the file holds names."""
    if len(names) == 1 and any(mark in names[0] for mark in ";\t"):
        raise DataError(
            f"{path} has one column, {printable(names[0])!r}: separate values by commas (tabs in a .tsv file)"
        )
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{path} has two columns named {printable(twice[0])!r}: give them different names")
    if any(not name.strip() or len(name) > 1000 for name in names):
        k = next(k for k, name in enumerate(names) if not name.strip() or len(name) > 1000)
        raise DataError(f"{path}: column {k + 1} needs a name of 1 to 1000 characters in the first line")
    if names and all(map(_is_number, names)):
        shown = printable(shortened(names, 5))
        raise DataError(f"{path}: the first line must hold the names of the columns, but it holds numbers: {shown}")
    return names


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _column(path: str, name: str, column: Any) -> _Read:
    """Reads a column by its pyarrow type."""
    import pyarrow
    from pyarrow import types

    where, kind = f"{path}: the column {printable(name)}", column.type
    if types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if types.is_null(kind) or column.null_count == len(column):
        raise DataError(f"{where} has no values: leave it out with data.name=\"table(drop='...')\"")
    if types.is_boolean(kind) or types.is_string(kind) or types.is_large_string(kind):
        return _category(where, column.cast(pyarrow.string()))
    if types.is_integer(kind):
        present = column.drop_null().to_numpy()
        if max(abs(int(present.min())), abs(int(present.max()))) > LARGEST_INTEGER:
            raise DataError(
                f"{where} holds integers beyond 2^53, which float64 rounds: leave it out, or store it as real"
            )
        return _Read("integer", _numbers(column))
    if types.is_floating(kind) or types.is_decimal(kind):
        values = _numbers(column)
        if np.isinf(values).any():
            raise DataError(f"{where} holds {np.isinf(values).sum():,} infinite values: remove or clip them")
        return _Read("real", values)
    raise DataError(
        f"{where} has the type {kind}: convert it to numbers or texts, or leave it out with "
        "data.name=\"table(drop='...')\""
    )


def _numbers(column: Any) -> np.ndarray:
    """Returns numbers as float64, NaN where a value is missing."""
    import pyarrow

    return np.asarray(column.cast(pyarrow.float64(), safe=False).to_numpy(), np.float64)


def _category(where: str, column: Any) -> _Read:
    """Codes texts in order of frequency, and texts of the same frequency in alphabetical order."""
    counts = {entry["values"]: entry["counts"] for entry in column.drop_null().value_counts().to_pylist()}
    if len(counts) > MOST_CATEGORIES:
        raise DataError(
            f"{where} holds {len(counts):,} different texts, but the limit is {MOST_CATEGORIES} categories: leave it "
            "out with data.name=\"table(drop='...')\", or group them"
        )
    categories = tuple(sorted(counts, key=lambda text: (-counts[text], text)))
    code: dict[Any, float] = {text: float(k) for k, text in enumerate(categories)}
    code[None] = np.nan
    return _Read("category", np.array([code[text] for text in column.to_pylist()]), categories)
