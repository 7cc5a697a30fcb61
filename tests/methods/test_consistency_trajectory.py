"""Consistency trajectory models against the flow between two normal distributions; and all methods of consistency with
a teacher, conditions and guidance."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.batch import Batch
from flowjax.build import build
from flowjax.config import resolve
from flowjax.data import DataSpec
from flowjax.methods import ConsistencyTrajectory, Context, Network
from flowjax.paths import GaussianPath
from flowjax.schedules import CondOT, Cosine
from flowjax.sources import Normal
from tests.methods.known_flow import Between, KnownFlow

KEY = jax.random.key(0)


def trajectory(flow, teacher=None, **settings):
    off_by: Any = lambda p, t, x, cond, s: flow.average(s, t, x) + p
    network = Network.from_function(off_by)
    return ConsistencyTrajectory(network, flow.path, Normal((1,)), drawn=Between(0.1, 0.9), teacher=teacher, **settings)


@pytest.mark.parametrize("taught", [True, False])
def test_the_losses_are_zero_at_the_exact_map_of_a_straight_flow(taught):
    """All data are at one point, so that the solver has no error. Rounding is 1e-16 in numbers below 1 / (1 - 0.9),
    squared. A network that is off by p has p^2, but every flow map to t = 1 still ends at the data."""
    with jax.enable_x64(True):
        flow = KnownFlow(GaussianPath(CondOT()), c=0.0)
        method = trajectory(flow, flow if taught else None)
        metrics = method.loss(0.0, flow.context, KEY, flow.batch(128)).metrics
        assert float(metrics["consistency_error"]) < 1e-26
        assert float(metrics["velocity_error"]) < 1e-26
        off = method.loss(0.1, Context(targets={"target": 0.0}, teacher=flow.context.teacher), KEY, flow.batch(128))
        assert float(off.metrics["velocity_error"]) == pytest.approx(0.01, rel=1e-9)
        total = float(off.metrics["consistency_error"]) + float(off.metrics["velocity_error"])
        assert float(off.value) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("schedule", [CondOT(), Cosine()])
def test_the_error_at_the_exact_map_is_that_of_one_step_of_the_solver(schedule):
    """Heun's method misses the trajectory by the third power of its step, so halving `longest` divides the squared
    error by 64. For at most 5% of the rows t - s is below it, and the next order is relatively of its size, 0.02."""
    with jax.enable_x64(True):
        flow = KnownFlow(GaussianPath(schedule))
        error = lambda longest: float(
            trajectory(flow, flow, longest=longest)
            .loss(0.0, flow.context, KEY, flow.batch(512))
            .metrics["consistency_error"]
        )
        assert error(0.02) / error(0.01) == pytest.approx(64, rel=0.1)
        moved = Context(targets={"target": 0.0}, teacher=flow.context.teacher)
        off = trajectory(flow, flow, longest=0.01).loss(0.1, moved, KEY, flow.batch(512)).metrics["consistency_error"]
        assert 1e-4 < float(off) < 1e-2  # p^2 (t - s)^2 and the factor (c / std_t)^2 to the data: 4e-4


@pytest.mark.parametrize("targets", [{}, {"target": 0.4}], ids=["own", "average"])
def test_where_the_gradient_is_stopped(targets):
    """At the wrong parameter 0.7 the derivative of the loss is that of equations (2) and (3), in which only the u of
    X(s, t, x_s) and the u of (3) are differentiated. q is the moving average of the parameter or, without one, a copy.
    The times and points are those at which the method evaluates the network. Rounding of float64."""
    u = lambda w, s, t, x: jnp.sin(w * x + t[:, None] - w * s[:, None])
    calls = []

    def network(w, t, x, cond, s):
        calls.append((s, t, x))
        return u(w, s, t, x)

    with jax.enable_x64(True):
        flow = KnownFlow(GaussianPath(CondOT()))
        method = ConsistencyTrajectory(Network.from_function(network), flow.path, Normal((1,)), flow_weight=0.5)
        of_method = lambda p: method.loss(p, Context(targets=targets), KEY, flow.batch(64)).value
        p, q = 0.7, targets.get("target", 0.7)
        found = float(jax.grad(of_method)(p))
        (s, _, x), (middle, *_), (_, t, _) = calls[:3]  # both stages of Heun's method, then u(s, t, x_s)
        dx_t = (flow.batch(64).x1 - x) / (1 - s[:, None])
        one = jnp.ones_like(t)

        def loss(p, q):
            to = lambda w, s, t, x: x + (t - s)[:, None] * u(w, s, t, x)
            v, h = u(q, s, s, x), (middle - s)[:, None]
            y = x + h / 2 * (v + u(q, middle, middle, x + h * v))
            target = to(q, t, one, to(q, middle, t, y))
            consistency = to(q, t, one, to(p, s, t, x)) - target
            return jnp.mean(consistency**2) + 0.5 * jnp.mean((u(p, s, s, x) - dx_t) ** 2)

        assert float(of_method(p)) == pytest.approx(float(loss(p, q)), rel=1e-10)
        assert found == pytest.approx(float(jax.grad(loss)(p, q)), rel=1e-10)
        assert abs(found - float(jax.grad(lambda p: loss(p, p))(p))) > 1e-3


@dataclasses.dataclass(frozen=True)
class Guided:
    """A teacher whose velocity is v(none) + scale (v(cond) - v(none)) with that of another teacher."""

    teacher: Any
    scale: float

    def model(self, params, state):
        model, scale = self.teacher.model(params, state), self.scale

        class Model:
            interval = model.interval

            def velocity(self, t, x, cond=None):
                without = model.velocity(t, x, None)
                return without + scale * (model.velocity(t, x, cond) - without)

        return Model()


@pytest.mark.parametrize(
    "name", ["consistency", "continuous_consistency", "consistency_trajectory", "progressive_distillation"]
)
def test_conditions_and_the_guidance_of_a_teacher(name):
    """A teacher with guidance 3 gives the gradient of a teacher without guidance whose velocity is the guided one, and
    not that of the plain teacher. For null conditions, -1, the guided velocity is the plain one. Rounding of float32:
    the losses divide differences by small steps in time, which leaves four digits of the largest derivative."""
    spec = DataSpec("npz", (2,), num_classes=3)
    base = {"data": {"cond": ("label",)}, "model": {"name": "mlp", "width": 8, "depth": 1, "features": 4}}
    teacher = build(resolve({**base, "method": {"name": "flow_matching"}}), spec)
    variables = teacher.init(jax.random.key(1))
    move = lambda params: jax.tree.map(lambda a: a + 0.3 * jax.random.normal(jax.random.key(a.size), a.shape), params)
    context = Context(step=5, teacher=variables._replace(params=move(variables.params)))
    x1, label = jax.random.normal(KEY, (16, 2)), jnp.arange(16) % 3
    method = build(resolve({**base, "method": {"name": name, "teacher": "runs/a"}}), spec, (), teacher)
    params = move(method.init(jax.random.key(2)).params)
    assert set(method.loss(params, context, KEY, Batch(x1, {"label": label})).metrics) == set(method.metrics)

    def gradients(**changes):
        changed = dataclasses.replace(method, **changes)
        gradient = jax.jit(jax.grad(lambda p, label: changed.loss(p, context, KEY, Batch(x1, {"label": label})).value))
        flat = lambda label: np.concatenate([np.ravel(a) for a in jax.tree.leaves(gradient(params, label))])
        return flat(label), flat(jnp.full(16, -1))

    (plain, plain_null), (guided, guided_null) = gradients(), gradients(guidance=3.0)
    by_hand, _ = gradients(teacher=Guided(teacher, 3.0))
    largest = lambda difference: np.abs(difference).max() / np.abs(guided).max()
    assert np.isfinite(guided).all()
    assert largest(guided - plain) > 0.01
    assert largest(guided - by_hand) < 1e-4
    assert largest(guided_null - plain_null) < 1e-4
