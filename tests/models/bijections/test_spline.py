"""The rational-quadratic spline: inside and outside of its bound, at the bound, and at extreme parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.models.bijections import RationalQuadraticSpline

pytestmark = pytest.mark.analytic

SPLINE = RationalQuadraticSpline(5, 2.0)


def raw(scale, columns, key=0):
    return scale * jax.random.normal(jax.random.key(key), (SPLINE.parameters, columns), float)


def test_the_derivative_is_that_of_the_map_and_the_inverse_inverts_it():
    with jax.enable_x64(True):
        x = jnp.linspace(-1.99, 1.99, 41)
        forward = lambda x: SPLINE.forward(x, raw(1.0, 41))
        z, log_derivative = forward(x)
        slopes = jax.jvp(lambda x: forward(x)[0], (x,), (jnp.ones_like(x),))[1]
        np.testing.assert_allclose(log_derivative, np.log(slopes), atol=1e-10)
        back, inverse = SPLINE.inverse(z, raw(1.0, 41))
        np.testing.assert_allclose(back, x, atol=1e-10)
        np.testing.assert_allclose(inverse, -log_derivative, atol=1e-9)
        assert np.ptp(slopes) > 0.5


def test_it_is_increasing_and_passes_through_the_bounds():
    with jax.enable_x64(True):
        one = jnp.broadcast_to(raw(1.5, 1), (SPLINE.parameters, 401))
        x = jnp.linspace(-2.5, 2.5, 401)
        z, _ = SPLINE.forward(x, one)
        assert (np.diff(z) > 0).all()
        np.testing.assert_array_equal(z[abs(x) >= 2], x[abs(x) >= 2])


def test_the_tails_are_the_identity_and_the_derivative_is_continuous_at_the_bound():
    with jax.enable_x64(True):
        e = 1e-9
        x = jnp.array([-7.0, -2 - e, -2 + e, 2 - e, 2 + e, 7.0])
        for change in (SPLINE.forward, SPLINE.inverse):
            y, log_derivative = change(x, raw(1.0, 6))
            np.testing.assert_allclose(y, x, atol=1e-8)
            np.testing.assert_allclose(log_derivative, 0, atol=1e-6)
            np.testing.assert_array_equal(y[jnp.array([0, 1, 4, 5])], x[jnp.array([0, 1, 4, 5])])


def test_extreme_parameters_and_their_gradients_are_finite_in_float32():
    x = jnp.array([-1e9, -2.0, -1.0, 0.0, 0.3, 2.0, 1e9])
    parameters = jnp.sign(raw(1.0, 7)).astype(jnp.float32) * 60.0
    for change in (SPLINE.forward, SPLINE.inverse):
        total = lambda x, raw, change=change: sum(jnp.sum(a) for a in change(x, raw))
        value, gradients = jax.value_and_grad(total, (0, 1))(x, parameters)
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() for g in gradients)


def test_the_number_of_bins_is_limited():
    with pytest.raises(ValueError, match="1 to 256 bins, not 0"):
        _ = RationalQuadraticSpline(0, 2.0).parameters
