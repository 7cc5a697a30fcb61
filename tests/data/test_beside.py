"""Conditions, pairs and masks of the user's arrays, and a scale for each feature."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax.conditions import Field
from flowjax.data import Affine, DataError, open_dataset
from flowjax.data.stream import Stream
from flowjax.errors import ConfigError
from tests.data.stored import store

RNG = np.random.default_rng(0)
N = 60
X = RNG.normal(size=(N, 2))
OBS = RNG.normal(size=(N, 3)) * [1e-3, 1.0, 1e3] + [0.0, 5.0, -1e4]
POINTS = RNG.normal(size=(N, 4, 2))
POINTS[::3, 2:] = np.nan
OBS[5] = np.nan
ARRAYS = {"x": X, "y": np.arange(N) % 3, "obs": OBS, "points": POINTS, "mass": RNG.normal(size=N), "x0": X + 7}
COND = ("label", "obs", "points(kind='set')", "mass")


@pytest.mark.parametrize("kind", ["npz", "npy", "zarr"])
@pytest.mark.parametrize("streamed", [False, True])
def test_conditions_and_pairs_stay_with_their_rows(tmp_path, monkeypatch, kind, streamed):
    """Each delivered row is found by its x, and all that belongs to it is NumPy's standardisation of the same row."""
    if streamed:
        monkeypatch.setattr("flowjax.data.dataset.RESIDENT_BYTES", 0)
    dataset = open_dataset(kind, store(tmp_path / "data", kind, **ARRAYS), cond=COND, pairs="x0")
    trained = np.delete(np.arange(N), dataset.test_rows)
    assert dataset.spec.conditions == (
        Field("obs", "vector", (3,)),
        Field("points", "set", (4, 2)),
        Field("mass", "vector", (1,)),
    )
    if streamed:
        batch = Stream(dataset.rows, 0, 20)[0]
    else:
        batch = dataset.sample(jax.tree.map(jnp.asarray, dataset.arrays()), jax.random.key(0), 20)
    mean, std = X[trained].mean(), X[trained].std()
    row = trained[np.abs(batch.x1[:, None] - (X[trained] - mean) / std).sum(-1).argmin(1)]
    scaled = lambda a: (a[row] - np.nanmean(a[trained], 0)) / np.nanstd(a[trained], 0)
    np.testing.assert_array_equal(batch.cond["label"], ARRAYS["y"][row])
    np.testing.assert_allclose(batch.cond["obs"], scaled(OBS), atol=1e-5)
    np.testing.assert_allclose(batch.cond["mass"][:, 0], scaled(ARRAYS["mass"]), atol=1e-5)
    mean_p, std_p = np.nanmean(POINTS[trained], (0, 1)), np.nanstd(POINTS[trained], (0, 1))
    np.testing.assert_allclose(batch.cond["points"], (POINTS[row] - mean_p) / std_p, atol=1e-5)
    np.testing.assert_allclose(batch.x0, (X[row] + 7 - mean) / std, atol=1e-5)
    assert batch.mask is None
    np.testing.assert_array_equal(dataset.test_cond["obs"], OBS[dataset.test_rows])
    np.testing.assert_array_equal(dataset.test_cond["mass"][:, 0], ARRAYS["mass"][dataset.test_rows])
    np.testing.assert_allclose(dataset.test_x0, X[dataset.test_rows] + 7, rtol=1e-6)
    encoded = dataset.encoded_test(3, ("obs",))
    assert set(encoded.cond) == {"obs"}
    np.testing.assert_allclose(encoded.x0 - encoded.x1, 7 / std, rtol=1e-5)


def test_a_stream_and_a_resident_set_hold_the_same_rows(tmp_path, monkeypatch):
    path = store(tmp_path / "data", "npy", **ARRAYS)
    known = open_dataset("npy", path, cond=COND, pairs="x0").arrays()
    monkeypatch.setattr("flowjax.data.dataset.RESIDENT_BYTES", 0)
    dataset = open_dataset("npy", path, cond=COND, pairs="x0")
    rows = [dataset.rows[i] for i in range(len(dataset.rows))]
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda *a: np.stack(a), *rows), known)


def test_only_what_is_asked_for_is_read(tmp_path):
    dataset = open_dataset("npz", store(tmp_path / "data", **ARRAYS), cond=("mass",))
    assert set(dataset.arrays().cond) == {"label", "mass"}
    assert dataset.arrays().x0 is None
    assert "not used: obs, points, x0" in dataset.notes[0]


