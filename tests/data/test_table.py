"""Tables: how columns are read, records of columns, exactness against NumPy, and every refusal."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.conditions import Field
from flowjax.data import Affine, DataError, DataSpec, open_dataset
from flowjax.data.columns import Column, read_column

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import csv as arrow_csv  # noqa: E402
from pyarrow import parquet  # noqa: E402

RNG = np.random.default_rng(0)
N = 300
COLUMNS = {
    "size": 1e5 * RNG.normal(size=N) + 3e5,
    "dose": 1e-4 * RNG.normal(size=N),
    "count": RNG.poisson(2.0, N),
    "kind, of": np.array(["rare", "usual", "some"])[RNG.choice(3, N, p=[0.1, 0.6, 0.3])],
    "sold": RNG.random(N) < 0.3,
}
ORDER = ("usual", "some", "rare")


def write(folder, suffix=".csv", **columns):
    """Writes a table with pyarrow; returns the value of data.path."""
    path = folder / f"a{suffix}"
    table = pyarrow.table(columns)
    if suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        arrow_csv.write_csv(table, path, arrow_csv.WriteOptions(delimiter="\t" if suffix == ".tsv" else ","))
    return str(path)


def text(folder, content, name="a.csv"):
    (folder / name).write_text(content)
    return str(folder / name)


def refused(path, message, name="", **request):
    with pytest.raises(DataError, match=message) as error:
        open_dataset(name, path, **request)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_columns_are_real_integer_or_a_category(tmp_path, suffix):
    """Codes are in order of frequency. The maps are those of NumPy in float64, with 1/2 and 1/12 for dequantisation. In
    CSV, pyarrow writes the shortest text that is read back as the same float64."""
    dataset = open_dataset("", write(tmp_path, suffix, **COLUMNS))
    spec = dataset.spec
    assert spec.columns == (
        Column("size", "real"),
        Column("dose", "real"),
        Column("count", "integer"),
        Column("kind, of", "category", ORDER),
        Column("sold", "category", ("false", "true")),
    )
    assert spec.integers == (None, None, (int(COLUMNS["count"].min()), int(COLUMNS["count"].max())), (0, 2), (0, 1))
    codes = np.array([ORDER.index(one) for one in COLUMNS["kind, of"]])
    x = np.stack([COLUMNS["size"], COLUMNS["dose"], COLUMNS["count"], codes, COLUMNS["sold"]], -1)
    trained = np.delete(x, dataset.test_rows, 0)
    whole = np.array([0, 0, 1, 1, 1])
    np.testing.assert_allclose(spec.normalise.scale, np.sqrt(trained.var(0) + whole / 12), rtol=1e-12)
    np.testing.assert_allclose(spec.normalise.shift, trained.mean(0) + whole / 2, rtol=1e-9, atol=1e-12)
    assert len(dataset.test) == N // 10
    np.testing.assert_allclose(dataset.test, x[dataset.test_rows], rtol=1e-6)
    rows = spec.prepare(jax.random.key(0), jnp.asarray(dataset.arrays().x1))
    back = spec.finish(rows)
    np.testing.assert_array_equal(back[:, 2:], trained[:, 2:])
    np.testing.assert_allclose(back[:, :2], trained[:, :2], atol=1e-6 * 4e5, rtol=1e-5)
    assert DataSpec.from_record(json.loads(json.dumps(spec.to_record()))) == spec
    assert "'" not in dataset.notes[0]
    assert "size (real), dose (real), count (integer), kind, of (3 categories), sold (2 categories)" in dataset.notes[0]


def test_conditions_are_vectors_and_categories_one_hot(tmp_path):
    """Missing values of conditions are NaN, which means not given."""
    dose = np.where(np.arange(N) % 7 == 0, np.nan, COLUMNS["dose"])
    kind = [None if i % 5 == 0 else str(one) for i, one in enumerate(COLUMNS["kind, of"])]
    path = write(tmp_path, size=COLUMNS["size"], dose=dose, count=COLUMNS["count"], kind=kind)
    dataset = open_dataset("table", path, cond=("dose", "kind", "count"))
    spec, rows = dataset.spec, dataset.test_rows
    assert spec.shape == (1,)
    assert [(f.name, f.kind, f.shape) for f in spec.fields] == [
        ("dose", "vector", (1,)), ("kind", "vector", (3,)), ("count", "vector", (1,))
    ]  # fmt: skip
    np.testing.assert_allclose(dataset.test_cond["dose"][:, 0], dose[rows], rtol=1e-12)
    np.testing.assert_array_equal(dataset.test_cond["count"][:, 0], COLUMNS["count"][rows])
    expected = [[np.nan] * 3 if kind[i] is None else [float(kind[i] == one) for one in ORDER] for i in rows]
    np.testing.assert_array_equal(dataset.test_cond["kind"], expected)
    given = spec.encode_cond({"kind": np.array(["some", ""])})["kind"]
    np.testing.assert_array_equal(given[:1], spec.encode_cond({"kind": np.array([[0.0, 1.0, 0.0]])})["kind"])
    assert np.isnan(given[1]).all()
    with pytest.raises(DataError, match="the condition kind has no category 'odd': it has usual, some, rare"):
        spec.encode_cond({"kind": np.array(["odd"])})
    assert DataSpec.from_record(json.loads(json.dumps(spec.to_record()))) == spec


@pytest.mark.parametrize("name", ["label", "y"])
def test_a_label_is_a_column_unless_it_is_a_condition(tmp_path, name):
    path = write(tmp_path, size=COLUMNS["size"], **{name: COLUMNS["kind, of"]})
    plain = open_dataset("", path).spec
    assert (plain.shape, plain.num_classes, plain.columns[1].categories) == ((2,), 0, ORDER)
    dataset = open_dataset("", path, cond=("label",))
    assert (dataset.spec.shape, dataset.spec.class_names) == ((1,), tuple(sorted(ORDER)))
    names = np.array(dataset.spec.class_names)
    np.testing.assert_array_equal(names[dataset.test_labels], COLUMNS["kind, of"][dataset.test_rows])


def test_integers_as_labels_and_one_scale_for_all(tmp_path):
    path = write(tmp_path, size=COLUMNS["size"], dose=COLUMNS["dose"], label=10 * COLUMNS["count"] - 20)
    spec = open_dataset("", path, cond=("label",), normalise="global").spec
    assert spec.class_names[:3] == ("-20", "-10", "0")
    assert isinstance(spec.normalise.scale, float)
    mixed = open_dataset("", path, normalise="global").spec
    assert mixed.normalise.scale[0] == mixed.normalise.scale[1] < mixed.normalise.scale[2]


def test_columns_can_be_left_out(tmp_path):
    path = write(tmp_path, **COLUMNS)
    spec = open_dataset("table(drop='size, dose')", path).spec
    assert [column.name for column in spec.columns] == ["count", "kind, of", "sold"]
    assert spec.dtype == np.int64
    refused(path, "has no column 'sizes', which drop names: it has size, dose", "table(drop='sizes')")


def test_quoted_texts_and_lines_inside_of_them(tmp_path):
    path = text(tmp_path, '\ufeffa,b\n1.5,"x\ny"\n2.5,"NA"\n3.5,"z, z"\n4.5,"NA"\n')
    assert open_dataset("", path).spec.columns[1].categories == ("NA", "x\ny", "z, z")


def test_types_of_parquet(tmp_path):
    kinds = pyarrow.array(["a", "b", "a", "a"]).dictionary_encode()
    tens = pyarrow.array([1, 2, 3, 4]).cast(pyarrow.decimal128(25, 2))
    spec = open_dataset("", write(tmp_path, ".parquet", a=kinds, b=tens, c=np.float32([1, 2, 3, 5]))).spec
    assert [(column.kind, column.categories) for column in spec.columns] == [
        ("category", ("a", "b")), ("real", ()), ("real", ())
    ]  # fmt: skip


def test_constant_and_remarkable_columns_are_named(tmp_path):
    odd = np.concatenate([RNG.normal(size=N - 1), [1e9]])
    notes = open_dataset("", write(tmp_path, odd=odd, fixed=np.ones(N), count=np.full(N, 3))).notes
    assert any("do not vary keep the scale 1: fixed, count" in note for note in notes)
    assert any("values of the column odd lie between" in note for note in notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n3\n5,6\n", "line 3 has 1 values, but the first line names 2 columns"),
        ('a,b\n1,"x\nx"\n\n3,4,5\n5,6\n', "line 5 has 3 values, but the first line names 2 columns"),
        ("a,b\n1,\n,2\n3,\n", r"missing values, 1 in the column a, 2 in the column b: fill them in"),
        ("a,b\n1,x\n2,NA\n3,\n", "2 in the column b"),
        ("a,b\n1,\n2,\n", "the column b has no values: leave it out"),
        ("a,a\n1,2\n3,4\n", "two columns named 'a'"),
        ("a,\n1,2\n3,4\n", "column 2 needs a name"),
        ("1.5,2\n1,2\n3,4\n", "the first line must hold the names of the columns, but it holds numbers: 1.5, 2"),
        ("a;b\n1;2\n3;4\n", "has one column, 'a;b': separate values by commas"),
        ("a,b\n1,2020-01-01\n3,2020-01-02\n", r"the column b has the type date32.* convert it to numbers or texts"),
        ("a,b\n1,inf\n3,1.5\n", "the column b holds 1 infinite values"),
        ("a,b\n1,2\n", "N >= 2"),
        ("a,b\n", "has no values"),
        ("", "cannot be read"),
        (f"a,b\n1,{2**60}\n3,4\n", "the column b holds integers beyond"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(tmp_path, content, message):
    refused(text(tmp_path, content), message)


def test_requests_that_do_not_fit(tmp_path, monkeypatch):
    path = write(tmp_path, a=np.arange(20.0), b=np.arange(20), c=[f"t{i}" for i in range(20)])
    refused(path, "has no column 'd', which data.cond names: it has a, b, c", cond=("d",))
    refused(path, "has no column 'label', which data.cond names", cond=("label",))
    refused(path, "a table has no pairs", pairs="b")
    refused(path, "there is nothing to learn", cond=("a", "b", "c"))
    refused("", "data.name is table, so data.path must be a file", "table")
    refused(str(tmp_path / "none.csv"), "no such file", "table")
    refused(path, "use data.name=table, or leave data.name empty", "npz")
    monkeypatch.setattr("flowjax.data.read_table.MOST_CATEGORIES", 19)
    refused(path, "the column c holds 20 different texts, but the limit is 19 categories")
    missing = write(tmp_path, a=np.arange(4.0), label=pyarrow.array([1, None, 2, 2]))
    refused(missing, "1 in the column label", cond=("label",))


def test_damaged_parquet_and_bombs_are_refused(tmp_path, monkeypatch):
    path = write(tmp_path, ".parquet", a=np.zeros(5000), b=np.zeros(5000))
    monkeypatch.setenv("FLOWJAX_UNPACKED_BYTES", "79999")
    refused(path, "unpack to .*, more than the limit of 79999")
    monkeypatch.delenv("FLOWJAX_UNPACKED_BYTES")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    refused(path, "cannot be read")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    from flowjax.extras import MissingPackage

    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingPackage, match=r"pyarrow is not installed: pip install 'flowjax-research\[data\]'"):
        open_dataset("", text(tmp_path, "a\n1\n"))


SPEC = DataSpec(
    "table",
    (2,),
    Affine((1.0, 2.0), (0.0, 0.0)),
    conditions=(Field("kind", "vector", (2,)),),
    condition_maps=(Affine(),),
    integers=(None, (0, 1)),
    columns=(
        Column("a", "real"),
        Column("b", "category", ("x", "y")),
        Column("kind", "category", ("u", "v"), condition=True),
    ),
)
RECORD = SPEC.to_record()["columns"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": ""}, "a column: name is ''; it must be a text that is not empty"),
        ({"name": 3}, "a column: name is 3"),
        ({"kind": "date"}, "a column: kind is 'date'; it must be one of real, integer, category"),
        ({"kind": []}, "a column: kind is"),
        ({"categories": ["x", "x"]}, "a column: categories is"),
        ({"categories": ["x", 1]}, "a column: categories is"),
        ({"categories": []}, "a category cannot have 0 categories"),
        ({"kind": "real"}, "a real cannot have 2 categories"),
        ({"condition": 1}, "a column: condition is 1; it must be true or false"),
        ({"categories": ["x", "y", "z"]}, "b is category, but its integers are"),
        ({"kind": "real", "categories": []}, "b is real, but its integers are"),
        ({"name": "a"}, "have the same name"),
        ({"condition": True}, "describe 1 coordinates for examples of shape"),
    ],
)
def test_a_damaged_record_of_a_column_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        DataSpec.from_record(SPEC.to_record() | {"columns": [RECORD[0], RECORD[1] | change, RECORD[2]]})


def test_records_of_conditions_and_of_earlier_versions():
    assert DataSpec.from_record(SPEC.to_record()) == SPEC
    for change in ({"name": "other"}, {"categories": ["u", "v", "w"]}, {"kind": "real", "categories": []}):
        with pytest.raises(DataError, match="is not a condition of the shape"):
            DataSpec.from_record(SPEC.to_record() | {"columns": [*RECORD[:2], RECORD[2] | change]})
    with pytest.raises(DataError, match="columns is"):
        DataSpec.from_record(SPEC.to_record() | {"columns": [1]})
    with pytest.raises(DataError, match="kind is missing"):
        read_column({"name": "a"})
    record = SPEC.to_record()
    del record["columns"]
    assert DataSpec.from_record(record) == dataclasses.replace(SPEC, columns=())


def test_a_text_in_a_column_of_numbers_is_named(tmp_path):
    lines = ["a,b", *(f"{k},{k / 7}" for k in range(40)), "40,abc"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match="the text 'abc' in row 41 of the data"):
        open_dataset("table", str(tmp_path / "t.csv"))
