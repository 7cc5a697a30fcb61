"""A module as pure functions: parameters apart from all other variables, which a training call may change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax.models import MLP, Variables, functional


class ActNorm(nnx.Module):
    """Activation normalisation (Kingma & Dhariwal 2018): offset and scale come from the first training batch."""

    def __init__(self, d: int):
        self.initialised = nnx.Variable(jnp.zeros((), bool))
        self.mean, self.std = nnx.Variable(jnp.zeros(d)), nnx.Variable(jnp.ones(d))
        self.gain = nnx.Param(jnp.ones(d))
        self.use_running_average = False  # which nnx.Module.train and eval set

    def __call__(self, x):
        if not self.use_running_average:
            keep = lambda old, new: jnp.where(self.initialised[...], old, new)
            self.mean[...], self.std[...] = keep(self.mean[...], x.mean(0)), keep(self.std[...], x.std(0))
            self.initialised[...] = jnp.ones((), bool)
        return (x - self.mean[...]) / self.std[...] * self.gain[...]


class Everything(nnx.Module):
    """Batch statistics, an integer permutation, a boolean mask, dropout, and an initialisation by data."""

    def __init__(self, d: int, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(d, d, rngs=rngs)
        self.norm = nnx.BatchNorm(d, momentum=0.5, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.permutation = nnx.Variable(jax.random.permutation(rngs.params(), d))
        self.mask = nnx.Variable(jnp.arange(d) % 2 == 0)
        self.first = ActNorm(d)

    def __call__(self, x, *, shift=0.0):
        self.sow(nnx.Intermediate, "seen", x)
        h = self.norm(self.linear(self.first(x)[:, self.permutation[...]]))
        return self.dropout(jnp.where(self.mask[...], h, 0)) + shift

    def inverse_permutation(self):
        return jnp.argsort(self.permutation[...])


X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 6)), jnp.float32)


@pytest.fixture(scope="module")
def made():
    return functional(lambda rngs: Everything(6, rngs=rngs))


@pytest.fixture(scope="module")
def variables(made):
    return made.init(jax.random.key(0))


def shapes(tree):
    return jax.tree.map(lambda a: (a.shape, a.dtype), tree)


def test_parameters_are_apart_from_all_other_variables(made, variables):
    assert set(variables.params) == {"linear", "norm", "first"}
    assert set(variables.params["first"]) == {"gain"}
    state = variables.state
    assert state["permutation"].dtype == jnp.int32
    assert state["mask"].dtype == bool
    assert set(state["norm"]) == {"mean", "var"}
    assert set(state["first"]) == {"initialised", "mean", "std"}
    assert shapes(made.abstract) == shapes(variables)
    assert shapes(jax.eval_shape(made.init, jax.random.key(0))) == shapes(variables)


def test_training_changes_the_state_and_evaluation_does_not(made, variables):
    """Batch statistics by momentum 0.5; the data-dependent initialisation from the first batch alone; two training
    calls draw different dropout; evaluation uses the statistics and draws nothing."""
    _, untouched = jax.jit(made.apply)(variables, X)
    assert not untouched["first"]["initialised"]
    assert shapes(untouched) == shapes(variables.state)
    train = jax.jit(lambda variables, x: made.apply(variables, x, training=True))
    one, state = train(variables, X)
    assert shapes(state) == shapes(variables.state)
    np.testing.assert_allclose(state["first"]["mean"], X.mean(0), atol=1e-6)
    np.testing.assert_allclose(state["first"]["std"], X.std(0), rtol=1e-6)
    assert bool(state["first"]["initialised"])
    seen = Variables(variables.params, state)
    two, later = train(seen, 3 + X)
    assert not np.allclose(one, two)
    assert (np.asarray(one == 0) != np.asarray(two == 0)).any()
    np.testing.assert_array_equal(later["first"]["mean"], state["first"]["mean"])
    for name in ("permutation", "mask"):
        np.testing.assert_array_equal(later[name], variables.state[name])

    kernel, bias = variables.params["linear"]["kernel"], variables.params["linear"]["bias"]
    h = ((X - X.mean(0)) / X.std(0))[:, variables.state["permutation"]] @ kernel + bias
    np.testing.assert_allclose(state["norm"]["mean"], 0.5 * h.mean(0), atol=1e-6)
    out, same = jax.jit(made.apply)(seen, X)
    h = (h - 0.5 * h.mean(0)) / jnp.sqrt(0.5 + 0.5 * h.var(0) + 1e-5)
    np.testing.assert_allclose(out, np.where(np.arange(6) % 2 == 0, h, 0), rtol=1e-4, atol=1e-5)
    for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(state), strict=True):
        assert bool((a == b).all())


def test_gradients_are_of_the_parameters_alone(made, variables):
    def loss(params):
        out, state = made.apply(Variables(params, variables.state), X, training=True)
        return jnp.sum(out**2), state

    gradient, state = jax.jit(jax.grad(loss, has_aux=True))(variables.params)
    assert shapes(gradient) == shapes(variables.params)
    assert shapes(state) == shapes(variables.state)
    assert float(jnp.abs(gradient["norm"]["scale"]).max()) > 0


def test_keyword_inputs_and_other_methods(made, variables):
    plain, _ = made.apply(variables, X, shift=None)
    shifted, _ = made.apply(variables, X, shift=1.0)
    np.testing.assert_allclose(shifted, plain + 1, rtol=1e-6, atol=1e-6)
    inverse, _ = made.apply(variables, method="inverse_permutation")
    np.testing.assert_array_equal(inverse[variables.state["permutation"]], np.arange(6))


def test_our_networks_have_no_state():
    made = functional(lambda rngs: MLP((2,), width=4, depth=1, rngs=rngs))
    variables = made.init(jax.random.key(1))
    assert variables.state == made.abstract.state == {}
    expected = nnx.to_pure_dict(nnx.split(MLP((2,), width=4, depth=1, rngs=nnx.Rngs(jax.random.key(1))))[1])
    for a, b in zip(jax.tree.leaves(variables.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
    out, state = made.apply(variables, 0.5, X[:, :2])
    assert out.shape == (8, 2)
    assert state == {}
