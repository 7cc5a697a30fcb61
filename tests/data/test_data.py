"""Data sets: densities against their samples, normalisation, users' arrays, TFDS."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax.batch import Batch
from flowjax.conditions import Field
from flowjax.data import DATASETS, Affine, DataError, DataSpec, open_dataset
from flowjax.data.affine import image_scale
from flowjax.data.dataset import sample_rows
from flowjax.data.stream import Stream
from flowjax.errors import ConfigError

DENSITIES = ["gaussians8", "moons", "checkerboard", "s_curve", "two_spirals", "swiss_roll"]


@pytest.mark.parametrize("name", [*DENSITIES[:3], *(pytest.param(n, marks=pytest.mark.slow) for n in DENSITIES[3:])])
def test_density_is_normalised_and_agrees_with_its_samples(name):
    """Sums to 1 on a grid, whose coarse cells hold their share of samples within 5 standard errors."""
    dataset = open_dataset(name)
    side, cells, half = 480, 12, 8.0
    axis = (np.arange(side) + 0.5) / side * 2 * half - half
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2).astype(np.float32)
    p = np.exp(np.asarray(dataset.log_prob(jnp.asarray(grid)), np.float64)) * (2 * half / side) ** 2
    assert p.sum() == pytest.approx(1.0, abs=2e-3)
    block = side // cells
    share = p.reshape(cells, block, cells, block).sum((1, 3))
    n = 40_000
    x = np.asarray(dataset.draw(jax.random.key(0), n))
    counts, _, _ = np.histogram2d(*x.T, bins=cells, range=[[-half, half]] * 2)
    assert np.all(np.abs(counts / n - share) < 5 * np.sqrt(share / n) + 2e-3)


@pytest.mark.parametrize("name", [*DENSITIES, "pinwheel"])
def test_test_points_are_fixed(name):
    a, b = open_dataset(name), open_dataset(name)
    assert a.test.shape == (10_000, 2)
    np.testing.assert_array_equal(a.test, b.test)
    x = a.sample(a.arrays(), jax.random.key(3), 5).x1
    np.testing.assert_array_equal(x, a.sample(a.arrays(), jax.random.key(3), 5).x1)


def test_eight_gaussians_are_torchcfms():
    dataset = open_dataset("gaussians8")
    np.testing.assert_allclose(np.linalg.norm(dataset.modes, axis=1), 5.0)
    x = np.asarray(dataset.draw(jax.random.key(0), 50_000))
    nearest = ((x[:, None] - dataset.modes) ** 2).sum(-1).argmin(1)
    assert (x - dataset.modes[nearest]).std() == pytest.approx(0.5623, rel=0.02)


def test_digits():
    dataset = open_dataset("digits")
    batch = dataset.sample(dataset.arrays(), jax.random.key(0), 32)
    assert batch.x1.shape == (32, 8, 8, 1)
    assert int(batch.x1.max()) <= 16
    assert set(np.asarray(batch.cond["label"])) <= set(range(10))
    assert len(dataset.arrays()[0]) + len(dataset.test) == 1797


def test_labels_stay_with_their_rows():
    x = np.arange(50)[:, None].astype(np.float32)
    batch = sample_rows(Batch(jnp.asarray(x), {"label": jnp.arange(50)}), jax.random.key(0), 200)
    np.testing.assert_array_equal(batch.x1[:, 0], batch.cond["label"])
    assert len(np.unique(batch.cond["label"])) > 40


def test_dequantisation_floors_back_to_the_same_pixels():
    spec = DataSpec("x", (2, 2, 1), image_scale(256), levels=256)
    x = jnp.array([[0, 1, 128, 255]], jnp.uint8).reshape(1, 2, 2, 1)
    model = spec.prepare(jax.random.key(0), x)
    assert float(model.min()) >= -1
    assert float(model.max()) <= 256 / 127.5 - 1 + 1e-6
    np.testing.assert_array_equal(spec.finish(model), x)
    assert spec.finish(model).dtype == np.uint8


def test_bits_per_dim_convention():
    """-log p_data / (D ln 2) is -log p_model / (D ln 2) + log2(127.5) for 8 bits."""
    spec = DataSpec("x", (4, 4, 3), image_scale(256), levels=256)
    model = -100.0
    data = spec.normalise.log_prob_to_data(model, spec.d)
    assert -data / (48 * np.log(2)) == pytest.approx(100 / (48 * np.log(2)) + np.log2(127.5))
    assert Affine(2.0, 1.0).to_data(Affine(2.0, 1.0).to_model(np.float32(3.0))) == 3.0


def test_npz_of_points(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(5.0, 3.0, (200, 3))
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(200) % 4)
    dataset = open_dataset("npz", str(tmp_path / "a.npz"))
    assert dataset.spec.shape == (3,)
    assert dataset.spec.num_classes == 4
    assert len(dataset.test) == 20
    np.testing.assert_allclose(dataset.test, x[dataset.test_rows], rtol=1e-6)
    model = dataset.arrays().x1
    assert len(model) == 180
    assert model.mean() == pytest.approx(0, abs=1e-6)
    assert model.std() == pytest.approx(1, abs=1e-6)


def test_classes_of_a_sorted_file_are_all_counted(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).normal(size=(100, 2)), y=np.arange(100) // 10)
    assert open_dataset("npz", str(tmp_path / "a.npz")).spec.num_classes == 10


def test_npz_of_images(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((10, 4, 4, 3), np.uint8), x_test=np.ones((2, 4, 4, 3), np.uint8))
    dataset = open_dataset("npz", str(tmp_path / "a.npz"))
    assert dataset.spec.levels == 256
    assert dataset.test.mean() == 1


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"z": np.zeros(3)}, "no array named 'x'"),
        ({"x": np.zeros(3)}, r"\(N, \*event\)"),
        ({"x": np.full((4, 2), np.nan)}, "not finite"),
        ({"x": np.zeros((4, 2), complex)}, "integers or floats"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(3, int)}, "one label"),
        ({"x": np.zeros((4, 2)), "x_test": np.zeros((4, 3))}, "x_test must be"),
        ({"x": np.zeros((4, 2)), "x_test": np.zeros((0, 2))}, "x_test must be"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(4, int), "x_test": np.zeros((4, 2))}, "y_test"),
        ({"x": np.zeros((4, 2, 2), np.uint8)}, "uint8 data must be images"),
    ],
)
def test_bad_npz_is_one_clear_line(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=message) as error:
        open_dataset("npz", str(tmp_path / "bad.npz"))
    assert "\n" not in str(error.value)


def test_missing_and_broken_files(tmp_path):
    (tmp_path / "junk.npz").write_bytes(b"not a zip")
    cases = {"": "data.path", str(tmp_path / "no.npz"): "no such file", str(tmp_path / "junk.npz"): "not a readable"}
    for path, message in cases.items():
        with pytest.raises(DataError, match=message):
            open_dataset("npz", path)
    with pytest.raises(ConfigError, match="did you mean 'moons'"):
        open_dataset("moon")


def test_a_missing_tfds_set_names_the_line_that_prepares_it(tmp_path):
    with pytest.raises(DataError, match=r"cifar10 is not prepared in .*download_and_prepare") as error:
        open_dataset("cifar10", str(tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_tfds_set(name, monkeypatch):
    """The official splits; resident and streamed batches hold real images with their labels, which processes can read
    too."""
    import sys

    try:
        dataset = open_dataset(name)
    except DataError as error:
        pytest.skip(f"{name}: {error}")
    shape = {"cifar10": (32, 32, 3)}.get(name, (28, 28, 1))
    assert dataset.test.shape == (10_000, *shape)
    np.testing.assert_array_equal(
        np.bincount(dataset.test_labels), 1000 if name != "mnist" else np.bincount(dataset.test_labels)
    )
    rows = dataset.arrays()
    images, labels = rows.x1, rows.cond["label"]
    assert len(images) == {"cifar10": 50_000}.get(name, 60_000)
    known = {"mnist": 33.3184, "fashion_mnist": 72.9403, "cifar10": 120.7076}  # mean pixel of the training set
    assert images.mean() == pytest.approx(known[name], abs=1e-3)
    monkeypatch.setattr("flowjax.data.dataset.RESIDENT_BYTES", 0)
    stream = Stream(open_dataset(name).rows, 0, 16)
    batch = stream[3]
    assert batch.x1.shape == (16, *shape)
    by_processes = stream.start(3, workers=2)
    np.testing.assert_array_equal(batch.x1, next(by_processes).x1)
    assert not np.array_equal(batch.x1, next(by_processes).x1)
    row = np.flatnonzero((images == batch.x1[0]).all((1, 2, 3)))
    assert batch.cond["label"][0] in labels[row]
    assert "tensorflow" not in sys.modules


def test_all_names_are_in_the_table():
    files = {"npz", "npy", "zarr", "table", "folder", "simulator", "series", "pairs"}
    assert set(DENSITIES) | {"pinwheel", "digits", "mnist", "fashion_mnist", "cifar10"} | files == set(DATASETS)


SPEC = DataSpec("npz", (2, 3), Affine(2.0, -1.5), 3, 0, ("cat", "dog", "owl"), (0.0, 0.25, 0.75))


def test_a_spec_survives_json_and_compares_what_both_sides_know():
    assert DataSpec.from_record(json.loads(json.dumps(SPEC.to_record()))) == SPEC
    assert (SPEC.classes, dataclasses.replace(SPEC, class_shares=()).classes) == ((1, 2), (0, 1, 2))
    without = dataclasses.replace(SPEC, class_names=(), class_shares=())
    assert SPEC.differences(DataSpec.from_record(json.loads(json.dumps(without.to_record())))) == []
    assert SPEC.differences(dataclasses.replace(SPEC, shape=(2, 4))) == ["shape is [2, 3] and was [2, 4]"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("shape", [0]), ("shape", [2.0]), ("shape", []), ("scale", 0), ("scale", float("nan")), ("scale", "1"),
     ("shift", float("inf")), ("num_classes", 2**62), ("num_classes", True), ("levels", -1), ("name", 5),
     ("class_names", ["a"]), ("class_shares", [1, -1, 1]), ("class_shares", [0, 0, 0]), ("class_shares", {})],
)  # fmt: skip
def test_a_damaged_description_names_the_entry(key, value):
    with pytest.raises(DataError, match=key):
        DataSpec.from_record(SPEC.to_record() | {key: value})


def test_the_first_test_rows_of_a_sorted_file_have_the_shares_of_the_whole(tmp_path):
    """x_test is sorted into clusters of 6,000, 3,000, 900 and 100 rows. Of the first 1,000 rows, a chi-square test of
    the clusters' counts at level 1e-3; labels and row numbers stay with their points."""
    cluster = np.repeat(np.arange(4), [6000, 3000, 900, 100])
    x_test = np.stack([cluster, np.arange(10_000)], -1).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=x_test[::10], y=cluster[::10], x_test=x_test, y_test=cluster)
    dataset = open_dataset("npz", str(tmp_path / "a.npz"))
    first = dataset.test[:1000, 0].astype(int)
    assert stats.chisquare(np.bincount(first, minlength=4), [600, 300, 90, 10]).pvalue > 1e-3
    np.testing.assert_array_equal(dataset.test[:, 0], dataset.test_labels)
    np.testing.assert_array_equal(dataset.test, x_test[dataset.test_rows])


