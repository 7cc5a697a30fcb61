"""Progressive distillation of the flow between two normal distributions, whose DDIM steps are linear in x."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import predictions
from flowjax.abilities import Ends
from flowjax.build import build
from flowjax.config import resolve
from flowjax.data import DataSpec
from flowjax.errors import ConfigError
from flowjax.methods import Network, ProgressiveDistillation
from flowjax.methods.teacher import AbsentTeacher
from flowjax.paths import GaussianPath
from flowjax.predictions import v, velocity
from flowjax.schedules import CondOT, Cosine
from flowjax.solvers import sample
from flowjax.sources import Normal
from tests.methods.known_flow import KnownFlow

KEY = jax.random.key(0)


def ends(flow, alpha, sigma, x):
    """E[x1 | x] = m + alpha c^2 / (alpha^2 c^2 + sigma^2) (x - alpha m), and x0 from x = alpha x1 + sigma x0."""
    x1 = flow.m + alpha * flow.c**2 / ((alpha * flow.c) ** 2 + sigma**2) * (x - alpha * flow.m)
    return (x - alpha * x1) / sigma, x1


def student(flow, prediction, steps):
    """A network whose x1 is that of Salimans & Ho 2022, algorithm 2: (x_t - (sigma_t / sigma_s) x_s) / (alpha_t -
    (sigma_t / sigma_s) alpha_s), after two steps of DDIM with the posterior means in closed form."""
    share = lambda t: flow.path.schedule.alpha(t) / (flow.path.schedule.alpha(t) + flow.path.schedule.sigma(t))
    schedule = flow.path.schedule
    grid = jnp.linspace(0, 1, 2 * steps + 1)

    def at(k):  # alpha / (alpha + sigma) = grid[k]
        if isinstance(schedule, CondOT):
            return grid[k], 1 - grid[k]
        angle = jnp.arctan2(grid[k], 1 - grid[k])
        return jnp.sin(angle), jnp.cos(angle)

    def apply(p, t, x, cond):
        t = jnp.broadcast_to(t, x.shape[:1])
        k = 2 * jnp.rint(share(t) * steps).astype(int)
        (a, s), (am, sm), (at_, st) = (tuple(c[:, None] for c in at(k + i)) for i in range(3))
        x0, x1 = ends(flow, a, s, x)
        x0, x1 = ends(flow, am, sm, am * x1 + sm * x0)
        x_t = at_ * x1 + st * x0
        x1 = (x_t - st / s * x) / (at_ - st / s * a)
        x0 = (x - a * x1) / s
        if prediction is velocity:
            r = flow.path.rates(t, x)
            return r.dalpha * x1 + r.dsigma * x0 + p
        return a * x0 - s * x1 + p

    return Network.from_function(apply)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize(("schedule", "prediction"), [(CondOT(), velocity), (Cosine(), v), (Cosine(), velocity)])
def test_the_loss_is_zero_at_two_steps_of_the_teacher_in_closed_form(schedule, prediction, steps):
    """Rounding of 1e-16 in a few operations on numbers of order one, squared; a network that is off by p has p^2."""
    with jax.enable_x64(True):
        flow = KnownFlow(GaussianPath(schedule))
        method = ProgressiveDistillation(
            student(flow, prediction, steps), flow.path, Normal((1,)), flow, prediction=prediction, student_steps=steps
        )
        error = lambda p: float(method.loss(p, flow.context, KEY, flow.batch(256)).value)
        assert error(0.0) < 1e-24
        assert error(0.1) == pytest.approx(0.01, rel=1e-9)


@pytest.mark.parametrize(("schedule", "prediction"), [(CondOT(), velocity), (Cosine(), v)])
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_the_student_takes_the_steps_of_the_teacher(schedule, prediction, steps):
    """Its samples with N steps are those of 2 N steps of DDIM with the posterior means in closed form, up to rounding
    of float32, for rounds in a row."""
    flow = KnownFlow(GaussianPath(schedule))
    x = jax.random.normal(KEY, (64, 1))
    network = student(flow, prediction, steps)
    method = ProgressiveDistillation(network, flow.path, Normal((1,)), flow, prediction=prediction, student_steps=steps)
    of_student, stats = sample(method.model(0.0, {}), x, solver=method.sampler, steps=method.steps)
    rates = lambda t: (flow.path.rates(t, x).alpha, flow.path.rates(t, x).sigma)
    means = predictions.model(lambda t, x, cond: Ends(*ends(flow, *rates(t), x)), flow.path)
    of_teacher, _ = sample(means, x, solver="ddim", steps=2 * steps)
    np.testing.assert_allclose(of_student, of_teacher, rtol=1e-4, atol=1e-5)
    assert int(stats.nfe[0]) == steps


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "^method.name 'progressive_distillation' needs a trained run: set method.teacher and train.start_from"),
        ({"method": {"teacher": "runs/a", "guidance": 2.0}}, "^method.guidance 2 needs conditions: set data.cond"),
        ({"method": {"teacher": "runs/a"}, "path": {"schedule": "vp"}}, "a path that ends at the data .* 'condot'"),
        ({"method": {"teacher": "runs/a"}, "prediction": "data"}, "a prediction that is defined there: .* 'velocity'"),
        ({"method": {"teacher": "runs/a"}, "path": {"noise": "bridge"}}, "needs a path without noise"),
    ],
)
def test_what_has_no_meaning_is_refused(keys, message):
    config = {**keys, "method": {"name": "progressive_distillation", **keys.get("method", {})}}
    with pytest.raises(ConfigError, match=message) as error:
        build(resolve(config), DataSpec("moons", (2,)))
    assert "\n" not in str(error.value)


def test_it_is_built_without_its_teacher_to_be_sampled():
    config = resolve({"method": {"name": "progressive_distillation", "teacher": "runs/a", "steps": 4}})
    method = build(config, DataSpec("moons", (2,)))
    assert isinstance(method.teacher, AbsentTeacher)
    assert (method.sampler, method.steps) == ("ddim", 4)
