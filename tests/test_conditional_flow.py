"""The call for other training loops, against the formulas of torchcfm's classes and against the exact velocity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowjax
from flowjax.couplings import MinibatchOT
from flowjax.paths import AffinePath, Constant, GaussianPath
from flowjax.schedules import CondOT

pytestmark = pytest.mark.analytic

KEY = jax.random.key(0)
X0, X1 = jax.random.normal(KEY, (2, 64, 2)) + jnp.array([0.0, 3.0])[:, None, None]


def test_the_straight_path():
    t, x_t, dx_t = jax.jit(flowjax.sample_location_and_conditional_flow)(KEY, X0, X1)
    assert t.shape == (64,)
    assert ((t >= 0) & (t <= 1)).all()
    np.testing.assert_allclose(x_t, (1 - t[:, None]) * X0 + t[:, None] * X1, atol=1e-6)
    np.testing.assert_allclose(dx_t, X1 - X0, atol=1e-6)


def test_constant_noise_leaves_the_velocity_as_it_is():
    """I-CFM with sigma: x_t ~ N(mean, sigma^2 I). The variance of 20,000 numbers has a relative deviation of 1%."""
    x0, x1 = jnp.zeros((10_000, 2)), jnp.ones((10_000, 2))
    t, x_t, dx_t = flowjax.sample_location_and_conditional_flow(KEY, x0, x1, AffinePath(CondOT(), Constant(0.1)))
    np.testing.assert_allclose(dx_t, 1.0, atol=1e-6)
    assert float(jnp.std(x_t - t[:, None])) == pytest.approx(0.1, rel=0.04)


def test_a_coupling_moves_only_the_source():
    t = jnp.full(64, 0.5)
    _, x_t, dx_t = flowjax.sample_location_and_conditional_flow(KEY, X0, X1, coupling=MinibatchOT(), t=t)
    paired = X1 - dx_t
    np.testing.assert_allclose(jnp.sort(paired, 0), jnp.sort(X0, 0), atol=1e-5)
    np.testing.assert_allclose(x_t, (paired + X1) / 2, atol=1e-5)
    assert jnp.sum(dx_t**2) < jnp.sum((X1 - X0) ** 2)


def test_the_mean_of_the_targets_is_the_velocity():
    """E[dx_t | x_t] v(x_t) = E[v^2]: for data N(3, 0.25) the projection on the exact velocity has slope 1."""
    x1 = 3 + 0.5 * jax.random.normal(jax.random.key(1), (200_000, 1))
    x0 = jax.random.normal(jax.random.key(2), x1.shape)
    path = GaussianPath(CondOT())
    t, x_t, dx_t = flowjax.sample_location_and_conditional_flow(KEY, x0, x1, path)
    v = flowjax.oracles.gaussian(path, 3.0, 0.5).velocity(t, x_t)
    slope = jnp.mean(dx_t * v) / jnp.mean(v * v)
    noise = float(jnp.std((dx_t - v) * v) / jnp.mean(v * v)) / 200_000**0.5
    assert float(slope) == pytest.approx(1.0, abs=4 * noise)
