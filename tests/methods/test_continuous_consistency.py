"""Continuous-time consistency against the flow between two normal distributions, and against its trigonometric form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.couplings import INDEPENDENT
from flowjax.methods import Context, ContinuousConsistency, Network
from flowjax.methods.consistency_function import consistency_function
from flowjax.methods.draw import draw
from flowjax.paths import GaussianPath
from flowjax.predictions import edm, v, velocity
from flowjax.schedules import VE, CondOT, Cosine
from flowjax.sources import Normal
from tests.methods.known_flow import Between, KnownFlow

KEY = jax.random.key(0)
CASES = [(CondOT(), velocity), (Cosine(), v), (CondOT(), edm(0.5))]


def continuous(path, apply, prediction, d=1, **settings):
    settings = {"drawn": Between(0.1, 0.95), "warmup": 0, "normalise": 0.0} | settings
    return ContinuousConsistency(Network.from_function(apply), path, Normal((d,)), prediction, **settings)


@pytest.mark.parametrize(("schedule", "prediction"), CASES, ids=["condot", "cosine", "edm"])
def test_the_tangent_vanishes_at_the_exact_map_along_the_velocity_of_the_flow(schedule, prediction):
    """Rounding of 1e-16, times a few numbers of size 1 / (1 - t) = 20, and the same for every row; a network that is
    off by 1e-3 is not at 0."""
    with jax.enable_x64(True):
        flow = KnownFlow(GaussianPath(schedule))
        method = continuous(flow.path, flow.output(prediction), prediction, teacher=flow)
        norm = lambda p: float(method.loss(p, flow.context, KEY, flow.batch(256)).metrics["tangent_norm"])
        assert norm(0.0) < 1e-12
        assert norm(1e-3) > 1e-5


@pytest.mark.parametrize(("schedule", "prediction"), CASES[:2], ids=["condot", "cosine"])
def test_the_mean_gradient_with_the_conditional_velocity_vanishes_at_the_exact_map(schedule, prediction):
    """The tangent is linear in the velocity, and the marginal velocity is the mean of the conditional one at x_t. The
    network is moved by p cos(3 x), so that the gradient does not vanish by symmetry. Without the mean it does not."""
    flow = KnownFlow(GaussianPath(schedule))
    exact = flow.output(prediction)
    method = continuous(flow.path, lambda p, t, x, cond: exact(0.0, t, x, cond) + p * jnp.cos(3 * x), prediction)
    gradient = jax.grad(
        lambda p, key: method.loss(p, Context(), key, flow.batch(64, key=jax.random.fold_in(key, 1))).value
    )
    keys = jax.random.split(KEY, 2000)
    values = jax.jit(jax.vmap(lambda key: gradient(0.0, key)))(keys)
    error = float(jnp.std(values)) / len(keys) ** 0.5
    assert abs(float(jnp.mean(values))) < 4 * error
    off = jax.jit(jax.vmap(lambda key: gradient(0.3, key)))(keys)
    assert abs(float(jnp.mean(off))) > 10 * error


@pytest.mark.parametrize("warm", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("schedule", [CondOT(), Cosine(), VE()], ids=["condot", "cosine", "ve"])
def test_the_gradient_is_that_of_the_trigonometric_form(schedule, warm):
    """Algorithm 1 of Lu & Song 2024 in its own coordinates: x = cos(u) x1 + sin(u) x0, f = cos(u) x - sin(u) F, and
    the tangent -cos(u)^2 (F - dx/du) - r cos(u) sin(u) (x + dF/du), normalised. On VE, f has its end at the smallest
    noise level, and both forms use it."""
    with jax.enable_x64(True):
        path, flow, d = GaussianPath(schedule), KnownFlow(GaussianPath(schedule)), 3
        weights = jax.random.normal(jax.random.key(1), (2, d, d))

        def apply(p, t, x, cond):
            return jnp.tanh(x @ (weights[0] + p)) @ weights[1] + jnp.sin(3 * t)[:, None] * x

        batch = flow.batch(32, d)
        method = continuous(path, apply, velocity, d, warmup=100, normalise=0.1, drawn=Between(0.3, 0.9))
        context = Context(step=round(100 * warm))
        found = jax.grad(lambda p: method.loss(p, context, KEY, batch).value)(0.1)
        p = draw(KEY, batch, path, method.source, INDEPENDENT, (path.t_min, path.t_max), method.drawn).sample

        def big_f(params, u, x):
            t = schedule.time_of_log_snr(-2 * jnp.log(jnp.tan(u)))
            radius = jnp.hypot(schedule.alpha(t), schedule.sigma(t))[:, None]
            output = apply(params, t, velocity.inputs(path, t, radius * x), None)
            f = consistency_function(path, velocity, t, radius * x, output)
            return (jnp.cos(u)[:, None] * x - f) / jnp.sin(u)[:, None]

        u = jnp.arctan2(schedule.sigma(p.t), schedule.alpha(p.t))
        cos, sin = jnp.cos(u)[:, None], jnp.sin(u)[:, None]
        x, dx = cos * p.x1 + sin * p.x0, cos * p.x0 - sin * p.x1
        value, slope = jax.jvp(lambda u, x: big_f(0.1, u, x), (u, x), (jnp.ones_like(u), dx))
        if isinstance(schedule, VE):  # F is not exactly the velocity there, because f does not end at the data
            r = path.rates(p.t, p.x_t)
            speed = (r.dalpha * r.sigma - r.alpha * r.dsigma) / jnp.hypot(r.alpha, r.sigma)
            error = (apply(0.1, p.t, velocity.inputs(path, p.t, p.x_t), None) - p.dx_t) / speed
        else:
            error = dx - value
        both = -(cos**2) * (value - dx) - cos * sin * (x + slope)
        g = cos**2 * error + warm * (both - cos**2 * error)
        g = g / (jnp.linalg.norm(g, axis=-1, keepdims=True) + 0.1)
        loss = lambda params: jnp.mean(jnp.sum((big_f(params, u, x) - value - g) ** 2, -1))
        assert float(found) == pytest.approx(float(jax.grad(loss)(0.1)), rel=1e-9)


def test_the_loss_is_the_square_of_the_normalised_tangent():
    flow = KnownFlow(GaussianPath(CondOT()))
    method = continuous(flow.path, lambda p, t, x, cond: p * x, velocity, d=4, normalise=0.1)
    loss = method.loss(1.0, Context(), KEY, flow.batch(1, 4))
    norm = float(loss.metrics["tangent_norm"])
    assert float(loss.value) == pytest.approx((norm / (norm + 0.1)) ** 2, rel=1e-5)


def test_the_warm_up_starts_from_flow_matching():
    """With r = 0 the tangent is the error of the velocity times t^2 / sqrt(t^2 + (1 - t)^2) on condot."""
    flow = KnownFlow(GaussianPath(CondOT()))
    method = continuous(flow.path, lambda p, t, x, cond: p * x, velocity, warmup=10)
    loss = method.loss(1.0, Context(step=0), KEY, flow.batch(64))
    p = draw(KEY, flow.batch(64), flow.path, Normal((1,)), INDEPENDENT, (0.0, 1.0), method.drawn).sample
    tangent = (p.t**2 / jnp.hypot(p.t, 1 - p.t))[:, None] * (p.dx_t - p.x_t)
    np.testing.assert_allclose(loss.value, jnp.mean(jnp.sum(tangent**2, -1)), rtol=1e-5)
