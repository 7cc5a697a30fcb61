"""Integers that are not pixels: dequantisation, ranges, records, and densities and samples against closed forms."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax.build import build
from flowjax.config import defaults
from flowjax.data import Affine, DataError, DataSpec, open_dataset
from flowjax.inference import sampling, scoring
from flowjax.inference.choose import SolverSettings
from flowjax.inference.run import Run
from flowjax.methods import Network
from tests.data.stored import store

RNG = np.random.default_rng(0)
COUNTS = np.stack([RNG.poisson(3.0, 400), RNG.integers(-40, 41, 400), np.full(400, 7)], -1)


def opened(folder, kind="npz", normalise="", **arrays):
    return open_dataset(kind, store(folder, kind, **arrays), normalise=normalise)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("dtype", ["int8", "int16", ">i4", "int64"])
def test_columns_of_integers_are_standardised_after_dequantisation(tmp_path, monkeypatch, dtype, streamed):
    """A uniform number on [0, 1) adds 1/2 to the mean and 1/12 to the variance, here in float64. The constant column is
    uniform after dequantisation, with mean 7.5 and variance 1/12. Without noise, k + u becomes k + u - shift over the
    scale, rounded to float32: off by 2^-24 of at most 20."""
    if streamed:
        monkeypatch.setattr("flowjax.data.dataset.RESIDENT_BYTES", 0)
    dataset = opened(tmp_path / "a", "npy", x=COUNTS.astype(dtype))
    spec, trained = dataset.spec, np.delete(COUNTS, dataset.test_rows, 0)
    np.testing.assert_allclose(spec.normalise.scale, np.sqrt(trained.var(0) + 1 / 12), rtol=1e-12)
    np.testing.assert_allclose(spec.normalise.shift, trained.mean(0) + 0.5, rtol=1e-12)
    assert spec.integers == tuple(zip(COUNTS.min(0).tolist(), COUNTS.max(0).tolist(), strict=True))
    rows = np.stack([dataset.rows[i].x1 for i in range(360)]) if streamed else dataset.arrays().x1
    expected = (trained - np.asarray(spec.normalise.shift)) / np.asarray(spec.normalise.scale)
    np.testing.assert_allclose(rows, expected, atol=20 * 2.0**-24)
    noise = (np.asarray(spec.prepare(jax.random.key(0), jnp.asarray(rows))) - expected) * spec.normalise.scale
    assert noise.min() > -1e-4
    assert noise.max() < 1 + 1e-4
    assert stats.kstest(noise.ravel(), "uniform").pvalue > 1e-3
    assert dataset.test.dtype == np.float32
    np.testing.assert_array_equal(dataset.test, COUNTS[dataset.test_rows])
    assert "x holds integers" in dataset.notes[0]


@pytest.mark.parametrize(
    "x",
    [
        COUNTS > 3,
        COUNTS[:, :1].astype(np.uint8),
        COUNTS.clip(0).astype(np.uint16),
        COUNTS + 2**24,
        COUNTS.repeat(4, 1).reshape(400, 6, 2),
    ],
    ids=["bool", "uint8", "uint16", "far", "sequence"],
)
@pytest.mark.parametrize("normalise", ["", "global"])
def test_dequantised_integers_come_back(tmp_path, x, normalise):
    """float32 rounds model space by 2^-24 of at most 8 deviations of up to 30, so that a fraction of 1e-5 of the 400 to
    4,800 numbers is near enough to an edge to change: none with this key. Samples far outside are clipped."""
    dataset = opened(tmp_path / "a", x=x, normalise=normalise)
    spec = dataset.spec
    trained = np.delete(x, dataset.test_rows, 0).astype(np.int64)
    back = spec.finish(spec.prepare(jax.random.key(1), jnp.asarray(dataset.arrays().x1)))
    assert back.dtype == spec.dtype == np.int64
    np.testing.assert_array_equal(back, trained)
    np.testing.assert_array_equal(dataset.test, x[dataset.test_rows])
    far = spec.finish(np.full((2, *spec.shape), 1e30) * np.array([-1, 1]).reshape(2, *[1] * len(spec.shape)))
    axes = tuple(range(x.ndim - 1))
    np.testing.assert_array_equal(far[0], np.broadcast_to(x.min(axes).astype(int), spec.shape))
    np.testing.assert_array_equal(far[1], np.broadcast_to(x.max(axes).astype(int), spec.shape))
    assert DataSpec.from_record(json.loads(json.dumps(spec.to_record()))) == spec


def test_real_columns_beside_integers_are_not_changed():
    """The second column is real: no noise, no floor, and its map is unchanged. The other goes beyond 2^24."""
    spec = DataSpec("x", (2,), Affine((4.0, 0.5), (1.0, -2.0)), integers=((-3, 2**30), None))
    x = np.array([[5.0, 0.25], [2.0**30, -7.5]])
    encoded = spec.encode(x)
    np.testing.assert_array_equal(encoded[:, 1], [4.5, -11.0])
    noisy = np.asarray(spec.prepare(jax.random.key(0), jnp.asarray(encoded)))
    np.testing.assert_array_equal(noisy[:, 1], encoded[:, 1])
    assert 0 < noisy[0, 0] - encoded[0, 0] < 0.25
    assert spec.dtype == np.float64
    np.testing.assert_array_equal(spec.finish(encoded), x)
    np.testing.assert_array_equal(spec.finish(np.array([[1e9, 0.1]])), [[2**30, -1.95]])
    assert (spec.dequantises(x), spec.dequantises(x + np.array([0.5, 0.0]))) == (True, False)
    small = dataclasses.replace(spec, integers=((-3, 9), None))
    assert small.dtype == np.float32


SCALE, SHIFT, LOW, HIGH = 1.5, 0.7, -1, 2
NORMAL: Any = stats.norm(SHIFT, SCALE)


def normal_run():
    """A run whose data are N(0, 1) in model space: the velocity of the linear path from N(0, 1) is the derivative of
    the logarithm of its standard deviation sqrt(t^2 + (1 - t)^2), times x."""
    spec, config = DataSpec("npz", (1,), Affine(SCALE, SHIFT), integers=((LOW, HIGH),)), defaults("mlp")
    velocity = lambda params, t, x, cond: (jnp.reshape((2 * t - 1) / (t**2 + (1 - t) ** 2), (-1, 1))) * x
    method = dataclasses.replace(build(config, spec), network=Network.from_function(velocity))
    return Run(Path("run"), config, 0, spec, method, {})


def test_the_dequantised_likelihood_is_the_probability_of_a_bin():
    """The mean of p(k + u) over u is the normal probability of [k, k + 1). 4,000 draws of u, stratified by nothing: its
    standard error is measured, and the deviation stays below four of them. The solver's error is below 1e-4. At points
    that are not integers, the density is the normal density."""
    run, edges = normal_run(), NORMAL
    for k in (-1, 0, 2):
        scored = scoring.log_prob(run, np.full((4000, 1), k), batch=4000, solver=SolverSettings("rk4", steps=40))
        density = np.exp(scored.log_prob)
        stderr = density.std() / np.sqrt(len(density))
        exact = edges.cdf(k + 1) - edges.cdf(k)
        assert abs(density.mean() - exact) < 4 * stderr + 1e-4 * exact
        assert density.std() > 10 * stderr  # the points are dequantised
    x = np.array([[-0.5], [0.25], [1.9]])
    scored = scoring.log_prob(run, x, solver=SolverSettings("rk4", steps=40))
    np.testing.assert_allclose(scored.log_prob, edges.logpdf(x[:, 0]), atol=1e-4)


def test_samples_have_the_probabilities_of_the_bins_and_the_tails_at_the_ends():
    """A chi-square test of 4,000 samples at level 1e-3."""
    drawn = sampling.sample(normal_run(), 4000, solver=SolverSettings("rk4", steps=20), batch=4000).samples
    assert drawn.dtype == np.int64
    edges = NORMAL.cdf([-np.inf, *range(LOW + 1, HIGH + 1), np.inf])
    counts = np.bincount(drawn[:, 0] - LOW, minlength=HIGH - LOW + 1)
    assert stats.chisquare(counts, 4000 * np.diff(edges)).pvalue > 1e-3


VECTORS = COUNTS[:20]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": VECTORS.astype(np.uint8)[..., None]}, r"x = x\[\.\.\., None\], and for sequences of integers"),
        ({"x": np.zeros((20, 4, 4, 3), int)}, "integers must be 8-bit images, vectors .N, D. or sequences"),
        ({"x": VECTORS + 2**60}, r"beyond 2\^53, where float64 cannot tell integers apart"),
        ({"x": VECTORS, "x_test": VECTORS + 0.5}, "x holds integers, so x_test must hold integers too"),
        ({"x": VECTORS[..., None], "mask": np.ones((20, 3), bool)}, "a mask needs floating-point sets"),
        ({"x": VECTORS, "normalise": "channel"}, "data.normalise 'channel' is for images and sequences"),
    ],
)
def test_integers_that_are_refused(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message) as error:
        opened(tmp_path / "a", **arrays)
    assert "\n" not in str(error.value)


def test_pairs_of_integers_are_dequantised_too(tmp_path):
    path = store(tmp_path / "a", x=COUNTS, x0=COUNTS + 1)
    rows = open_dataset("npz", path, pairs="x0").arrays()
    spec = open_dataset("npz", path, pairs="x0").spec
    np.testing.assert_allclose((rows.x0 - rows.x1) * spec.normalise.scale, 1.0, atol=1e-4)
    with pytest.raises(DataError, match="both must be uint8, both other integers, or both floats"):
        open_dataset("npz", store(tmp_path / "b", x=COUNTS, x0=COUNTS + 0.5), pairs="x0")


SPEC = DataSpec("x", (2,), Affine(2.0, 0.0), integers=((0, 4), None))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[0, 1.0], None], "integers is"),
        ([[0, True], None], "integers is"),
        ([[1, 0], None], "integers is"),
        ([[0, 2**54], None], "integers is"),
        ([[0], None], "integers is"),
        ("ab", "integers is"),
        ({}, "integers is"),
        ([[0, 1], None, None], "integers must have a range for each of the 2 entries"),
        ([None, None], "integers must have a range"),
    ],
)
def test_a_damaged_record_of_integers_is_refused(value, message):
    with pytest.raises(DataError, match=message):
        DataSpec.from_record(SPEC.to_record() | {"integers": value})


def test_records_without_integers_are_read_and_pixels_have_none():
    record = SPEC.to_record()
    del record["integers"]
    assert DataSpec.from_record(record) == dataclasses.replace(SPEC, integers=())
    with pytest.raises(DataError, match="levels must be 0, but there are 1 and levels is 256"):
        DataSpec("x", (4, 4, 1), Affine(127.5, 127.5), levels=256, integers=((0, 1),))
    assert SPEC.differences(dataclasses.replace(SPEC, integers=((0, 5), None))) == [
        "integers is [[0, 4], None] and was [[0, 5], None]"
    ]