def test_the_rounding_of_a_sum_does_not_make_other_data():
    other = dataclasses.replace(SPEC, normalise=Affine(2.0 + 1e-6, -1.5 - 1e-6))
    assert SPEC.differences(other) == []
    assert len(SPEC.differences(dataclasses.replace(SPEC, normalise=Affine(2.1, -1.5)))) == 1


MANY = dataclasses.replace(
    SPEC,
    normalise=Affine((3e-5, 1.0, 1e4), (1.0, -2.0, 1e4)),
    conditions=(Field("obs", "vector", (2,)), Field("points", "set", (5, 3))),
    condition_maps=(Affine((2.0, 0.5), (0.0, 1.0)), Affine((1.0, 2.0, 3.0), (0.0, 0.0, 7.0))),
)


def test_scales_of_features_and_conditions_survive_json():
    assert DataSpec.from_record(json.loads(json.dumps(MANY.to_record()))) == MANY
    assert [f.name for f in MANY.fields] == ["label", "obs", "points"]
    assert SPEC.differences(MANY)[0].startswith("scale is 2.0 and was [3e-05")
    closer = dataclasses.replace(MANY, condition_maps=(Affine((2.0, 0.5), (1e-6, 1.0)), MANY.condition_maps[1]))
    assert MANY.differences(closer) == []
    other = dataclasses.replace(MANY, condition_maps=(Affine((2.0, 0.6), (0.0, 1.0)), MANY.condition_maps[1]))
    [line] = MANY.differences(other)
    assert line.startswith("conditions is")


