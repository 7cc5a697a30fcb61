"""Continuous normalizing flows by maximum likelihood: the loss, its gradient, the regularisers, and commands."""

import math
from dataclasses import replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flowjax.abilities import abilities_of
from flowjax.batch import Batch
from flowjax.build import build
from flowjax.conditions import Field
from flowjax.config import changed, defaults
from flowjax.data.affine import Affine
from flowjax.data.spec import DataSpec
from flowjax.errors import ConfigError
from flowjax.keys import row_keys
from flowjax.likelihood import log_prob
from flowjax.methods import CNF, Context, Network
from flowjax.methods.cnf import Settings
from flowjax.models import MLP, functional
from flowjax.models.functional import Variables
from flowjax.sources import Normal

KEY = jax.random.key(3)
TRAINING = Context(training=True)
VECTOR = Field("y", "vector", (2,))
MATRIX = jnp.array([[0.3, -0.5, 0.1], [0.7, 0.2, 0.4], [-0.1, 0.6, -0.4]])


def linear(params, t, x, cond):
    """The field x A^T, of which A is the Jacobian."""
    return x @ params.T


def small(params, t, x, cond):
    """A field with a Jacobian that depends on x and t."""
    first, second = params
    return jnp.tanh(x @ first + t) @ second


def parameters(d=3, width=4):
    first, second = jax.random.split(KEY)
    return jax.random.normal(first, (d, width)), 0.5 * jax.random.normal(second, (width, d))


def method(field, d=3, **settings):
    if settings.get("steps"):
        settings = {"solver": "rk4", **settings}
    return CNF(Network.from_function(cast(Any, field)), Normal((d,)), Settings(**settings))


def value(own, params, x, key=KEY, cond=None):
    return own.loss(params, TRAINING, key, Batch(x, cond))


@pytest.mark.analytic
@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 6},
        pytest.param({"steps": 0, "solver": "dopri5", "rtol": 1e-6, "atol": 1e-6}, marks=pytest.mark.slow),
    ],
)
def test_the_loss_is_the_negative_log_density_in_nats_per_dimension(settings):
    """The same numerical solution by `flowjax.likelihood`: equal steps, and equal tolerances of 1e-6, whose error is
    that of two float32 solves of 3 coordinates."""
    own, params = method(small, divergence="exact", **settings), parameters()
    x = 0.7 * jax.random.normal(jax.random.key(0), (16, 3))
    loss = value(own, params, x)
    options: Any = {"steps": 6, "solver": "rk4"} if settings["steps"] else {"rtol": 1e-6, "atol": 1e-6}
    found = log_prob(own.model(params, {}), x, own.prior, **options)
    assert float(loss.value) == pytest.approx(-float(found.log_prob.mean()) / 3, rel=1e-5)
    assert float(loss.metrics["nll"]) == float(loss.value)
    assert set(loss.metrics) == set(own.metrics) == {"nll", "nfe", "unfinished"}
    assert float(loss.metrics["unfinished"]) == 0
    if settings["steps"]:
        assert float(loss.metrics["nfe"]) == float(found.stats.nfe.mean())


@pytest.mark.analytic
def test_hutchinson_is_unbiased_and_its_probes_average():
    """Over 400 keys, the mean of the estimated loss is the exact one within 4 standard errors, also of the gradient;
    with 3 probes the standard deviation is that of one divided by sqrt(3), within 15% (its own error is 5%)."""
    params, x = parameters(), jax.random.normal(jax.random.key(0), (2, 3))
    weights = {"kinetic": 0.1, "jacobian": 0.2, "solver": "heun", "steps": 3}
    exact = jax.value_and_grad(lambda p: value(method(small, divergence="exact", **weights), p, x).value)(params)
    keys, spread = jax.random.split(KEY, 400), []
    for probes in (1, 3):
        own = method(small, probes=probes, **weights)
        found = jax.jit(jax.vmap(jax.value_and_grad(lambda p, key, own=own: value(own, p, x, key).value), (None, 0)))
        values, slopes = found(params, keys)
        spread.append(float(values.std()))
        assert abs(float(values.mean() - exact[0])) < 4 * spread[-1] / 20
        error = np.abs(np.asarray(slopes[0].mean(0) - exact[1][0])) * 20
        assert (error < 5 * np.asarray(slopes[0].std(0)) + 1e-4).all()
    assert spread[0] > 0.01
    assert spread[1] * math.sqrt(3) == pytest.approx(spread[0], rel=0.15)