def test_test_rows_of_their_own(tmp_path):
    """The rows of x_test have their conditions and sources in NAME_test."""
    test = {f"{name}_test": a[:7] + 1 for name, a in ARRAYS.items() if name != "y"} | {"y_test": ARRAYS["y"][:7]}
    dataset = open_dataset("npz", store(tmp_path / "data", **ARRAYS, **test), cond=COND, pairs="x0")
    np.testing.assert_array_equal(dataset.test_cond["obs"], OBS[dataset.test_rows] + 1)
    np.testing.assert_allclose(dataset.test_x0, X[dataset.test_rows] + 8, rtol=1e-6)
    np.testing.assert_array_equal(dataset.test_labels, ARRAYS["y"][dataset.test_rows])


MASK = np.arange(5) < RNG.integers(1, 6, N)[:, None]
SETS = np.where(MASK[..., None], RNG.normal(size=(N, 5, 2)) * [1.0, 10.0], np.nan)


def test_a_mask_says_which_elements_exist(tmp_path):
    """Elements that do not exist count in no moment, and are 0 in model space."""
    dataset = open_dataset("npz", store(tmp_path / "data", x=SETS, mask=MASK), normalise="channel")
    rows = dataset.arrays()
    trained = np.delete(np.arange(N), dataset.test_rows)
    np.testing.assert_array_equal(rows.mask, MASK[trained])
    np.testing.assert_allclose(dataset.spec.normalise.scale, np.nanstd(SETS[trained], (0, 1)), rtol=1e-12)
    np.testing.assert_allclose(dataset.spec.normalise.shift, np.nanmean(SETS[trained], (0, 1)), rtol=1e-9)
    assert np.all(rows.x1[~rows.mask] == 0)
    np.testing.assert_array_equal(dataset.test_mask, MASK[dataset.test_rows])
    assert dataset.spec.has_mask
    with pytest.raises(DataError, match="has_mask is False, but test_mask is given"):
        dataclasses.replace(dataset, spec=dataclasses.replace(dataset.spec, has_mask=False))
    one = open_dataset("npz", store(tmp_path / "data", x=SETS, mask=MASK))
    assert one.spec.normalise.scale == pytest.approx(np.nanstd(SETS[trained]), rel=1e-12)