def test_every_description_that_is_accepted_survives_json():
    spec = dataclasses.replace(
        SPEC,
        conditions=(Field("pose", "vector", (3,), zero_is_null=True),),
        condition_maps=(Affine(),),
        has_mask=True,
    )
    record = json.loads(json.dumps(spec.to_record()))
    assert DataSpec.from_record(record) == spec
    del record["has_mask"], record["conditions"][0]["zero_is_null"]  # as written by earlier versions
    earlier = DataSpec.from_record(record)
    assert (earlier.has_mask, earlier.conditions[0].zero_is_null) == (False, False)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (Field("colour", "label", num_classes=2), "kind is 'label'"),
        (Field("pose", "vector", (3,), dropout=0.5), "cannot be stored: conditions is"),
        (Field("a b", "vector", (3,)), "must be a Python identifier"),
    ],
)
def test_a_description_that_cannot_be_stored_is_refused(field, message):
    with pytest.raises(DataError, match=message) as error:
        dataclasses.replace(SPEC, conditions=(field,), condition_maps=(Affine(),))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("scale", [1.0, 2.0], "tuples of the same length"),
        ("scale", [1.0, 0.0, 2.0], "scale is"),
        ("scale", [], "scale is"),
        ("shift", [1.0, float("nan"), 2.0], "shift is"),
        ("shift", [1.0, 2.0], "tuples of the same length"),
        ("conditions", {}, "conditions is"),
        ("conditions", [{}], "a condition: name is missing"),
        ("conditions", [1], "a condition must be a JSON object"),
        ("conditions", [{}] * 65, "at most 64 conditions"),
    ],
)
def test_damaged_scales_and_conditions_name_the_entry(entry, value, message):
    with pytest.raises(DataError, match=message) as error:
        DataSpec.from_record(MANY.to_record() | {entry: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "label"}, "two conditions of the same name"),
        ({"name": "points"}, "two conditions of the same name"),
        ({"name": "x_test"}, "cannot be the name of a condition"),
        ({"name": "a b"}, "must be a Python identifier"),
        ({"kind": "label"}, "kind is 'label'"),
        ({"kind": ["set"]}, "kind is"),
        ({"kind": "image"}, "cannot have examples of shape"),
        ({"shape": [2**20, 2**20]}, "shape|numbers"),
        ({"scale": [1.0]}, "tuples of the same length|entries for examples"),
    ],
)
def test_a_damaged_condition_is_refused_in_one_line(change, message):
    record = MANY.to_record()
    record["conditions"][0] |= change
    with pytest.raises(DataError, match=message) as error:
        DataSpec.from_record(record)
    assert "\n" not in str(error.value)
