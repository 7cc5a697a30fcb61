"""Straightness against closed forms, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.metrics import path_energy, straightness

pytestmark = pytest.mark.analytic


def test_straight_lines_at_constant_speed_have_none():
    """x_t = t m + (1 - t + t c) x0, the optimal transport of Gaussians; the rest is rounding of float64, squared."""
    m, c = 1.5, 0.25
    velocity = lambda t, x, cond: m + (c - 1) * (x - t * m) / (1 - t + t * c)
    with jax.enable_x64(True):
        x0 = jax.random.normal(jax.random.key(0), (16, 3))
        found = straightness(velocity, x0)
        # RK4 with 100 steps: its error of order h^4 = 1e-8 in x, times c - 1 over the factor 1 / c^2, is squared
        assert float(found.deviation.max()) < 1e-12
        np.testing.assert_allclose(found.transport_cost, ((m + (c - 1) * x0) ** 2).sum(1), rtol=1e-6)


def test_a_circle_and_an_exponential():
    """On half a circle of radius r in time 1, v = pi r and x1 - x0 = -2 x0: the deviation is (pi^2 - 4) r^2.
    For dx/dt = x, the integral of e^(2t) - 2 e^t (e - 1) + (e - 1)^2 is (e^2 - 1) / 2 - (e - 1)^2, times x0^2.
    RK4 and Simpson's rule with h = 1/50 and 1/100 have errors of order h^4 pi^5 / 180 < 1e-6.
    """
    with jax.enable_x64(True):
        x0 = jnp.asarray([[2.0, 0.0], [0.0, -1.0]])
        turn = lambda t, x, cond: jnp.pi * jnp.stack([-x[:, 1], x[:, 0]], -1)
        found = straightness(turn, x0)
        np.testing.assert_allclose(found.deviation, (np.pi**2 - 4) * np.asarray([4.0, 1.0]), rtol=2e-6)
        np.testing.assert_allclose(found.transport_cost, 4 * np.asarray([4.0, 1.0]), rtol=2e-6)
        np.testing.assert_allclose(found.turning, np.pi, rtol=2e-6)  # the tangent of half a circle turns by pi
        grow = straightness(lambda t, x, cond: x, x0)
        expected = (np.e**2 - 1) / 2 - (np.e - 1) ** 2
        np.testing.assert_allclose(grow.deviation, expected * np.asarray([4.0, 1.0]), rtol=2e-6)
        np.testing.assert_allclose(grow.turning, 0.0, atol=1e-6)  # straight, but faster and faster


def test_turning_at_an_inflection_and_at_a_reversal():
    """v = (1, cos 2 pi t) turns from pi/4 to -pi/4 and back, by pi in all: the sum of angles is exact, as both ends of
    each monotone part are nodes. v = (1 - 2 t, 0) reverses at t = 1/2, where it is zero: it turns by pi.
    """
    with jax.enable_x64(True):
        x0 = jnp.zeros((1, 2))
        wave = lambda t, x, cond: jnp.stack([jnp.ones(len(x)), jnp.cos(2 * jnp.pi * t) * jnp.ones(len(x))], -1)
        back = lambda t, x, cond: jnp.stack([(1 - 2 * t) * jnp.ones(len(x)), jnp.zeros(len(x))], -1)
        for steps in (20, 40):
            np.testing.assert_allclose(straightness(wave, x0, steps=steps).turning, np.pi, rtol=1e-12)
            np.testing.assert_allclose(straightness(back, x0, steps=steps).turning, np.pi, rtol=1e-6)
        # sin(4 pi t) has its extrema at t = 1/8, ..., which are 1/40 and 1/200 away from the nearest nodes
        fast = lambda t, x, cond: jnp.stack([jnp.ones(len(x)), jnp.sin(4 * jnp.pi * t) * jnp.ones(len(x))], -1)
        error = [float(4 * np.pi / 2 - straightness(fast, x0, steps=n).turning[0]) for n in (20, 100)]
        np.testing.assert_allclose(error[0] / error[1], 25, rtol=0.1)  # the angle is stationary there: order 2


def test_the_deviation_is_the_path_energy_without_the_transport_cost():
    """The integral of |v|^2 - |x1 - x0|^2, as v integrates to x1 - x0 on [0, 1]; on [0, 1/2] with means over time."""
    field = lambda t, x, cond: jnp.sin(3 * x) + t * jnp.cos(x[:, ::-1])
    with jax.enable_x64(True):
        x0 = jax.random.normal(jax.random.key(1), (8, 2))
        for end in (1.0, 0.5):
            found, energy = straightness(field, x0, t0=0.0, t1=end), path_energy(field, x0, t0=0.0, t1=end)
            expected = energy / end - found.transport_cost / end**2
            np.testing.assert_allclose(found.deviation, expected, rtol=1e-4, atol=1e-6)
