"""Maps between data and model space with a scale for each feature: their inverse, their densities, and their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax.conditions import Field
from flowjax.data import Affine, DataError, DataSpec

SCALE, SHIFT = (3e-5, 0.2, 1e4), (7e-4, -3.0, 2e5)


def test_features_return_in_float64():
    """Two roundings of relative size 2^-53 each way, of numbers of at most 5 + |shift| / scale scales."""
    affine = Affine(SCALE, SHIFT)
    x = np.random.default_rng(0).normal(size=(100, 3)) * SCALE + SHIFT
    largest = np.abs(x).max(0)
    assert np.all(np.abs(affine.to_data(affine.to_model(x)) - x) <= 4 * 2**-53 * largest)
    y = affine.to_model(x)
    assert np.abs(y).max() < 5
    on_device = jax.jit(affine.to_data)(jnp.asarray(y, jnp.float32))
    assert np.all(np.abs(np.asarray(on_device, np.float64) - x) <= 4 * 2**-24 * largest)


def test_density_of_gaussian_features_is_exact():
    """x_i = shift_i + scale_i z with z normal: log p is a sum of scipy's log-densities; in float64, to its rounding."""
    affine = Affine(SCALE, SHIFT)
    z = np.random.default_rng(1).normal(size=(50, 3))
    expected = stats.norm.logpdf(affine.to_data(z), SHIFT, SCALE).sum(-1)
    found = affine.log_prob_to_data(stats.norm.logpdf(z).sum(-1), 3)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_density_of_channels_counts_every_pixel():
    """The Jacobian of the map of a whole image, by automatic differentiation."""
    affine = Affine((0.5, 3.0), (1.0, -1.0))
    jacobian = jax.jacobian(lambda x: affine.to_data(x.reshape(2, 3, 2)).ravel())(jnp.zeros(12))
    log_det = np.linalg.slogdet(np.asarray(jacobian, np.float64))[1]
    assert affine.log_prob_to_data(0.0, 12) == pytest.approx(-log_det, rel=1e-6)


@pytest.mark.parametrize(
    "values", [((1.0, 0.0), (0.0, 0.0)), ((1.0, 2.0), (0.0,)), ((), ()), (1.0, (0.0, np.inf)), ((1.0, np.nan), 0.0)]
)
def test_maps_that_lose_information_are_refused(values):
    with pytest.raises(DataError):
        Affine(*values)


def test_a_map_must_fit_its_examples():
    with pytest.raises(DataError, match="cannot have 3 scales"):
        DataSpec("x", (3, 2), Affine(SCALE, SHIFT))


def test_conditions_are_standardised_and_missing_values_stay_missing():
    fields = Field("obs", "vector", (2,)), Field("mass", "vector", (1,))
    spec = DataSpec(
        "x", (2,), Affine(), 4, conditions=fields, condition_maps=(Affine((2.0, 4.0), (1.0, 0.0)), Affine())
    )
    cond = {"label": np.array([3, 1]), "obs": np.array([[3.0, np.nan], [1.0, 8.0]]), "mass": np.array([1.0, 2.0])}
    found = spec.encode_cond(cond)
    assert {name: a.dtype.name for name, a in found.items()} == {"label": "int32", "obs": "float32", "mass": "float32"}
    np.testing.assert_array_equal(found["obs"], [[1.0, np.nan], [0.0, 2.0]])
    np.testing.assert_array_equal(found["mass"], [[1.0], [2.0]])
    for bad, message in (
        ({"size": np.zeros(2)}, "no condition 'size': they have label, obs, mass"),
        ({"obs": np.zeros((2, 3))}, r"obs must be \(N, 2\), not \(2, 3\)"),
        ({"mass": np.array([np.inf])}, "infinite"),
    ):
        with pytest.raises(DataError, match=message):
            spec.encode_cond(bad)