@pytest.mark.analytic
@pytest.mark.parametrize(
    "settings",
    [
        {"divergence": "exact", "steps": 4},
        {"divergence": "hutchinson", "steps": 3, "solver": "heun"},
        pytest.param(
            {"divergence": "exact", "steps": 0, "solver": "bosh3", "rtol": 1e-7, "atol": 1e-7}, marks=pytest.mark.slow
        ),
    ],
    ids=["exact", "hutchinson", "adaptive"],
)
def test_the_gradient_is_that_of_the_loss(settings):
    """Against central differences in float64 with h = 1e-5: their error is h^2 L''' / 6 and 1e-16 / h, below 1e-8.

    For adaptive steps the accepted steps depend on the parameters, and the numerical solution with them: it moves by
    about the tolerance, 1e-7, which h divides. There the bound is 1e-7 times the length of the direction over h.
    """
    with jax.enable_x64(True):
        own = method(small, kinetic=0.3, jacobian=0.2, **settings)
        params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), parameters())
        x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)))
        loss = jax.jit(lambda p: value(own, p, x).value)
        slope = jax.grad(loss)(params)
        rng = np.random.default_rng(1)
        along = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), params)
        h = 1e-3 if settings["steps"] == 0 else 1e-5
        moved = lambda sign: float(loss(jax.tree.map(lambda a, b: a + sign * h * b, params, along)))
        expected = (moved(1) - moved(-1)) / (2 * h)
        found = sum(float(jnp.sum(a * b)) for a, b in zip(slope, along, strict=True))
        assert abs(expected) > 0.1
        assert found == pytest.approx(expected, abs=1e-4 if settings["steps"] == 0 else 1e-7)


@pytest.mark.analytic
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_the_terms_of_a_linear_field(divergence):
    """For v = A x the point at time t is exp((t - 1) A) x, the divergence tr A, and the squared norm sum A_ij^2.

    K(x) = int |A exp((t - 1) A) x|^2 dt by Simpson's rule on 201 times. The error of rk4 with 20 steps is below 1e-6,
    that of float32 in sums of 60 terms below 1e-5.
    """
    probes = 4000 if divergence == "hutchinson" else 1
    own = method(linear, divergence=divergence, probes=probes, steps=20, kinetic=1.0, jacobian=1.0)
    x = jnp.array([[1.0, -0.5, 2.0]])
    end, nfe, finished = own.solve(MATRIX, TRAINING, KEY, x)
    assert end.kinetic is not None
    assert end.jacobian is not None
    power = lambda t: np.asarray(jax.scipy.linalg.expm((t - 1) * MATRIX), np.float64)
    times = np.linspace(0, 1, 201)
    energy = [np.sum((np.asarray(MATRIX) @ power(t) @ np.asarray(x[0])) ** 2) for t in times]
    simpson = np.concatenate([[1], np.tile([4, 2], 99), [4, 1]]) / 600
    np.testing.assert_allclose(end.x[0], power(0.0) @ np.asarray(x[0]), atol=1e-5)
    assert float(end.kinetic[0]) == pytest.approx(simpson @ energy, rel=1e-5)
    assert (int(nfe[0]), bool(finished[0])) == (80, True)
    trace, square = float(jnp.trace(MATRIX)), float(jnp.sum(MATRIX**2))
    if divergence == "exact":
        assert float(end.divergence[0]) == pytest.approx(trace, rel=1e-5)
        assert float(end.jacobian[0]) == pytest.approx(square, rel=1e-5)
        return
    # the variance of e . A e is sum_{i<j} (A_ij + A_ji)^2, and that of e . M e with M = A^T A likewise; 4000 probes
    deviation = lambda m: math.sqrt(sum((m[i, j] + m[j, i]) ** 2 for i in range(3) for j in range(i)) / 4000)
    assert abs(float(end.divergence[0]) - trace) < 4 * deviation(np.asarray(MATRIX))
    assert abs(float(end.jacobian[0]) - square) < 4 * deviation(np.asarray(MATRIX.T @ MATRIX))


@pytest.mark.analytic
def test_the_regularisers_are_added_to_the_loss():
    x = jax.random.normal(jax.random.key(0), (8, 3))
    plain = value(method(linear, divergence="exact", steps=4), MATRIX, x)
    own = method(linear, divergence="exact", steps=4, kinetic=0.5, jacobian=2.0)
    both = value(own, MATRIX, x)
    expected = plain.value + 0.5 * both.metrics["kinetic"] + 2.0 * both.metrics["jacobian"]
    assert float(both.value) == pytest.approx(float(expected), rel=1e-6)
    assert float(both.metrics["nll"]) == pytest.approx(float(plain.value), rel=1e-6)
    assert float(both.metrics["jacobian"]) == pytest.approx(float(jnp.sum(MATRIX**2)) / 3, rel=1e-5)
    assert set(both.metrics) == set(own.metrics)


