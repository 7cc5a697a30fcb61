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
from tests.methods.known_flow import FLOWS, Between, KnownFlow, gradients, method_of, z_score

KEY = jax.random.key(0)
KINDS = {
    "mean_flow": (MeanFlow, {"power": 0.0}),
    "improved": (MeanFlow, {"power": 0.0, "improved": True}),
    "shortcut": (Shortcut, {"levels": 12}),
    **{form: (FlowMap, {"form": form}) for form in FORMS},
}


def data(flow, n=256):
    return lambda key: Batch(flow.m + flow.c * jax.random.normal(key, (n, 1)))


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("name", KINDS)
def test_with_the_marginal_velocity_the_loss_is_zero_at_the_flow_map_and_nowhere_else(name, flow):
    """Rounding: u is a difference of size 2^-52 divided by t - s, which is above 2^-12 but for a few of 1000 rows, and
    a derivative divides once more and multiplies by t - s: an error of 2^-39 at worst, 2^-78 squared. The shortcut of
    12 levels has errors of the order h^2 = 2^-24 in its finest steps, one row in 13."""
    kind, settings = KINDS[name]
    with jax.enable_x64(True):
        known, method = FLOWS[flow], method_of(kind, flow, taught=True, different=0.5, **settings)
        batch = data(known, 1000)(KEY)
        errors = jax.jit(lambda a: method.loss(a, known.context, KEY, batch).metrics)
        right, wrong = errors(jnp.zeros(())), errors(jnp.asarray(0.1))
        assert float(right["squared_error"]) < (1e-14 if name == "shortcut" else 2.0**-78)
        for metric in ("squared_error", "velocity_error"):
            assert float(wrong[metric]) > 1e-3
        model = method.model(jnp.zeros(()), {})
        x = jax.random.normal(KEY, (5, 1), jnp.float64)
        for s, t in ((0.1, 0.9), (0.9, 0.1)):
            np.testing.assert_allclose(model.flow_map(s, t, x), known.flow_map(s, t, x), rtol=1e-12)


@pytest.mark.parametrize("name", KINDS)
def test_with_the_conditional_velocity_the_gradient_vanishes_on_average_at_the_flow_map(name):
    """Means of 300 independent batches: at most 4 standard errors from 0 at the exact map, and more at a wrong one."""
    kind, settings = KINDS[name]
    with jax.enable_x64(True):
        method = method_of(kind, different=0.5, **settings)
        at = lambda params: z_score(gradients(method, data(FLOWS["condot"]), params))
        assert abs(at(0.0)) < 4
        assert at(0.2) > 4


def u(w, s, t, x):
    """An average velocity of no flow, for which the derivatives in s, t and x differ."""
    return jnp.sin(w * x + t - w * s)


def by(w, s, t, x):
    """The derivatives of `u` in s, t and x."""
    return tuple(factor * jnp.cos(w * x + t - w * s) for factor in (-w, 1.0, w))


def lagrangian(p, p_fixed, q, s, t, x):
    return u(p, s, t, x) + (t - s) * by(p, s, t, x)[1] - u(q, t, t, x + (t - s) * u(p_fixed, s, t, x))


def eulerian(p, p_fixed, q, s, t, x):
    v = u(q, s, s, x)
    return u(p, s, t, x) - (t - s) * by(p, s, t, x)[0] - v - (t - s) * by(q, s, t, x)[2] * v


def progressive(p, p_fixed, q, s, t, x):
    r = (s + t) / 2
    first = u(q, s, r, x)
    return u(p, s, t, x) - (first + u(q, r, t, x + (r - s) * first)) / 2


def shortcut(p, p_fixed, q, s, t, x):
    """With levels = 2 the finest step is 1/4, which is one of Heun's method."""
    v = u(q, s, s, x)
    heun = u(p, s, t, x) - (v + u(q, t, t, x + (t - s) * v)) / 2
    return jnp.where(t - s < 0.3, heun, progressive(p, p_fixed, q, s, t, x))


RESIDUALS = {"lagrangian": lagrangian, "eulerian": eulerian, "progressive": progressive, "shortcut": shortcut}


