"""The loss of a row and the U-shaped times, against closed forms in float64, and in a method from its config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax.batch import Batch
from flowjax.build import build
from flowjax.config import resolve
from flowjax.data import DataSpec
from flowjax.errors import ConfigError
from flowjax.methods import Context, FlowMatching, Network, times
from flowjax.methods.errors_of_rows import PseudoHuber
from flowjax.paths import AffinePath
from flowjax.schedules import CondOT
from flowjax.sources import Normal

pytestmark = pytest.mark.analytic
KEY = jax.random.key(0)
PATH = AffinePath(CondOT())


@pytest.mark.parametrize("c", [1e-3, 0.3, 10.0])
def test_pseudo_huber_is_its_formula_and_has_its_derivative(c):
    """In float64, where sqrt(e + c^2) - c is rounded by 1e-16 times c; d/de = 1 / (2 sqrt(e + c^2))."""
    with jax.enable_x64(True):
        e = jnp.asarray([0.0, 1e-8, 1e-3, 1.0, 1e4])
        expected = np.sqrt(np.asarray(e) + c**2) - c
        np.testing.assert_allclose(PseudoHuber(c)(e), expected, rtol=1e-12, atol=1e-15 * c)
        slope = jax.vmap(jax.grad(lambda one: PseudoHuber(c)(one[None])[0]))(e)
        np.testing.assert_allclose(slope, 0.5 / np.sqrt(np.asarray(e) + c**2), rtol=1e-12)


def test_pseudo_huber_does_not_cancel_in_float32():
    """For e << c^2 it is e / (2 c): float32 rounds sqrt(e + c^2) - c to 0 here."""
    assert float(PseudoHuber(1.0)(jnp.asarray([1e-9]))[0]) == pytest.approx(0.5e-9, rel=1e-5)


@pytest.mark.parametrize("a", [0.001, 1.0, 4.0, 80.0])
def test_u_shaped_times_have_their_distribution_function(a):
    """Kolmogorov-Smirnov at level 1e-3 with a fixed key, on the interval [0.2, 0.7]."""
    t = np.asarray(times.UShaped(a)(KEY, 20_000, PATH, (0.2, 0.7)).t, np.float64)
    assert 0.2 <= t.min() <= t.max() <= np.float32(0.7)
    cdf = lambda t: 0.5 + np.sinh(a * ((t - 0.2) / 0.5 - 0.5)) / (2 * np.sinh(a / 2))
    assert stats.kstest(t, cdf).pvalue > 1e-3


def test_the_distribution_function_is_the_integral_of_the_density():
    """The trapezoidal rule on 1e5 intervals has an error of a^2 / 12 * 1e-10 relative to the density."""
    a, u = 4.0, np.linspace(0, 1, 100_001)
    density = np.exp(a * (u - 0.5)) + np.exp(-a * (u - 0.5))
    cdf = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    np.testing.assert_allclose(cdf / cdf[-1], 0.5 + np.sinh(a * (u - 0.5)) / (2 * np.sinh(a / 2)), atol=1e-8)


def test_the_loss_of_the_optimal_pairs_of_a_gaussian_is_zero_at_the_exact_velocity():
    """x1 = m + c x0 on CondOT: x_t = t m + (1 - t + t c) x0, so v(t, x) = m + (c - 1) (x - t m) / (1 - t + t c), the
    velocity of N(0, 1) -> N(m, c^2), is x1 - x0 on each row. In float64 the error is about 1e-16 squared; a velocity
    that is off by d has the loss d^2, for all rows alike.
    """
    m, c = 1.5, 0.4

    def velocity(off, t, x, cond):
        t = t[:, None]
        return off + m + (c - 1) * (x - t * m) / (1 - t + t * c)

    with jax.enable_x64(True):
        x0 = jax.random.normal(KEY, (256, 3))
        batch = Batch(m + c * x0, x0=x0)
        method = FlowMatching(Network.from_function(velocity), PATH, Normal((3,)))
        value, slope = jax.value_and_grad(lambda off: method.loss(off, Context(), KEY, batch).value)(jnp.zeros(()))
        assert abs(float(value)) < 1e-28
        assert abs(float(slope)) < 1e-14
        assert float(method.loss(jnp.asarray(0.1), Context(), KEY, batch).value) == pytest.approx(0.01, rel=1e-12)


def test_a_config_names_them():
    method = build(
        resolve({"method": {"name": "flow_matching", "loss": "pseudo_huber(0.3)", "times": "u_shaped(2)"}}),
        DataSpec("moons", (2,)),
    )
    assert (method.row_loss, method.drawn) == (PseudoHuber(0.3), times.UShaped(2))
    for key, text, message in (
        ("loss", "pseudo_huber(0)", "pseudo_huber"),
        ("loss", "absolute", "unknown 'absolute'"),
        ("times", "u_shaped(0)", "u_shaped"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(resolve({"method": {"name": "flow_matching", key: text}}), DataSpec("moons", (2,)))