@pytest.mark.parametrize(
    ("change", "ask", "message"),
    [
        (
            {},
            {"cond": ("size",)},
            "holds no array named 'size', which data.cond asks for: it has mass, obs, points, x, x0, y",
        ),
        ({}, {"pairs": "z"}, "holds no array named 'z', which data.pairs asks for"),
        ({}, {"pairs": "obs"}, r"but its shape is \(60, 3\)"),
        ({}, {"pairs": "x"}, "cannot be the name"),
        ({"obs": np.arange(N)}, {"cond": ("obs",)}, "integers .int64.: save classes as y"),
        ({"obs": OBS > 0}, {"cond": ("obs",)}, "integers .bool.: save classes as y"),
        ({"obs": np.array(["a"] * N)}, {"cond": ("obs",)}, "must hold floating-point numbers"),
        ({"obs": OBS[:5]}, {"cond": ("obs",)}, "obs must have one row for each row of x"),
        ({"obs": np.where(OBS > 0, np.inf, OBS)}, {"cond": ("obs",)}, "the condition obs holds values that are not"),
        ({"obs": np.zeros((N, 1, 1, 1, 1))}, {"cond": ("obs",)}, "neither vectors, sequences nor images"),
        ({}, {"cond": ("obs(kind='set')",)}, "a set cannot have examples of shape"),
        ({"obs_test": OBS}, {"cond": ("obs",)}, "there is obs_test but no x_test"),
        ({"x_test": X, "y_test": ARRAYS["y"]}, {"cond": ("obs",)}, "there is x_test but no obs_test"),
        (
            {"x0": np.zeros((N, 2), np.uint8)},
            {"pairs": "x0"},
            "both must be uint8, both other integers, or both floats",
        ),
        ({"mask": np.ones((N, 2), bool)}, {}, "a mask needs floating-point sets"),
        ({"x": SETS, "mask": MASK[:, :3]}, {}, r"mask must be bool of shape \(N, 5\)"),
        ({"x": SETS, "mask": MASK.astype(float)}, {}, r"mask must be bool of shape \(N, 5\)"),
        ({"x": SETS, "mask": np.ones((N, 5), bool)}, {}, "not finite"),
        ({"x": SETS}, {}, "not finite"),
        ({}, {"normalise": "channel"}, "is for images and sequences"),
        ({"x": POINTS}, {"normalise": "feature"}, "is for vectors"),
        ({}, {"normalise": "features"}, "data.normalise: unknown 'features'; did you mean 'feature'"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(tmp_path, change, ask, message):
    with pytest.raises((DataError, ConfigError), match=message) as error:
        open_dataset("npz", store(tmp_path / "data", **ARRAYS | change), **ask).arrays()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("ask", [{"cond": ("obs",)}, {"pairs": "x0"}, {"normalise": "channel"}])
@pytest.mark.parametrize("name", ["moons", "digits"])
def test_built_in_sets_have_labels_at_most(name, ask):
    with pytest.raises(DataError, match="npz, npy or zarr"):
        open_dataset(name, **ask)


# Scales of features


SCALES = np.array([3e-5, 1.0, 20.0, 1e4])


@pytest.mark.parametrize("streamed", [False, True])
def test_a_table_of_very_different_columns_is_standardised_by_column(tmp_path, monkeypatch, streamed):
    """In model space every column has mean 0 and deviation 1; back in data space it is what it was to float32."""
    if streamed:
        monkeypatch.setattr("flowjax.data.dataset.RESIDENT_BYTES", 0)
    x = np.concatenate([RNG.normal(size=(400, 4)) * SCALES + 3 * SCALES, np.full((400, 1), 2.5)], 1)
    dataset = open_dataset("npy", store(tmp_path / "data", "npy", x=x))
    trained = np.delete(x, dataset.test_rows, 0)
    spec = dataset.spec
    np.testing.assert_allclose(spec.normalise.scale[:4], trained[:, :4].std(0), rtol=1e-12)
    np.testing.assert_allclose(spec.normalise.shift, trained.mean(0), rtol=1e-12)
    assert spec.normalise.scale[4] == 1
    assert "one scale for each column" in dataset.notes[0]
    assert "columns of x that do not vary keep the scale 1: 4" in dataset.notes[1]
    rows = np.stack([dataset.rows[i].x1 for i in range(360)]) if streamed else dataset.arrays().x1
    np.testing.assert_allclose(rows.mean(0, dtype=np.float64), 0, atol=1e-6)
    np.testing.assert_allclose(rows[:, :4].std(0, dtype=np.float64), 1, atol=1e-6)
    assert np.all(np.abs(spec.finish(rows) - trained) <= 2.0**-22 * (np.abs(trained) + spec.normalise.scale))
    assert open_dataset("npy", str(tmp_path / "data"), normalise="global").spec.normalise.features is None


@pytest.mark.parametrize(("ratio", "features"), [(2.9, None), (3.2, 2)])
def test_columns_within_a_factor_of_three_keep_one_scale(tmp_path, ratio, features):
    z = RNG.normal(size=(500, 1))
    dataset = open_dataset("npz", store(tmp_path / "data", x=np.concatenate([z, ratio * z], 1)))
    assert dataset.spec.normalise.features == features
    assert bool(dataset.notes) == bool(features)


def test_a_density_in_data_space_integrates_to_one(tmp_path):
    """Independent normal columns: the log-density of the standardised rows, mapped to data space, is scipy's."""
    x = RNG.normal(size=(4000, 2)) * [1e-2, 50.0] + [1.0, -30.0]
    dataset = open_dataset("npz", store(tmp_path / "data", x=x))
    affine = dataset.spec.normalise
    grid = [np.linspace(m - 8 * s, m + 8 * s, 400) for m, s in zip(affine.shift, affine.scale, strict=True)]
    points = np.stack(np.meshgrid(*grid, indexing="ij"), -1).reshape(-1, 2)
    log_prob = affine.log_prob_to_data(stats.norm.logpdf(affine.to_model(points)).sum(-1), 2)
    cell = np.prod([g[1] - g[0] for g in grid])
    assert np.exp(log_prob).sum() * cell == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(log_prob, stats.norm.logpdf(points, affine.shift, affine.scale).sum(-1), rtol=1e-9)


def test_channels_of_pixels_have_their_own_scales(tmp_path):
    """The moments of pixels that are uniform on [k, k + 1): the mean is 1/2 more, the variance 1/12 more."""
    x = RNG.integers(0, [40, 256], (N, 4, 4, 2)).astype(np.uint8)
    dataset = open_dataset("npz", store(tmp_path / "data", x=x), normalise="channel")
    trained = np.delete(x, dataset.test_rows, 0).astype(np.float64)
    np.testing.assert_allclose(dataset.spec.normalise.shift, trained.mean((0, 1, 2)) + 0.5, rtol=1e-12)
    np.testing.assert_allclose(dataset.spec.normalise.scale, np.sqrt(trained.var((0, 1, 2)) + 1 / 12), rtol=1e-12)
    prepared = dataset.spec.prepare(jax.random.key(0), jnp.asarray(dataset.arrays().x1))
    np.testing.assert_array_equal(dataset.spec.finish(prepared), dataset.arrays().x1)
    assert isinstance(dataset.spec.normalise, Affine)


def test_a_mask_without_elements_is_refused(tmp_path):
    mask = np.ones((len(SETS), SETS.shape[1]), bool)
    mask[[3, 5]] = False
    with pytest.raises(DataError, match=r"leaves 2 of \d+ sets without an element \(the first is row 3\)"):
        open_dataset("npz", store(tmp_path / "data", x=SETS, mask=mask))
