"""Samples of tables as tables: what is written is read back, by pyarrow and as a data set."""

import dataclasses

import numpy as np
import pytest

from flowjax.conditions import Field
from flowjax.data import Affine, DataError, DataSpec, open_dataset
from flowjax.data.columns import Column
from flowjax.data.write_table import check_writable, write_table
from flowjax.files import TABLES

pytest.importorskip("pyarrow")
from pyarrow import csv, parquet

SPEC = DataSpec(
    "table",
    (3,),
    Affine((1.0, 2.0, 1.0), (0.0, 0.0, 0.0)),
    num_classes=2,
    class_names=("-3", "10"),
    conditions=(Field("dose", "vector", (1,)), Field("kind", "vector", (2,))),
    condition_maps=(Affine(), Affine()),
    integers=(None, (-5, 2**20), (0, 1)),
    columns=(
        Column("size, in m", "real"),
        Column("count", "integer"),
        Column("colour", "category", ("red", 'a "blue"')),
        Column("dose", "real", condition=True),
        Column("kind", "category", ("u", "v"), condition=True),
    ),
)
SAMPLES = np.array([[0.1, -5, 1], [1e-30, 2**20, 0], [-3e5, 0, 1]], np.float32)
COND = {
    "dose": np.array([[0.5], [np.nan], [1.5]]),
    "kind": np.array([[0.0, 1.0], [np.nan, np.nan], [1.0, 0.0]]),
    "label": np.array([1, -1, 0], np.int32),
}


@pytest.mark.parametrize("suffix", TABLES)
def test_columns_have_names_kinds_and_texts(tmp_path, suffix):
    """The shortest decimal text of a float32 is read back as the same float32."""
    path = tmp_path / "new" / f"a{suffix}"
    write_table(path, SPEC, SAMPLES, COND)
    if suffix == ".parquet":
        table = parquet.read_table(path)
    else:
        table = csv.read_csv(path, parse_options=csv.ParseOptions(delimiter="\t" if suffix == ".tsv" else ","))
    assert table.column_names == ["size, in m", "count", "colour", "dose", "kind", "label"]
    found = table.to_pydict()
    np.testing.assert_array_equal(np.float32(found["size, in m"]), SAMPLES[:, 0])
    assert found["count"] == [-5, 2**20, 0]
    assert str(table.schema.field("count").type) == "int64"
    assert found["colour"] == ['a "blue"', "red", 'a "blue"']
    assert found["dose"] == [0.5, None, 1.5]
    assert [one or None for one in found["kind"]] == ["v", None, "u"]
    assert found["label"] == [10, None, -3]
    assert list(path.parent.iterdir()) == [path]


def test_samples_are_a_data_set_again(tmp_path):
    write_table(tmp_path / "a.csv", SPEC, SAMPLES, {})
    columns = open_dataset("", str(tmp_path / "a.csv")).spec.columns
    assert [(one.name, one.kind) for one in columns] == [
        ("size, in m", "real"),
        ("count", "integer"),
        ("colour", "category"),
    ]


def test_names_of_classes_and_classes_without_names(tmp_path):
    for names, expected in ((("x", "y"), ["y", None, "x"]), ((), [1, None, 0])):
        write_table(tmp_path / "a.parquet", dataclasses.replace(SPEC, class_names=names), SAMPLES, COND)
        assert parquet.read_table(tmp_path / "a.parquet").to_pydict()["label"] == expected


def test_only_tables_can_be_written():
    check_writable(SPEC)
    with pytest.raises(
        DataError, match="only samples of a table can be written as one, and the data of this run are npz"
    ):
        check_writable(DataSpec("npz", (2,)))
