"""The user's own arrays: scales, types, labels and held-out rows, against NumPy in float64."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from scipy import stats

import flowjax as package
from flowjax.data import Affine, DataError, DataSpec, open_dataset
from flowjax.data.labels import read_labels
from flowjax.data.stream import Stream
from flowjax.inference import sampling, scoring
from flowjax.inference.choose import SolverSettings
from tests.data.stored import store

RNG = np.random.default_rng(0)
NORMAL = RNG.normal(size=(400, 2))


def opened(folder, kind="npz", normalise="", **arrays):
    return open_dataset(kind, store(folder, kind, **arrays), normalise=normalise)


# Scales


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("scale", "shift"), [(1.0, 1.7e9), (1e20, 0.0), (1e-30, 0.0), (1e-35, 1.0), (3e50, -2e60)])
def test_scales_and_shifts_of_any_size_are_kept(tmp_path, monkeypatch, streamed, scale, shift):
    """The moments are NumPy's in float64. In model space the rows are (x - mean) / deviation, rounded to float32: off
    by 2^-24 of at most 4, and by the rounding of x itself in float64; back in data space by as much in units of the
    scale. Where float64 cannot tell the values apart, they are constant."""
    if streamed:
        monkeypatch.setattr("flowjax.data.dataset.RESIDENT_BYTES", 0)
    x = NORMAL * scale + shift
    dataset = opened(tmp_path / "a", "npy", x=x)
    trained = np.delete(x, dataset.test_rows, 0)
    if np.ptp(x) == 0:
        assert dataset.spec.normalise == Affine(1.0, shift)
        return
    spec, rounding = dataset.spec, np.spacing(abs(shift)) / x.std()
    assert spec.normalise.scale == pytest.approx(trained.std(), rel=1e-9 + rounding)
    assert spec.normalise.shift == pytest.approx(trained.mean(), rel=1e-12, abs=1e-9 * scale)
    expected = (trained - trained.mean()) / trained.std()
    tolerance = 4 * 2.0**-24 + 1e-9 + 2 * rounding
    rows = np.stack([dataset.rows[i][0] for i in range(360)]) if streamed else dataset.arrays()[0]
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, expected, atol=tolerance)
    back = spec.finish(rows)
    resolution = float(np.finfo(spec.dtype).eps) * (4 + abs(shift) / x.std())
    np.testing.assert_allclose((back.astype(np.float64) - trained) / x.std(), 0, atol=tolerance + resolution)
    np.testing.assert_allclose((dataset.test - x[dataset.test_rows]) / x.std(), 0, atol=resolution)


def test_samples_have_a_type_that_holds_them():
    """float32 rounds by 2^-24 of the value: up to 1,000 deviations from 0 that is at most 6e-5 of the deviation."""
    of = lambda scale, shift: DataSpec("x", (1,), Affine(scale, shift)).dtype
    assert of(1.0, 999.0) == of(1e20, 0.0) == of(1e-30, 0.0) == np.float32
    assert of(1.0, 1.7e9) == of(1e39, 0.0) == of(1e-39, 0.0) == np.float64
    assert DataSpec("x", (2, 2, 1), Affine(127.5, 127.5), levels=256).dtype == np.uint8


def test_samples_and_likelihoods_far_from_the_origin_are_those_at_the_origin(tiny_run):
    """The spec of a trained run is replaced by 1.7e9 + 3 x: samples and log-densities are the same up to the map. A
    float64 at 1.7e9 is off by 2.4e-7, and the field's slope is below 100; tolerances of the solver are far larger, but
    the solves are the same."""
    run = package.load(tiny_run)
    spec = dataclasses.replace(run.spec, normalise=Affine(3.0, 1.7e9))
    far = dataclasses.replace(run, spec=spec)
    solver = SolverSettings("rk4", steps=10)
    near, moved = (sampling.sample(r, 64, solver=solver, batch=64).samples for r in (run, far))
    assert moved.dtype == np.float64
    np.testing.assert_allclose((moved - 1.7e9) / 3, near, atol=1e-6)
    x = moved[:16]
    expected = scoring.log_prob(run, near[:16], solver=solver, batch=16).log_prob - 2 * np.log(3)
    np.testing.assert_allclose(scoring.log_prob(far, x, solver=solver, batch=16).log_prob, expected, atol=1e-4)


@pytest.mark.parametrize("factor", [1e-200, 1e200])
def test_a_scale_that_float64_cannot_hold_is_refused(tmp_path, factor):
    with pytest.raises(DataError, match="multiply x by a power of ten"):
        opened(tmp_path / "a", x=NORMAL * factor)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_an_affine_map_needs_a_positive_finite_scale(scale):
    with pytest.raises(DataError, match="scale of the data must be"):
        Affine(scale)
    with pytest.raises(DataError, match="shift of the data must be"):
        Affine(1.0, np.nan)


@pytest.mark.parametrize(
    ("x", "note"),
    [
        (np.ones((40, 3)), "all values of x are 1"),
        (np.concatenate([NORMAL, [[1e20, 0.0]]]), "outliers make their standard deviation"),
        (NORMAL[:, :1] * np.array([1.0, 1e6, 1e6]), "columns 0 vary by less than a thousandth"),
        ((1.7e9 + 100 * NORMAL).astype(np.float32), "stored with too few digits"),
        (RNG.random((30, 3, 8, 8)), "channels first"),
        (NORMAL, None),
    ],
)
def test_remarkable_data_are_noted(tmp_path, x, note):
    notes = opened(tmp_path / "a", normalise="global", x=x, **({} if note else {"y": np.arange(len(x)) % 2})).notes
    assert [note in line for line in notes] == ([True] if note else [])
    assert not any("\n" in line for line in notes)


# Types


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("npz", "float16"), ("npz", ">f8"), ("npy", ">f4"), ("npy", "longdouble"), ("zarr", "float16"),
     ("zarr", ml_dtypes.bfloat16), ("zarr", ml_dtypes.float8_e4m3fn)],
)  # fmt: skip
@pytest.mark.parametrize("streamed", [False, True])
def test_any_floating_type_is_read_without_loss(tmp_path, monkeypatch, kind, dtype, streamed):
    """As the same numbers in float64: bit for bit."""
    if streamed:
        monkeypatch.setattr("flowjax.data.dataset.RESIDENT_BYTES", 0)
    x = NORMAL[:50].astype(dtype)
    found = opened(tmp_path / "a", kind, x=x)
    known = opened(tmp_path / "b", "npz", x=x.astype(np.float64))
    assert found.spec.normalise == known.spec.normalise
    np.testing.assert_array_equal(found.test, known.test)
    if streamed:
        found, known = (Stream(d.rows, 0, 45)[0].x1 for d in (found, known))
    else:
        found, known = (d.arrays()[0] for d in (found, known))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, known)


PIXELS = RNG.integers(0, 256, (20, 4, 5, 3), np.uint8)
TEN, FLOATS = PIXELS[:10], NORMAL[:20].astype(np.float32)
TEN_POINTS = FLOATS[:10]


@pytest.mark.parametrize("kind", ["npz", "npy", "zarr"])
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": PIXELS, "x_test": TEN / 255}, "must hold integers from 0 to 255 too"),
        ({"x": PIXELS, "x_test": TEN.astype(np.int16) - 1}, "between -1 and"),
        ({"x": PIXELS, "x_test": TEN.astype(complex)}, "x_test must hold integers"),
        ({"x": PIXELS.transpose(0, 3, 1, 2).repeat(2, 3)}, r"x = x.transpose\(0, 2, 3, 1\)"),
        ({"x": PIXELS[..., 0]}, r"x = x\[\.\.\., None\]"),
        ({"x": FLOATS.astype(complex)}, "integers or floats, not complex128"),
        ({"x": FLOATS[:, :0]}, "empty axis"),
        ({"x": FLOATS, "x_test": FLOATS.astype(complex)}, "x_test must hold real numbers"),
        ({"x": FLOATS, "x_test": np.full((3, 2), 2**62)}, r"beyond 2\^53"),
        ({"x": FLOATS, "x_test": np.full((3, 2), np.inf)}, "x_test holds values that are not finite"),
        ({"x": FLOATS, "y": np.full(20, 1.9)}, "one label is 1.9"),
        ({"x": FLOATS, "y": np.full(20, np.nan)}, "one label is nan"),
        ({"x": FLOATS, "y": np.full(20, np.inf)}, "one label is inf"),
        (
            {"x": FLOATS, "y": np.arange(20), "x_test": TEN_POINTS, "y_test": np.array([-1, 30] * 5)},
            r"y_test holds labels that no row of y has \(-1, 30; 10 rows\): leave these test rows out",
        ),
        ({"x": FLOATS, "y": np.full(20, 1j)}, "integers or strings"),
        ({"x": FLOATS, "y": np.zeros((20, 1), int)}, r"its shape is \(20, 1\)"),
        ({"x": FLOATS, "y": np.array(1)}, r"its shape is \(\)"),
        ({"x": FLOATS, "y_test": np.zeros(20, int)}, "y_test but no x_test"),
    ],
)
def test_what_cannot_be_read_without_loss_is_refused(tmp_path, kind, arrays, message):
    if kind == "zarr" and any(a.size == 0 for a in arrays.values()):
        pytest.skip("TensorStore writes no empty arrays")
    with pytest.raises(DataError, match=message) as error:
        opened(tmp_path / "a", kind, **arrays)
    assert "\n" not in str(error.value)


def test_test_pixels_of_another_whole_type(tmp_path):
    dataset = opened(tmp_path / "a", x=PIXELS, x_test=TEN.astype(">f8"))
    np.testing.assert_array_equal(dataset.test, TEN[dataset.test_rows])


# Labels


@pytest.mark.parametrize("dtype", [bool, np.uint64, ">i2", np.float32, "longdouble"])
def test_labels_of_any_whole_type(tmp_path, dtype):
    y = np.arange(20) % 2
    dataset = opened(tmp_path / "a", x=FLOATS, y=y.astype(dtype))
    np.testing.assert_array_equal(dataset.test_labels, y[dataset.test_rows])
    assert (dataset.spec.num_classes, dataset.spec.class_shares) == (2, (0.5, 0.5))


@pytest.mark.parametrize("kind", [str, bytes])
def test_labels_that_are_texts_name_the_classes(tmp_path, kind):
    y = np.array(["owl", "cat", "dog", "cat"] * 5)
    stored = y if kind is str else np.char.encode(y)
    dataset = opened(tmp_path / "a", x=FLOATS, y=stored)
    names = dataset.spec.class_names
    assert names == ("cat", "dog", "owl")
    assert [names[k] for k in dataset.test_labels] == y[dataset.test_rows].tolist()


@pytest.mark.parametrize("y", [np.arange(20) % 7, np.array(["a", "b"] * 10)])
def test_labels_of_two_kinds_are_refused(tmp_path, y):
    """The texts of one array would number the classes, and the numbers of the other would be read as those."""
    y_test = np.array(["a", "b"] * 10) if y.dtype.kind == "i" else np.arange(20) % 2
    with pytest.raises(DataError, match="one of y and y_test holds strings and the other numbers"):
        opened(tmp_path / "a", x=FLOATS, y=y, x_test=FLOATS, y_test=y_test)


def test_names_of_classes_are_shown_without_control_characters(tmp_path):
    spec = opened(tmp_path / "a", x=FLOATS, y=np.array(["a\nb", "c\x1b[2J"] * 10)).spec
    with pytest.raises(DataError) as error:
        spec.label("dog")
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "values",
    [[1, 2, 3], [-7, 0, 2**62], [3.0, 4.0, 10.0], np.array([5, 2**63, 2**64 - 1], np.uint64), ["b", "", "a\u00e9"]],
)
def test_labels_of_any_value_become_classes_with_the_values_as_names(tmp_path, values):
    """The classes are the values in increasing order, half, a quarter and a quarter of the rows."""
    y = np.repeat(np.array(values), [200, 100, 100])
    dataset = opened(tmp_path / "a", x=NORMAL, y=y)
    spec, order = dataset.spec, sorted(values)
    names = tuple(v if isinstance(v, str) else str(int(v)) for v in order)
    assert (spec.num_classes, spec.class_names) == (3, names)
    assert [order[k] for k in dataset.test_labels] == y[dataset.test_rows].tolist()
    shares = {order[k]: share for k, share in enumerate(spec.class_shares)}
    np.testing.assert_allclose([shares[v] for v in values], [0.5, 0.25, 0.25], atol=1 / 360)
    assert DataSpec.from_record(spec.to_record()) == spec
    assert [spec.label(name) for name in names] == [0, 1, 2]
    np.testing.assert_array_equal(read_labels("a", "y", np.array(order), 3, names), [0, 1, 2])


def test_labels_0_to_k_have_no_names(tmp_path):
    spec = opened(tmp_path / "a", x=NORMAL, y=np.arange(400) % 3).spec
    assert (spec.num_classes, spec.class_names) == (3, ())


def test_labels_given_after_training():
    """Integers are the values of integer labels, and otherwise the numbers of classes."""
    read = lambda y, names: read_labels("a", "y", np.array(y), len(y), names).tolist()
    assert read([20, 10, 20], ("10", "20")) == [1, 0, 1]
    assert read([1, 0], ("cat", "dog")) == read(["dog", "cat"], ("cat", "dog")) == read([1, 0], ()) == [1, 0]
    assert read([1, 0], ("07", "1")) == [1, 0]
    for y, names, message in (
        ([1], ("10", "20"), "holds the label 1, but the classes are 10, 20"),
        (["cow"], ("cat",), "holds the label 'cow', but the classes are cat"),
        (["cow"], (), "but the classes have no names"),
        ([-1], (), "must hold labels 0, 1, ..., but one label is -1"),
        ([2**62], (), "but one label is 4611686018427387904"),
    ):
        with pytest.raises(DataError, match=message):
            read(y, names)


def test_a_text_that_only_test_labels_have_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"y_test holds labels that no row of y has .'b'; 10 rows.: leave these"):
        opened(tmp_path / "a", x=FLOATS, y=np.full(20, "a"), x_test=TEN_POINTS, y_test=np.full(10, "b"))


def test_too_many_classes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("flowjax.data.labels.MOST_CLASSES", 10)
    with pytest.raises(DataError, match="y holds 11 different labels, but the limit is 10 classes"):
        opened(tmp_path / "a", x=NORMAL, y=np.arange(400) % 11)


def test_a_class_whose_only_row_is_held_out_has_no_share(tmp_path):
    """Every row has a class of its own: two of twenty rows are held out, and their classes have share 0."""
    dataset = opened(tmp_path / "a", x=FLOATS, y=np.arange(20))
    held = dataset.test_labels.tolist()
    assert [k for k in range(20) if dataset.spec.class_shares[k] == 0] == sorted(held)
    assert any(f"their only row was held out: {min(held)}, {max(held)}" in note for note in dataset.notes)


# Sorted files


@pytest.mark.parametrize("labelled", [False, True])
def test_a_sorted_file_without_test_rows(tmp_path, monkeypatch, labelled):
    """10,000 rows in four clusters, in their order. The held-out tenth has a tenth of each up to one row for each
    border, its first 500 rows pass a chi-square test at level 1e-3, and the streamed normalisation is that of the
    whole: its 10,000 rows are all rows here."""
    cluster = np.repeat(np.arange(4), [6000, 3000, 900, 100])
    x = 50.0 * cluster[:, None] + RNG.normal(size=(10_000, 2))
    monkeypatch.setattr("flowjax.data.arrays._SAMPLED", 1000)
    monkeypatch.setattr("flowjax.data.dataset.RESIDENT_BYTES", 0)
    dataset = opened(tmp_path / "a", "npy", x=x, **({"y": cluster} if labelled else {}))
    of_test = cluster[dataset.test_rows]
    np.testing.assert_allclose(np.bincount(of_test), [600, 300, 90, 10], atol=2)
    assert stats.chisquare(np.bincount(of_test[:500], minlength=4), [300, 150, 45, 5]).pvalue > 1e-3
    # 1,000 rows in equal stretches: each border misplaces one row at most, of 3 borders 50 apart
    assert dataset.spec.normalise.scale == pytest.approx(x.std(), rel=0.02)
    assert dataset.spec.normalise.shift == pytest.approx(x.mean(), abs=3 * 50 / 1000 + 0.1)


def test_a_streamed_row_that_is_not_finite_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("flowjax.data.dataset.RESIDENT_BYTES", 0)
    monkeypatch.setattr("flowjax.data.arrays._SAMPLED", 10)
    x = np.concatenate([NORMAL, NORMAL])
    dataset = opened(tmp_path / "a", "npy", x=x, x_test=NORMAL)
    mapped = np.load(tmp_path / "a" / "x.npy", mmap_mode="r+")
    mapped[3] = np.nan
    mapped.flush()
    with pytest.raises(DataError, match="not finite"):
        dataset.rows[3]


# What is meant


def test_arrays_that_nothing_uses_are_named(tmp_path):
    for kind in ("npz", "npy", "zarr"):
        notes = opened(tmp_path / "a", kind, x=NORMAL, labels=np.zeros(400)).notes
        assert len(notes) == 1
        assert "not used: labels" in notes[0]


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("npz", "", "use data.name=zarr"),
        ("zarr", "nowhere", "no such folder"),
        ("npy", "nowhere", "no such folder"),
        ("moons", "a.npz", "takes no file"),
        ("digits", "a.npz", "takes no file"),
    ],
)
def test_a_path_of_another_kind_says_what_is_meant(tmp_path, name, path, message):
    store(tmp_path / "z0", "zarr", z=NORMAL)
    (tmp_path / "z0" / "z").rename(tmp_path / "z")
    np.save(tmp_path / "x.npy", NORMAL)
    np.savez(tmp_path / "a.npz", x=NORMAL)
    with pytest.raises(DataError, match=message) as error:
        open_dataset(name, str(tmp_path / path))
    assert "\n" not in str(error.value)


def test_home_is_expanded(tmp_path, monkeypatch):
    store(tmp_path / "a", "npz", x=NORMAL)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_dataset("npz", "~/a/a.npz").spec.shape == (2,)
