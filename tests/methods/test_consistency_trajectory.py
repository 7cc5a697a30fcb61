"""Consistency trajectory models against the flow between two normal distributions; and all methods of consistency with
a teacher, conditions and guidance."""

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


@pytest.mark.parametrize(
    "name", ["consistency", "continuous_consistency", "consistency_trajectory", "progressive_distillation"]
)
def test_conditions_and_the_guidance_of_a_teacher(name):
    """The guided teacher changes the gradient, and a batch of null conditions is guided like one with conditions."""
    spec = DataSpec("npz", (2,), num_classes=3)
    base = {"data": {"cond": ("label",)}, "model": {"name": "mlp", "width": 8, "depth": 1, "features": 4}}
    teacher = build(resolve({**base, "method": {"name": "flow_matching"}}), spec)
    variables = teacher.init(jax.random.key(1))
    move = lambda params: jax.tree.map(lambda a: a + 0.3 * jax.random.normal(jax.random.key(a.size), a.shape), params)
    context = Context(step=5, teacher=variables._replace(params=move(variables.params)))
    batch = Batch(jax.random.normal(KEY, (16, 2)), {"label": jnp.arange(16) % 3})
    found = []
    for scale in (1.0, 3.0):
        method = build(
            resolve({**base, "method": {"name": name, "teacher": "runs/a", "guidance": scale}}), spec, (), teacher
        )
        params = move(method.init(jax.random.key(2)).params)
        gradient = jax.jit(jax.grad(lambda params, method=method: method.loss(params, context, KEY, batch).value))(
            params
        )
        found.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)]))
        loss = method.loss(params, context, KEY, batch)
        assert set(loss.metrics) == set(method.metrics)
    assert all(np.isfinite(gradient).all() for gradient in found)
    assert np.abs(found[0] - found[1]).max() > 1e-4
