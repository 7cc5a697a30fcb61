"""Reads the user's tables with pyarrow: CSV, TSV and Parquet files, and the values of their columns."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowjax.archives import ArchiveError, check_limit, check_regular, one_line, printable
from flowjax.data.affine import DataError
from flowjax.data.columns import ColumnKind
from flowjax.data.record import LARGEST_INTEGER
from flowjax.data.spec import shortened
from flowjax.extras import require

__all__ = ["MOST_CATEGORIES", "Values", "check_has", "read_table", "read_values"]

MOST_CATEGORIES = 1000
"""The largest number of categories of a column."""


class Values(NamedTuple):
    """The values of a column.

    Attributes:
        kind: "real", "integer" or "category".
        values: float64 numbers, or the codes of a category; NaN where a value is missing.
        categories: the text of each code of a category.
    """

    kind: ColumnKind
    values: np.ndarray
    categories: tuple[str, ...] = ()


def read_table(path: str) -> Any:
    """Reads a file as a pyarrow table whose columns have different names.

    Raises:
        DataError: if the file cannot be read, or its first line does not hold the names of the columns.
        MissingPackage: if pyarrow is not installed.
    """
    require("pyarrow", "data")
    place = Path(path)
    try:
        check_regular(place)
        table = _parquet(place) if place.suffix.lower() in (".parquet", ".pq") else _csv(place)
    except ArchiveError as error:
        text = str(error)
        raise DataError(text if path in text else f"{path}: {text}") from None
    except DataError:
        raise
    except Exception as error:  # pyarrow can raise any exception on damaged files
        raise DataError(f"{path} cannot be read: {one_line(error)}") from None
    _check_names(path, table.column_names)
    return table


def check_has(path: str, names: list[str], wanted: Iterable[str], key: str) -> None:
    """Raises a DataError if a column of `wanted`, which `key` names, is not in the table."""
    if absent := [name for name in wanted if name not in names]:
        has = printable(shortened(names), 300)
        raise DataError(f"{path} has no column {printable(absent[0])!r}, which {key} names: it has {has}")


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


def _check_names(path: str, names: list[str]) -> None:
    """Checks that the first line of the file holds the names of the columns."""
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


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_values(path: str, name: str, column: Any) -> Values:
    """Reads a column by its pyarrow type.

    Args:
        path, name: of the file and the column, for messages.
        column: the pyarrow column.

    Raises:
        DataError: if the column has no values, infinite values, a type that cannot be used, or too many categories.
    """
    import pyarrow
    from pyarrow import types

    where, kind = f"{path}: the column {printable(name)}", column.type
    if types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if types.is_null(kind) or column.null_count == len(column):
        raise DataError(f"{where} has no values: leave it out with drop='...' in data.name")
    if types.is_boolean(kind) or types.is_string(kind) or types.is_large_string(kind):
        return _category(where, column.cast(pyarrow.string()))
    if types.is_integer(kind):
        present = column.drop_null().to_numpy()
        if max(abs(int(present.min())), abs(int(present.max()))) > LARGEST_INTEGER:
            raise DataError(
                f"{where} holds integers beyond 2^53, which float64 rounds: leave it out, or store it as real"
            )
        return Values("integer", _numbers(column))
    if types.is_floating(kind) or types.is_decimal(kind):
        values = _numbers(column)
        if np.isinf(values).any():
            raise DataError(f"{where} holds {np.isinf(values).sum():,} infinite values: remove or clip them")
        return Values("real", values)
    raise DataError(
        f"{where} has the type {kind}: convert it to numbers or texts, or leave it out with drop='...' in data.name"
    )


def _numbers(column: Any) -> np.ndarray:
    """Returns numbers as float64, NaN where a value is missing."""
    import pyarrow

    return np.asarray(column.cast(pyarrow.float64(), safe=False).to_numpy(), np.float64)


def _category(where: str, column: Any) -> Values:
    """Codes texts in order of frequency, and texts of the same frequency in alphabetical order."""
    counts = {entry["values"]: entry["counts"] for entry in column.drop_null().value_counts().to_pylist()}
    numbers = {text for text in counts if _is_number(text)}
    if 10 < len(numbers) < len(counts) and len(numbers) > 0.9 * len(counts):
        other = next(text for text in counts if text not in numbers)
        row = column.to_pylist().index(other) + 1
        raise DataError(
            f"{where} holds numbers, and the text {printable(other, 50)!r} in row {row} of the data: mend it, leave it "
            "empty if the value is missing, or write all values as texts such as 'c12' if they are categories"
        )
    if len(counts) > MOST_CATEGORIES:
        raise DataError(
            f"{where} holds {len(counts):,} different texts, but the limit is {MOST_CATEGORIES} categories: leave it "
            "out with drop='...' in data.name, or group them"
        )
    categories = tuple(sorted(counts, key=lambda text: (-counts[text], text)))
    code: dict[Any, float] = {text: float(k) for k, text in enumerate(categories)}
    code[None] = np.nan
    return Values("category", np.array([code[text] for text in column.to_pylist()]), categories)
