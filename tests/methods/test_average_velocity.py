"""Mean flow, shortcut and flow map models against a flow in closed form (`tests.methods.known_flow`), in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import oracles
from flowjax.batch import Batch
from flowjax.methods import Context, FlowMap, MeanFlow, Network, Shortcut
from flowjax.methods.flow_map import FORMS
from flowjax.paths import GaussianPath
from flowjax.schedules import CondOT
from flowjax.sources import GaussianMixture, Normal
from tests.methods.known_flow import PATHS, flow_map, gradients, loss, method_of, standard_errors

KEY = jax.random.key(0)
KINDS = {
    "mean_flow": (MeanFlow, {"power": 0.0}),
    "improved": (MeanFlow, {"power": 0.0, "improved": True}),
    "shortcut": (Shortcut, {"levels": 12}),
    **{form: (FlowMap, {"form": form}) for form in FORMS},
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", KINDS)
def test_with_the_marginal_velocity_the_loss_is_zero_at_the_flow_map_and_nowhere_else(name, path):
    """Rounding: u is a difference of size 2^-52 divided by t - s, which is above 2^-12 but for a few of 1000 rows, and
    a derivative divides once more and multiplies by t - s: an error of 2^-39 at worst, 2^-78 squared. The shortcut of
    12 levels has errors of the order h^2 = 2^-24 in its finest steps, one row in 13."""
    kind, settings = KINDS[name]
    with jax.enable_x64(True):
        method = method_of(kind, path, taught=True, different=0.5, **settings)
        errors = jax.jit(lambda a: loss(method, a, KEY, 1000).metrics)
        right, wrong = errors(jnp.zeros(())), errors(jnp.asarray(0.1))
        assert float(right["squared_error"]) < (1e-14 if name == "shortcut" else 2.0**-78)
        for metric in ("squared_error", "velocity_error"):
            assert float(wrong[metric]) > 1e-3
        model = method.model(jnp.zeros(()), {})
        x = jax.random.normal(KEY, (5, 1), jnp.float64)
        for s, t in ((0.1, 0.9), (0.9, 0.1)):
            np.testing.assert_allclose(model.flow_map(s, t, x), flow_map(PATHS[path], s, t, x), rtol=1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", KINDS)
def test_with_the_conditional_velocity_the_gradient_vanishes_on_average_at_the_flow_map(name, path):
    """Means of 300 independent batches, at most 4 standard errors from 0. At a wrong map they are not."""
    kind, settings = KINDS[name]
    with jax.enable_x64(True):
        method = method_of(kind, path, different=0.5, **settings)
        values = gradients(method, 300)
        assert abs(standard_errors(values)) < 4
        assert values.std() > 0


def test_the_finest_steps_of_shortcuts_are_of_second_order():
    """One row in K + 1 has an error of u of h^2, or h^4 = 2^(-4 K) when squared."""
    with jax.enable_x64(True):
        errors = []
        for levels in (5, 8):
            method = method_of(Shortcut, taught=True, different=1.0, levels=levels)
            errors.append(float(loss(method, 0.0, KEY, 4000).metrics["consistency_error"]) * (levels + 1))
        assert np.log2(errors[0] / errors[1]) == pytest.approx(4 * 3, abs=0.5)


def test_the_adaptive_weight_shifts_the_minimum():
    """Data of -1 and 1, the second one nine times in ten: the conditional velocity at a point is skewed, and the
    weights 1 / (e + 0.001) move the minimiser from its mean towards the larger part, by 0.17 here. `shift` is added to
    the exact velocity."""
    path, means = GaussianPath(CondOT()), jnp.array([[-1.0], [1.0]])

    def gradient(power):
        oracle = oracles.mixture(path, GaussianMixture(means, 0.1, jnp.array([0.1, 0.9])))
        shifted: Any = lambda shift, t, x, cond, s: oracle.velocity(s, x) + shift
        network = Network.from_function(shifted)
        method = MeanFlow(network, path, Normal((1,)), power=power, different=0.0)

        def slope(key, shift):
            key_sign, key_data, key_loss = jax.random.split(key, 3)
            sign = jnp.where(jax.random.bernoulli(key_sign, 0.9, (256, 1)), 1.0, -1.0)
            batch = Batch(sign + 0.1 * jax.random.normal(key_data, (256, 1)))
            return jax.grad(lambda a: method.loss(a, Context(), key_loss, batch).value)(shift)

        every = jax.jit(jax.vmap(slope, in_axes=(0, None)))
        return lambda shift: standard_errors(every(jax.random.split(KEY, 200), jnp.asarray(shift)))

    with jax.enable_x64(True):
        plain, weighted = gradient(0.0), gradient(1.0)
        assert abs(plain(0.0)) < 4
        assert weighted(0.0) < -40
        assert weighted(0.1) < -4
        assert weighted(0.2) > 4
