"""Files of the user as sources: in model space of the data, dequantised like them, and every refusal."""

import jax
import numpy as np
import pytest

import flowjax
from flowjax.build import build
from flowjax.config import changed, defaults, resolve
from flowjax.data import Affine, DataError, DataSpec
from flowjax.data.source_points import open_source
from flowjax.errors import ConfigError
from tests.data.stored import store

RNG = np.random.default_rng(0)
SPEC = DataSpec("npz", (2,), Affine((2.0, 1e5), (1.0, -3e5)))
MAP = Affine((2.0, 8.0), (1.0, 0.0))
A = RNG.normal(size=(50, 2)) * [3.0, 1e4] + [7.0, 0.0]


def test_rows_are_mapped_by_the_map_of_the_data(tmp_path):
    """In float64 (a - shift) / scale, rounded to float32: off by 2^-24 of at most 16."""
    source = open_source(store(tmp_path / "a", x=A), SPEC)
    np.testing.assert_allclose(source.points, (A - [1.0, -3e5]) / [2.0, 1e5], atol=16 * 2.0**-24)
    drawn = np.asarray(source.sample(jax.random.key(0), 1000))
    np.testing.assert_array_equal(np.unique(drawn, axis=0), np.unique(np.asarray(source.points), axis=0))


@pytest.mark.parametrize(
    ("spec", "x"),
    [
        (
            DataSpec("x", (2,), Affine((2.0, 8.0), (1.0, 0.0)), integers=((0, 9), (-5, 90))),
            RNG.integers(-5, 100, (50, 2)),
        ),
        (DataSpec("x", (2,), Affine((2.0, 8.0), (1.0, 0.0)), integers=((0, 9), None)), np.round(A)),
        (DataSpec("x", (2, 2, 1), Affine(7.5, 7.5), levels=16), RNG.integers(0, 16, (50, 2, 2, 1), np.uint8)),
    ],
)
def test_integers_are_dequantised(tmp_path, spec, x):
    """Samples floored in data space are rows of the file; real columns have no noise. float32 rounds by 2^-24 of at
    most 5000, which is far from an edge of these few draws."""
    source = open_source(store(tmp_path / "a", x=x), spec)
    drawn = np.asarray(source.sample(jax.random.key(0), 200), np.float64)
    data = np.asarray(spec.normalise.to_data(drawn))
    whole = np.broadcast_to(spec.steps > 0, spec.shape[-1:])
    back = np.where(whole, np.floor(data), np.round(data))
    known = {tuple(row.ravel()) for row in x.astype(float)}
    assert all(tuple(row.ravel()) in known for row in back)
    assert np.all((data - back)[..., whole].std(0) > 0.2)
    assert np.all(np.abs((data - back)[..., ~whole]) < 1e-2)


PIXELS = DataSpec("x", (4, 4, 1), Affine(127.5, 127.5), levels=256)
COUNTS = DataSpec("x", (2,), Affine(2.0, 0.0), integers=((0, 9),))


@pytest.mark.parametrize(
    ("spec", "x", "message"),
    [
        (SPEC, A[:, :1], r"x in .* must be \(N, 2\) like the data, not \(50, 1\)"),
        (SPEC, A[:0], r"must be \(N, 2\)"),
        (SPEC, A.astype(complex), "must hold real numbers like the data, not complex128"),
        (SPEC, np.where(A > 0, np.nan, A), "source.path .* not finite"),
        (COUNTS, A, "the data are integers, so x in .* must hold integers too"),
        (PIXELS, np.full((2, 4, 4, 1), 0.5), "the data are integers"),
        (PIXELS, np.full((2, 4, 4, 1), 256), "must lie in 0 to 255"),
    ],
)
def test_files_that_do_not_fit_are_refused(tmp_path, spec, x, message):
    with pytest.raises(DataError, match=message) as error:
        open_source(store(tmp_path / "a", x=x), spec)
    assert "\n" not in str(error.value)


def test_paths_that_are_missing_or_not_used(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"source\.name is npz, so source.path must be a file"):
        open_source("", SPEC)
    path = store(tmp_path / "a", x=A)
    monkeypatch.setattr("flowjax.data.source_points._MOST_NUMBERS", 99)
    with pytest.raises(DataError, match="holds 100 numbers, but a source may have at most 99: use fewer rows"):
        open_source(path, SPEC)
    for name in ("normal", "uniform", "moons"):
        config = changed(defaults(), {"source.name": name, "source.path": path})
        with pytest.raises(ConfigError, match=f"source.name '{name}' reads no file: use source.name 'npz'"):
            build(config, DataSpec("moons", (2,)))
    monkeypatch.chdir(tmp_path)
    assert resolve(changed(defaults(), {"source.path": "b.npz"})).source.path == str(tmp_path / "b.npz")


@pytest.mark.slow
def test_a_run_from_one_file_to_another(tmp_path):
    """The map of a shift: B is A + 5 in the first coordinate. The means of samples are those of B, up to 0.2 standard
    deviations, which 300 steps reach."""
    b = A + np.array([5.0, 0.0])
    changes = {"data.name": "", "data.path": store(tmp_path / "b", x=b), "source.name": "npz"}
    changes |= {
        "source.path": store(tmp_path / "a", x=A),
        "train.steps": 300,
        "train.batch_size": 256,
        "train.warmup": 0.0,
    }
    run = flowjax.train("moons", tmp_path / "run", changes | {"coupling.name": "ot"}, plots=False)
    drawn = run.sample(500, solver="euler", steps=10)
    np.testing.assert_allclose((drawn - b.mean(0)).mean(0) / b.std(0), 0, atol=0.2)
