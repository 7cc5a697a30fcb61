"""Moments and the Frechet distance against closed forms, NumPy and SciPy."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from flowjax import metrics
from flowjax.metrics.frechet import between, frechet_distance, frechet_of_pixels, with_bias
from flowjax.metrics.moments import Moments

pytestmark = pytest.mark.analytic


def spd(rng, d, rank=None):
    a = rng.normal(size=(d, rank or d))
    return a @ a.T / d


def test_moments_are_numpys_though_the_mean_is_large():
    """Features 1e6 + N(0, 1): sums of squares in float64 would lose 12 of 16 digits, and miss by 1e-4.

    About the mean only the mean's own rounding is left, 1e6 * 2^-53 = 1e-10 a row: 1e-8 is ample.
    """
    rows = 1e6 + np.random.default_rng(0).normal(size=(1000, 5))
    moments = Moments.of_chunks(np.split(rows, [1, 400, 401, 990]))
    assert moments.count == 1000
    np.testing.assert_allclose(moments.mean, rows.mean(0), rtol=1e-15)
    np.testing.assert_allclose(moments.cov, np.cov(rows, rowvar=False), atol=1e-8)


def test_moments_merge_in_any_order():
    rows = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
    a, b, c = (Moments.of(part) for part in np.split(rows, [7, 50]))
    for merged in (a.merge(b).merge(c), c.merge(a.merge(b)), Moments.of_chunks([rows])):
        np.testing.assert_allclose(merged.cov, np.cov(rows.astype(np.float64), rowvar=False), rtol=1e-12)
    with pytest.raises(ValueError, match="the same dimension"):
        a.merge(Moments.of(rows[:, :2]))
    with pytest.raises(ValueError, match="no rows"):
        Moments.of_chunks([])
    with pytest.raises(ValueError, match="two rows"):
        _ = Moments.of(rows[:1]).cov


def test_distance_on_the_line():
    """Of N(m, s^2) and N(n, r^2): (m - n)^2 + (s - r)^2."""
    one = lambda m, s: (np.array([m]), np.array([[s**2]]))
    assert frechet_distance(*one(1.0, 3.0), *one(-1.0, 0.5)) == pytest.approx(4 + 2.5**2, rel=1e-12)
    assert frechet_distance(*one(1.0, 3.0), *one(1.0, 0.0)) == pytest.approx(9.0, rel=1e-12)


def test_distance_of_covariances_that_commute():
    """In a common basis it is the sum over axes of (s - r)^2, here with some axes of no width."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    s, r = rng.uniform(0.1, 2, (2, 6)) * np.array([[1, 1, 0, 1, 1, 0], [1, 0, 1, 1, 1, 0]])
    m, n = rng.normal(size=(2, 6))
    got = frechet_distance(m, (basis * s**2) @ basis.T, n, (basis * r**2) @ basis.T)
    assert got == pytest.approx(((m - n) ** 2).sum() + ((s - r) ** 2).sum(), rel=1e-10)


def test_distance_of_covariances_that_do_not_commute():
    rng = np.random.default_rng(0)
    a, b, (m, n) = spd(rng, 20), spd(rng, 20), rng.normal(size=(2, 20))
    known = ((m - n) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(m, a, n, b) == pytest.approx(known, rel=1e-9)
    assert frechet_distance(n, b, m, a) == pytest.approx(known, rel=1e-9)


def test_distance_of_singular_covariances():
    """Ten rows of 40 numbers: rank 9. The traces are of the order of 1; what rounding leaves of an eigenvalue that is 0
    would enter as its root, 1e-8 each, were it not left out."""
    rng = np.random.default_rng(0)
    mean = np.zeros(40)
    a, b = spd(rng, 40, 9), spd(rng, 40, 12)
    assert frechet_distance(mean, a, mean, a) == pytest.approx(0.0, abs=1e-10)
    root = lambda c: (lambda w, v: (v * np.sqrt(np.maximum(w, 0))) @ v.T)(*np.linalg.eigh(c))
    known = np.trace(a) + np.trace(b) - 2 * np.linalg.norm(root(a) @ root(b), "nuc")
    assert frechet_distance(mean, a, mean, b) == pytest.approx(known, abs=1e-6)
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(mean, a * np.nan, mean, a)


def test_the_bias_falls_as_one_over_n():
    """N(0, I) against itself, exactly known, in D = 12: the mean of the distance of N rows is the bias.

    A sample covariance is off by a Wishart's fluctuation, E = (I + W / sqrt(N)), W symmetric with E tr W^2 = D^2 + D;
    tr(E + I - 2 E^(1/2)) = tr W^2 / 4 N to first order; with D / N of the mean, the bias is (D^2 + 5 D) / 4 N.
    Over 200 draws: means within 5 standard errors, and 10% for the next order, D / N = 0.06.
    """
    d, n = 12, 200
    rng = np.random.default_rng(0)
    truth = Moments(10**9, np.zeros(d), np.eye(d) * (10**9 - 1))
    drawn = np.array([with_bias(rng.normal(size=(n, d)), truth) for _ in range(200)])
    first_order = (d * d + 5 * d) / (4 * n)
    for column in drawn.T:
        assert column.mean() == pytest.approx(first_order, abs=5 * column.std() / 200**0.5 + 0.1 * first_order)
    value, _ = with_bias(rows := rng.normal(size=(n, d)), truth)
    assert value == pytest.approx(between(Moments.of(rows), truth), rel=1e-10)
    with pytest.raises(ValueError, match="four rows"):
        with_bias(rows[:3], truth)


def test_the_bias_does_not_mind_the_order():
    """Rows whose class is that of their index, as balanced samples come: the bias is that of the rows shuffled, up to
    the difference between two random halvings, a fifth of it in ten tries. Classes two apart would make it a hundred
    times larger."""
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(2000, 8)) + 2.0 * (np.arange(2000) % 10)[:, None]
    truth = Moments.of(rng.normal(size=(20_000, 8)) + 2.0 * (np.arange(20_000) % 10)[:, None])
    balanced, shuffled = with_bias(rows, truth), with_bias(rng.permutation(rows), truth)
    assert balanced.value == pytest.approx(shuffled.value, rel=1e-9)
    assert 0 < balanced.bias < 3 * shuffled.bias + 0.05


def test_fid_takes_any_network_of_features():
    """Features of an image are its mean and its first pixel, and their moments are NumPy's."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (2, 50, 4, 4, 3)).astype(np.uint8)
    network = lambda images: np.stack([images.mean((1, 2, 3)), images[:, 0, 0, 0].astype(float)], 1)
    moments = [(f.mean(0), np.cov(f, rowvar=False)) for f in map(network, (x, y))]
    assert metrics.fid(x, y, network) == pytest.approx(metrics.frechet_distance(*moments[0], *moments[1]), rel=1e-9)
    assert metrics.fid(x, Moments.of(network(y)), network) == pytest.approx(metrics.fid(x, y, network), rel=1e-12)
    assert metrics.fid(x, x, network) == pytest.approx(0.0, abs=1e-8)


def test_the_distance_of_pixels_is_that_of_the_moments_of_numpy():
    """A change of all pixels by a constant adds its square for each pixel."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 30, 2, 3, 1))
    moments = [(flat.mean(0), np.cov(flat, rowvar=False)) for flat in (x.reshape(30, -1), y.reshape(30, -1))]
    assert frechet_of_pixels(x, y) == pytest.approx(frechet_distance(*moments[0], *moments[1]), rel=1e-9)
    assert frechet_of_pixels(x, x + 2.0) == pytest.approx(6 * 2.0**2, rel=1e-9)
