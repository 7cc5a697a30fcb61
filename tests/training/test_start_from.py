"""Training that starts from a trained network, and groups of parameters with optimizers of their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.build import build
from flowjax.config import changed, defaults
from flowjax.data import DataSpec
from flowjax.errors import ConfigError
from flowjax.methods import Group
from flowjax.training.optimizers import optimizer
from flowjax.training.start_from import check_start, network_of, with_network
from flowjax.training.state import init_state

SPEC = DataSpec("moons", (2,))


def problem(method="flow_matching", model="mlp", **keys):
    config = defaults(model, method)
    config.data.name = "moons"
    sizes = {"model.width": 8, "model.depth": 1}
    config = changed(config, sizes | {key.replace("__", "."): value for key, value in keys.items()})
    return config, build(config, SPEC)


def trained(method):
    """Parameters of which none is zero."""
    params = network_of(method, method.init(jax.random.key(1)).params)
    return jax.tree.map(lambda a: jax.random.normal(jax.random.key(a.size), a.shape), params)


@pytest.mark.parametrize("model", ["mlp", "resmlp"])
def test_a_network_with_two_times_begins_as_the_velocity_it_starts_from(model):
    x, t = jax.random.normal(jax.random.key(0), (5, 2)), jnp.linspace(0, 0.9, 5)
    _, old = problem(model=model)
    config, new = problem("mean_flow", model)
    start = trained(old)
    check_start(new, start, "train.start_from a")
    state = init_state(config, new, start)
    velocity = old.model(start, {}).velocity(t, x)
    assert np.abs(velocity).min() > 0
    for params in (state.params, state.ema):
        model_ = new.model(params, {})
        np.testing.assert_array_equal(model_.velocity(t, x), velocity)
        np.testing.assert_allclose(model_.flow_map(t, t + 0.1, x), x + 0.1 * velocity, rtol=1e-6, atol=1e-6)


def test_a_learned_profile_of_the_loss_keeps_its_initial_values():
    config, method = problem(method__times="importance")
    start = trained(problem()[1])
    params = init_state(config, method, start).params
    np.testing.assert_array_equal(params["profile"], 0)
    assert network_of(method, params) is params["network"]
    jax.tree.map(np.testing.assert_array_equal, params["network"], start)
    both = with_network(method, {"a": params["network"], "b": params["network"], "c": jnp.ones(2)}, start)
    jax.tree.map(np.testing.assert_array_equal, both, {"a": start, "b": start, "c": jnp.ones(2)})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model__width": 4}, r"layers/0/bias has the shape \(8,\) there and \(4,\) here$"),
        ({"model__depth": 2}, r"only the network of this config has the parameter layers/1/bias$"),
    ],
)
def test_another_network_is_refused(keys, message):
    with pytest.raises(ConfigError, match=r"^train.start_from a is a run of another network: .*" + message):
        check_start(problem(**keys)[1], trained(problem()[1]), "train.start_from a")


def test_groups_have_a_rate_and_a_frequency_of_their_own():
    """Adam's first update is the learning rate times the sign of the gradient, whatever its size; so is each later one
    if the gradient stays the same."""
    config, _ = problem(train__lr=0.1, train__schedule="constant", train__clip=0.0)
    tx = optimizer(config.train, {"a": Group(), "b": Group(rate=0.5, every=2)})
    params = {"a": {"w": jnp.zeros(2)}, "b": {"w": jnp.zeros(3)}}
    state, grads, seen = tx.init(params), jax.tree.map(jnp.ones_like, params), []
    for _ in range(4):
        updates, state = tx.update(grads, state, params)
        seen.append([float(updates["a"]["w"][0]), float(updates["b"]["w"][0])])
    np.testing.assert_allclose(seen, [[-0.1, -0.05], [-0.1, 0], [-0.1, -0.05], [-0.1, 0]], rtol=1e-4)


def test_a_group_that_is_updated_less_often_has_the_same_schedule():
    config, _ = problem(train__lr=0.1, train__schedule="linear", train__steps=10, train__clip=0.0)
    tx = optimizer(config.train, {"a": Group(), "b": Group(every=5)})
    params = {"a": jnp.zeros(()), "b": jnp.zeros(())}
    state, grads, seen = tx.init(params), {"a": jnp.ones(()), "b": jnp.ones(())}, []
    for _ in range(10):
        updates, state = tx.update(grads, state, params)
        seen.append((float(updates["a"]), float(updates["b"])))
    np.testing.assert_allclose(seen[0], (-0.1, -0.1), rtol=1e-4)
    np.testing.assert_allclose(seen[5], (-0.05, -0.05), rtol=1e-4)
