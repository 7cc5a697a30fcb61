"""Mean flows against a known flow: all data at one point, where conditional and marginal velocity are the same."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.batch import Batch
from flowjax.build import build
from flowjax.config import resolve
from flowjax.data import DataSpec
from flowjax.errors import ConfigError
from flowjax.methods import Context, MeanFlow, Network
from flowjax.paths import GaussianPath
from flowjax.schedules import CondOT
from flowjax.solvers import sample
from flowjax.sources import Normal
from tests.methods.known_flow import Between, column

M = jnp.array([2.0, -1.0])
KEY = jax.random.key(0)


def exact(params, t, x, cond, s):
    """x_t = (1 - t) x0 + t M is straight: u(s, t, x) = (M - x) / (1 - s), whatever t is."""
    return params * (M - x) / (1 - column(s, x))


def wrong(params, t, x, cond, s):
    """The exact u at s = t, and another one elsewhere."""
    return exact(params, t, x, cond, s) + params * (column(t, x) - column(s, x))


def mean_flow(network, **settings):
    """With times up to 0.9, as u has no bound at s = 1."""
    path, drawn = GaussianPath(CondOT()), Between(0.0, 0.9)
    return MeanFlow(Network.from_function(network), path, Normal((2,)), drawn=drawn, **settings)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_the_loss_is_zero_at_the_average_velocity_and_nowhere_else(power):
    """Rounding of float32 in (M - x) / (1 - s), of size 40, squared: below 1e-8. The wrong u misses by t - s, and
    by (t - s) times its derivative -1 in s: (2 (t - s))^2 of the rows whose times differ.
    """
    batch = Batch(jnp.broadcast_to(M, (512, 2)))
    value = lambda network: mean_flow(network, power=power, different=0.5).loss(1.0, Context(), KEY, batch)
    right, off = value(exact), value(wrong)
    assert float(right.metrics["squared_error"]) < 1e-8
    assert 0.1 < float(off.metrics["squared_error"]) < 1.0  # half of the rows: 0.5 * 4 * 0.9^2 / 6 = 0.27
    assert float(off.metrics["squared_error"]) == pytest.approx(0.27, abs=0.05)


def test_the_target_has_no_gradient_and_may_be_of_an_average():
    batch = Batch(jnp.broadcast_to(M, (64, 2)))
    plain, moving = mean_flow(wrong, power=0.0), mean_flow(wrong, power=0.0, target_half_life=100.0)
    assert (dict(plain.targets), dict(moving.targets)) == ({}, {"target": 100.0})
    value = lambda method, targets: lambda p: method.loss(p, Context(targets=targets), KEY, batch).value
    same = jax.grad(value(moving, {"target": jnp.array(0.7)}))(jnp.array(0.7))
    np.testing.assert_allclose(jax.grad(value(plain, {}))(jnp.array(0.7)), same, rtol=1e-6)
    other = jax.grad(value(moving, {"target": jnp.array(1.0)}))(jnp.array(0.7))
    assert abs(float(other) - float(same)) > 1e-3


@pytest.mark.parametrize("steps", [1, 3])
def test_the_flow_map_and_the_velocity(steps):
    model = mean_flow(exact).model(1.0, {})
    x = jax.random.normal(jax.random.key(1), (5, 2))
    np.testing.assert_allclose(model.velocity(0.5, x), (M - x) / 0.5, rtol=1e-6)
    np.testing.assert_allclose(model.flow_map(0.5, 1.0, x), jnp.broadcast_to(M, x.shape), atol=1e-5)
    y, stats = sample(model, x, solver="flow_map", steps=steps, t0=0.0, t1=0.9)
    np.testing.assert_allclose(y, 0.1 * x + 0.9 * M, atol=1e-5)
    assert int(stats.nfe[0]) == steps


@pytest.mark.parametrize("grid", ["edm", "condot", "log_snr"])
def test_grids_of_noise_levels(grid):
    """At t = 0.9 the exact flow from x has reached 0.1 x + 0.9 M, whatever the grid is."""
    model = mean_flow(exact).model(1.0, {})
    x = jax.random.normal(jax.random.key(1), (5, 2))
    y, _ = sample(model, x, solver="flow_map", steps=3, t0=0.0, t1=0.9, grid=grid)
    np.testing.assert_allclose(y, 0.1 * x + 0.9 * M, atol=1e-5)


@pytest.mark.parametrize("name", ["mean_flow", "moment_matching", "shortcut", "score_distillation", "consistency"])
@pytest.mark.parametrize("times", ["importance", "uniform_log_snr(True)"])
def test_times_with_importance_weights_are_refused(name, times):
    config = resolve({"method": {"name": name, "times": times}})
    with pytest.raises(ConfigError, match=rf"{re.escape(repr(times))} has importance weights, which only .*: use"):
        build(config, DataSpec("moons", (2,)))


def test_from_the_command_line(flowjax, tmp_path):
    tiny = ["--config.train.steps=4", "--config.train.batch_size=32", "--config.train.log_every=2"]
    tiny += ["--config.model.width=8", "--config.model.depth=1", "--config.method.target_half_life=64.0"]
    code, _, err = flowjax("train", "--config=mean_flow_gaussians8", f"--workdir={tmp_path}/run", *tiny)
    assert code == 0, err
    for flags, nfe in (((), 1), (("--steps=2",), 2), (("--solver=heun", "--steps=2"), 4)):
        out = f"--out={tmp_path}/{nfe}.npz"
        code, result, err = flowjax("sample", f"--workdir={tmp_path}/run", "--num=10", out, *flags)
        assert code == 0, err
        assert result["nfe"] == nfe
    code, _, err = flowjax("sample", f"--workdir={tmp_path}/run", "--solver=ddim", "--steps=3", out)
    assert (code, err.count("\n")) == (2, 1)
    assert "ddim needs ends, and this model offers velocity, flow_map, to_data: use" in err
    code, _, err = flowjax("sample", f"--workdir={tmp_path}/run", "--schedule=cosine", out)
    assert (code, err.count("\n")) == (2, 1)
    assert (
        "another schedule needs the ends, and a model of method.name 'mean_flow' offers velocity, flow_map, to" in err
    )
