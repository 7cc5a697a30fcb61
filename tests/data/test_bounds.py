"""Data with bounds: the maps against SciPy's distributions, and samples and densities of a data set with bounds."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax.data.affine import Affine, DataError
from flowjax.data.bounds import Bounds
from flowjax.data.spec import DataSpec

pytestmark = pytest.mark.analytic

INF = math.inf
BOUNDS = Bounds(((-1.0, 3.0), (0.5, INF), (-INF, 2.0), (-INF, INF)))


def points(n=1000):
    u = np.random.default_rng(0).normal(size=(n, 4)) * 2
    return u, BOUNDS.to_bounded(u)


def test_the_maps_are_inverses_and_stay_inside():
    u, x = points()
    assert BOUNDS.contain(x).all()
    # near a bound a rounding error of x is a larger one of u: eps max|x| / (dx/du), 1e-16 * 3 / 6e-6 = 5e-11 at |u| = 5
    np.testing.assert_allclose(BOUNDS.to_unbounded(x)[np.abs(u) < 5], u[np.abs(u) < 5], rtol=1e-8, atol=1e-8)


def test_a_uniform_distribution_becomes_standard_normal_and_a_log_normal_one_normal():
    rng = np.random.default_rng(1)
    uniform, log_normal = rng.uniform(-1, 3, 4000), 0.5 + rng.lognormal(0.3, 0.7, 4000)
    x = np.stack([uniform, log_normal, 2 - log_normal, uniform], 1)
    u = BOUNDS.to_unbounded(x)
    assert stats.kstest(u[:, 0], "norm").pvalue > 0.01
    assert stats.kstest(u[:, 1], stats.norm(0.3, 0.7).cdf).pvalue > 0.01
    np.testing.assert_array_equal(u[:, 3], x[:, 3])


def test_the_log_derivative_is_that_of_automatic_differentiation():
    with jax.enable_x64(True):
        u = jnp.asarray(points(20)[0])
        jacobian = jax.vmap(jax.jacfwd(lambda one: BOUNDS.to_bounded(one[None])[0]))(u)
        expected = jnp.linalg.slogdet(jacobian)[1]
        np.testing.assert_allclose(BOUNDS.log_derivative(np.asarray(u)), expected, rtol=1e-9)


def test_jax_and_numpy_agree():
    u, x = points()
    with jax.enable_x64(True):
        np.testing.assert_allclose(BOUNDS.to_bounded(jnp.asarray(u)), x, rtol=1e-12, atol=1e-12)
        close = np.abs(u) < 5
        np.testing.assert_allclose(BOUNDS.to_unbounded(jnp.asarray(x))[close], u[close], rtol=1e-8, atol=1e-8)
    assert jnp.isfinite(BOUNDS.to_unbounded(jnp.array([[-1.0, 0.5, 2.0, 0.0], [3.0, 0.5, 2.0, 0.0]]))).all()


def spec_of(**more):
    return DataSpec("npz", (2,), Affine((2.0, 0.5), (0.1, -0.2)), bounds=((-1.0, 3.0), (0.0, INF)), **more)


def test_no_sample_leaves_the_support():
    extreme = np.array([[40.0, 400.0], [-40.0, -400.0]])
    found = spec_of().finish(extreme)
    assert found.dtype == np.float32
    assert (found[:, 0] > -1).all()
    assert (found[:, 0] < 3).all()
    assert (found[:, 1] > 0).all()
    assert (found[:, 1] < INF).all()
    inside = np.random.default_rng(2).uniform([-1, 0], [3, 9], (50, 2)).astype(np.float32)
    np.testing.assert_allclose(spec_of().finish(spec_of().to_model(inside)), inside, rtol=1e-5)


def test_densities_are_those_of_the_bounded_data():
    """A standard normal in model space is a uniform times a log-normal distribution, with the scales of the map."""
    spec = DataSpec("npz", (2,), Affine((1.0, 0.5), (0.0, -0.2)), bounds=((-1.0, 3.0), (0.0, INF)))
    x = np.random.default_rng(3).uniform([-1, 0.1], [3, 4], (50, 2))
    in_model_space = stats.norm.logpdf(spec.to_model(x)).sum(1)
    expected = math.log(1 / 4) + stats.lognorm.logpdf(x[:, 1], 0.5, scale=math.exp(-0.2))
    np.testing.assert_allclose(spec.log_prob_to_data(in_model_space, x), expected, rtol=1e-5, atol=1e-5)
    outside = spec.log_prob_to_data(np.zeros(2), np.array([[4.0, 1.0], [0.0, -1.0]]))
    assert (outside == -INF).all()


def test_bounds_are_recorded_and_checked():
    spec = spec_of()
    record = json.loads(json.dumps(spec.to_record(), allow_nan=False))
    assert record["bounds"] == [[-1.0, 3.0], [0.0, None]]
    assert DataSpec.from_record(record) == spec
    for bad in ([[0, 1]], [[1, 0], [0, 1]], [[0, "a"], [0, 1]]):
        with pytest.raises(DataError, match="bounds"):
            DataSpec.from_record(record | {"bounds": bad})
    with pytest.raises(DataError, match="low < high"):
        Bounds(((1.0, 1.0),))


def test_float64_is_taken_where_float32_has_too_few_digits():
    free = DataSpec("npz", (2,), Affine((1.0, 1.0), (0.0, 1e6)), bounds=((0.0, INF), (-INF, INF)))
    assert free.dtype == np.float64
    assert DataSpec("npz", (1,), bounds=((1e6, 1e6 + 1),)).dtype == np.float64
    assert DataSpec("npz", (1,), bounds=((1e6, INF),)).dtype == np.float64
    assert spec_of().dtype == np.float32