@pytest.mark.parametrize(("weights", "leaves"), [({}, 2), ({"kinetic": 0.1}, 3), ({"jacobian": 0.1}, 3)])
def test_a_regulariser_without_a_weight_is_not_part_of_the_ode(weights, leaves):
    own = method(linear, divergence="exact", steps=2, **weights)
    end, _, _ = jax.eval_shape(lambda x: own.solve(MATRIX, TRAINING, KEY, x), jnp.ones((2, 3)))
    assert len(jax.tree.leaves(end)) == leaves
    assert {name for name in ("kinetic", "jacobian") if getattr(end, name) is not None} == set(weights)


def test_directions_in_chunks_give_the_same_loss_and_gradient(monkeypatch):
    """Sums of 3 terms in another order: their rounding errors are below 1e-5."""
    x, params = jax.random.normal(jax.random.key(0), (4, 3)), parameters()
    own = method(small, divergence="exact", solver="euler", steps=2, jacobian=0.5)
    slope = jax.value_and_grad(lambda p: value(own, p, x).value)
    whole = slope(params)
    monkeypatch.setattr("flowjax.methods.cnf.directions_at_once", lambda *_: 2)
    for a, b in zip(jax.tree.leaves(slope(params)), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [pytest.param({"steps": 0, "solver": "bosh3"}, marks=pytest.mark.slow), {"solver": "euler", "steps": 3}],
    ids=["adaptive", "fixed"],
)
def test_dropout_differs_between_rows_and_not_along_a_trajectory(settings):
    """A velocity that is one random vector a row, v = p e: x_0 = x - p e without an error of the solver."""

    def apply(variables, t, x, cond, training=False, key=None, **inputs):
        keys = row_keys(key, x.shape[0])
        return variables.params * jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys), variables.state

    own = CNF(Network(lambda key: Variables({}, {}), apply, takes_key=True), Normal((2,)), Settings(**settings))
    x = jnp.zeros((5, 2))
    end, nfe, _ = own.solve(1.0, TRAINING, KEY, x)
    assert int(nfe.min()) > 2
    drawn = -np.asarray(end.x)
    slope = jax.jit(jax.grad(lambda p: value(own, p, x).value))(1.0)  # of p^2 |e|^2 / 2 per dimension
    assert float(slope) == pytest.approx((drawn**2).mean(), rel=1e-5)
    assert len(np.unique(drawn.round(4), axis=0)) == 5
    key = jax.random.fold_in(KEY, 0) if settings["steps"] == 0 else KEY
    first = jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, 2**31 - 3), 0), (2,))
    np.testing.assert_allclose(drawn[0], first, rtol=1e-5)


@pytest.mark.analytic
def test_maximum_likelihood_reaches_the_entropy_of_a_gaussian():
    """The field a x + b of one coordinate maps N(0, 1) to N(m, s^2) with s = e^a and m = b (e^a - 1) / a.

    The minimum of the loss over a sample is the entropy of the normal distribution with the mean and the deviation of
    that sample, log(std) + (1 + log 2 pi) / 2. The derivative vanishes there, so parameters within 1e-3 of it have a
    loss within 1e-5. With a kinetic energy the minimum moves towards the source.
    """
    affine = lambda params, t, x, cond: params[0] * x + params[1]
    x = 1.5 + 0.5 * jax.random.normal(jax.random.key(1), (256, 1))
    entropy = float(jnp.log(x.std()) + 0.5 * (1 + jnp.log(2 * jnp.pi)))
    found = {}
    for kinetic in (0.0, 0.3):
        own, tx = method(affine, d=1, divergence="exact", steps=8, kinetic=kinetic), optax.adam(0.05)

        def step(state, _, own=own, tx=tx):
            params, optimizer = state
            updates, optimizer = tx.update(jax.grad(lambda at: value(own, at, x).value)(params), optimizer)
            return (optax.apply_updates(params, updates), optimizer), None

        start = jnp.array([0.1, 0.1])
        (params, _), _ = jax.jit(lambda s, step=step: jax.lax.scan(step, s, None, 400))((start, tx.init(start)))
        found[kinetic] = value(replace(own, settings=replace(own.settings, kinetic=0.3)), params, x)
        if not kinetic:
            a, b = (float(p) for p in params)
            assert math.exp(a) == pytest.approx(float(x.std()), abs=1e-2)
            assert b * math.expm1(a) / a == pytest.approx(float(x.mean()), abs=1e-2)
    assert float(found[0.0].metrics["nll"]) == pytest.approx(entropy, abs=1e-4)
    assert float(found[0.3].metrics["nll"]) > entropy + 1e-2
    assert float(found[0.3].metrics["kinetic"]) < float(found[0.0].metrics["kinetic"])