@pytest.mark.parametrize("targets", [{}, {"target": 0.4}], ids=["own", "average"])
@pytest.mark.parametrize("name", RESIDUALS)
def test_where_the_gradient_is_stopped(name, targets):
    """At the wrong parameter 0.7 the derivative of the loss is that of the square of a residual, written above, in p.
    `p_fixed` is a copy of the parameter that is not differentiated, and q is its moving average or, without one,
    another such copy. With derivatives in the copies the result is another one. Rows with s = t have the residual
    u - v_c. Rounding of float64."""
    kind, settings = KINDS[name]
    with jax.enable_x64(True):
        network: Any = lambda w, t, x, cond, s: u(w, s[:, None], t[:, None], x)
        settings = settings | ({"levels": 2} if name == "shortcut" else {})
        method = kind(Network.from_function(network), GaussianPath(CondOT()), Normal((1,)), different=0.7, **settings)
        batch = data(FLOWS["condot"], 64)(KEY)
        rows = method.draw_steps(KEY, batch) if name == "shortcut" else method.draw_rows(KEY, batch, 0.7)
        s, t, x = rows.s[:, None], rows.t[:, None], rows.p.x_t

        def loss(p, p_fixed, q):
            residual = jnp.where(s < t, RESIDUALS[name](p, p_fixed, q, s, t, x), u(p, s, s, x) - rows.p.dx_t)
            return jnp.mean(residual**2)

        p, q = 0.7, targets.get("target", 0.7)
        of_method = lambda p: method.loss(p, Context(targets=targets), KEY, batch).value
        found = float(jax.grad(of_method)(p))
        assert float(of_method(p)) == pytest.approx(float(loss(p, p, q)), rel=1e-10)
        assert found == pytest.approx(float(jax.grad(loss)(p, p, q)), rel=1e-10)
        assert abs(found - float(jax.grad(lambda p: loss(p, p, p))(p))) > 1e-3


def test_the_finest_steps_of_shortcuts_are_of_second_order():
    """One row in K + 1 has an error of u of h^2, or h^4 = 2^(-4 K) when squared."""
    with jax.enable_x64(True):
        known, errors = FLOWS["condot"], []
        for levels in (5, 8):
            method = method_of(Shortcut, taught=True, different=1.0, levels=levels)
            metrics = method.loss(0.0, known.context, KEY, data(known, 4000)(KEY)).metrics
            errors.append(float(metrics["consistency_error"]) * (levels + 1))
        assert np.log2(errors[0] / errors[1]) == pytest.approx(4 * 3, abs=0.5)


def test_the_adaptive_weight_shifts_the_minimum():
    """Data of -1 and 1, the second one nine times in ten: the conditional velocity at a point is skewed, and the
    weights 1 / (e + 0.001) move the minimiser from its mean towards the larger part, by 0.17 here. `shift` is added to
    the exact velocity."""

    def batch(key):
        key_sign, key_data = jax.random.split(key)
        sign = jnp.where(jax.random.bernoulli(key_sign, 0.9, (256, 1)), 1.0, -1.0)
        return Batch(sign + 0.1 * jax.random.normal(key_data, (256, 1)))

    with jax.enable_x64(True):
        path = GaussianPath(CondOT())
        oracle = oracles.mixture(path, GaussianMixture(jnp.array([[-1.0], [1.0]]), 0.1, jnp.array([0.1, 0.9])))
        shifted: Any = lambda shift, t, x, cond, s: oracle.velocity(s, x) + shift

        def gradient(power, shift):
            method = MeanFlow(Network.from_function(shifted), path, Normal((1,)), power=power, different=0.0)
            return z_score(gradients(method, batch, shift))

        assert abs(gradient(0.0, 0.0)) < 4
        assert gradient(1.0, 0.0) < -40
        assert gradient(1.0, 0.1) < -4
        assert gradient(1.0, 0.2) > 4


def test_guidance_without_a_teacher_has_the_guided_velocity_as_its_fixed_point():
    """Two classes of means -1.5 and 1.5: `off` is added to the scale 3 in rows with a label, and to the velocity in
    those without. At the guided velocity, the target differs from it by 3 (1 - kappa) times the difference of the
    conditional velocity from its mean, so that with kappa = 1/2 every gradient is half of that without."""
    path = GaussianPath(CondOT())

    def batch(key):
        key_label, key_drop, key_data = jax.random.split(key, 3)
        label = jax.random.bernoulli(key_label, 0.5, (256,)).astype(int)
        x1 = (3.0 * label - 1.5)[:, None] + 0.4 * jax.random.normal(key_data, (256, 1))
        return Batch(x1, {"label": jnp.where(jax.random.bernoulli(key_drop, 0.3, (256,)), -1, label)})

    with jax.enable_x64(True):
        oracle = oracles.mixture(path, GaussianMixture(jnp.array([[-1.5], [1.5]]), 0.4))
        low, high = KnownFlow(path, -1.5), KnownFlow(path, 1.5)

        def apply(off, t, x, cond, s):
            none = oracle.velocity(s, x)
            if cond is None:
                return none
            label = cond["label"][:, None]
            of_label = jnp.where(label == 0, low.velocity(s, x), high.velocity(s, x))
            return jnp.where(label < 0, none + off, none + (3 + off) * (of_label - none))

        def gradient(kappa, off):
            network: Any = apply
            options = {"guidance": 3.0, "kappa": kappa, "drawn": Between(0.02, 0.98), "power": 0.0, "different": 0.0}
            return gradients(MeanFlow(Network.from_function(network), path, Normal((1,)), **options), batch, off)

        plain, mixed = gradient(0.0, 0.0), gradient(0.5, 0.0)
        assert abs(z_score(plain)) < 4
        assert z_score(gradient(0.0, 0.5)) > 4
        assert plain.std() > 0

        np.testing.assert_allclose(mixed, 0.5 * plain, rtol=1e-9)