def test_a_conditional_flow_and_its_model():
    module = functional(lambda rngs: MLP((2,), width=8, depth=1, fields=(VECTOR,), zero_init=False, rngs=rngs))
    own = CNF(Network.of(module), Normal((2,)), Settings(divergence="exact", solver="midpoint", steps=3))
    params, state = own.init(jax.random.key(0))
    x, y = jax.random.normal(jax.random.key(1), (4, 2)), jnp.array([[0.0, 1.0], [2.0, 1.0], [-1.0, 0.5], [0.3, 0.3]])
    model = own.model(params, state)
    assert abilities_of(model) == ("velocity",)
    loss = own.loss(params, Context(state=state, training=True), KEY, Batch(x, {"y": y}))
    density = log_prob(model, x, own.prior, cond={"y": y}, solver="midpoint", steps=3).log_prob
    assert float(loss.value) == pytest.approx(-float(density.mean()) / 2, rel=1e-5)
    other = log_prob(model, x, own.prior, cond={"y": y[::-1]}, solver="midpoint", steps=3).log_prob
    assert float(jnp.abs(other - density).min()) > 1e-4
    assert loss.state is state


@pytest.mark.analytic
def test_outside_of_training_there_are_four_times_as_many_steps():
    """The error of Heun's method is of order 2, so that it is 16 times smaller, within 20% for terms of higher order.

    Both are compared with 400 steps, whose error is 10,000 times smaller than that of 4.
    """
    x = jax.random.normal(jax.random.key(0), (16, 3))
    loss = lambda training, steps: method(small, divergence="exact", solver="heun", steps=steps).loss(
        parameters(), Context(training=training), KEY, Batch(x)
    )
    exact, trained, validated = loss(True, 400).value, loss(True, 4), loss(False, 4)
    assert abs(float(trained.value - exact)) > 1e-3
    assert float((trained.value - exact) / (validated.value - exact)) == pytest.approx(16, rel=0.2)
    assert (float(trained.metrics["nfe"]), float(validated.metrics["nfe"])) == (8, 32)


def test_a_solve_that_does_not_finish_stops_training():
    """The field 1e5 x needs far more adaptive steps than the limit."""
    own = method(lambda params, t, x, cond: params * x, d=1, steps=0, solver="dopri5")
    loss = jax.jit(lambda p: value(own, p, jnp.ones((2, 1))))(-1e5)
    assert float(loss.metrics["unfinished"]) == 1
    assert CNF.limits["unfinished"].largest == 0
    assert "use a larger method.rtol" in CNF.limits["unfinished"].message.format(step=3, value=1.0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"data.dequantisation": "none"}, "method.name 'cnf' has no noise of its own.*no upper bound.*to 'uniform'$"),
        ({"method.divergence": "exactt"}, "unknown method.divergence 'exactt'; did you mean 'exact'"),
        ({"method.solver": "rk5"}, "unknown method.solver 'rk5'"),
        ({"method.solver": "rk4"}, "rk4 has no error estimate"),
        ({"source.name": "uniform"}, "method.name 'cnf' needs a source with a density that is positive everywhere"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(keys, message):
    spec = DataSpec("npz", (2,), Affine(1.0, 0.0), dequantisation=keys.get("data.dequantisation", "uniform"))
    with pytest.raises(ConfigError, match=message):
        build(changed(defaults("mlp", method="cnf"), {"data.name": "npz", **keys}), spec)


def test_variables_of_the_network_are_kept():
    """Batch statistics and the like are returned as they were."""

    def apply(variables, t, x, cond, training=False, **inputs):
        return variables.params * x, {"seen": variables.state["seen"] + 1}

    own = CNF(Network(lambda key: Variables(jnp.ones(()), {"seen": 0}), apply), Normal((1,)), Settings(steps=2))
    loss = own.loss(jnp.ones(()), Context(state={"seen": 5}), KEY, Batch(jnp.ones((2, 1))))
    assert loss.state == {"seen": 5}


@pytest.mark.slow
def test_from_the_command_line(flowjax, tmp_path):
    run = f"--workdir={tmp_path}/run"
    tiny = ["--config.train.steps=4", "--config.train.batch_size=16", "--config.train.log_every=2"]
    tiny += ["--config.model.width=8", "--config.model.depth=1", "--config.method.steps=2"]
    code, _, err = flowjax("train", "--config=cnf_moons", run, "--no-plots", *tiny)
    assert code == 0, err
    code, result, err = flowjax("sample", run, "--num=10", "--solver=heun", "--steps=4", f"--out={tmp_path}/a.npz")
    assert code == 0, err
    assert np.load(tmp_path / "a.npz")["samples"].shape == (10, 2)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).normal(size=(5, 2)))
    solver = ("--solver=rk4", "--steps=3")
    code, result, err = flowjax("likelihood", run, f"--data={tmp_path}/x.npz", *solver, f"--out={tmp_path}/ll.npz")
    assert code == 0, err
    assert result["nfe"] == 12
    code, _, err = flowjax("sample", run, "--solver=ddim", "--steps=3", f"--out={tmp_path}/b.npz")
    assert (code, err.count("\n")) == (2, 1)
