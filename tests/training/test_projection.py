"""Normalisation of weights after each step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from flowjax.models.magnitude import MPConv, MPLinear, is_weight, unit
from flowjax.training.optimizers import normalise_weights

pytestmark = pytest.mark.analytic


def example():
    """The parameters of a convolution, a linear layer, a gain, and a matrix whose layer does not normalise it."""
    layers = {"conv": MPConv(3, 5, rngs=nnx.Rngs(0)), "linear": MPLinear(5, 4, rngs=nnx.Rngs(1))}
    for layer in layers.values():  # normalised at initialisation
        np.testing.assert_allclose(magnitudes(layer.weight[...]), 1, atol=1e-6)
    graph, state = nnx.split(nnx.Dict(**layers))
    params = {"net": nnx.to_pure_dict(state), "gain": jnp.ones(()), "kernel": jnp.full((3, 3), 2.0)}

    def loss(params):
        net = nnx.merge(graph, params["net"])
        y = net["linear"](net["conv"](jax.random.normal(jax.random.key(2), (2, 8, 8, 3))))
        return (params["gain"] * (y - 1) ** 2).mean() + (params["kernel"] ** 2).sum()

    return params, loss


def magnitudes(weight):
    """The root mean square of each output channel, in float64."""
    w = np.asarray(weight, np.float64)
    return np.sqrt((w**2).mean(tuple(range(w.ndim - 1))))


def test_a_step_leaves_weights_on_the_sphere_and_others_alone():
    """The update w + (unit(w + u) - w) has two roundings of numbers below 4, about 5e-7; EPS^2 is 1e-8.

    Without the projection, the learning rate of 0.1 changes magnitudes by about 0.1^2 / 2, which is above 1e-3.
    """
    params, loss = example()

    @jax.jit
    def steps(params):
        grads = jax.grad(loss)(params)
        step = lambda tx: optax.apply_updates(params, tx.update(grads, tx.init(params), params)[0])
        return step(optax.adam(0.1)), step(optax.chain(optax.adam(0.1), normalise_weights()))

    plain, forced = steps(params)
    for name in ("conv", "linear"):
        assert np.abs(magnitudes(plain["net"][name]["weight"]) - 1).max() > 1e-3
        np.testing.assert_allclose(magnitudes(forced["net"][name]["weight"]), 1, atol=1e-6)
        direction = np.asarray(plain["net"][name]["weight"], np.float64)
        expected = direction / magnitudes(direction)
        np.testing.assert_allclose(forced["net"][name]["weight"], expected, rtol=1e-5, atol=1e-6)
    for name in ("gain", "kernel"):
        np.testing.assert_array_equal(forced[name], plain[name])


def test_gradients_are_orthogonal_to_weights_and_shrink_with_their_length():
    """This is exact for w -> w / |w|. EPS changes the angle by 1e-8, and float32 sums of 27 terms by about 1e-6."""
    params, loss = example()
    gradient = jax.jit(lambda params: jax.grad(loss)(params)["net"]["conv"]["weight"])
    grads = gradient(params)
    weight = params["net"]["conv"]["weight"]
    along = jnp.abs((grads * weight).sum((0, 1, 2)))
    assert float(along.max()) < 1e-5 * float(jnp.linalg.norm(grads) * jnp.linalg.norm(weight))
    params["net"]["conv"]["weight"] = 2 * weight
    np.testing.assert_allclose(gradient(params), grads / 2, rtol=1e-3, atol=1e-6)


def test_masks():
    """Masks by name, as a tree and as a function. A weight of unit magnitude does not change, up to one rounding."""
    params, _ = example()
    assert jax.tree.leaves(is_weight(params)) == [False, False, True, True]
    zero = jax.tree.map(jnp.zeros_like, params)
    only = jax.tree.map(lambda a: a.shape == (3, 3), params)
    for mask in (only, lambda params: only):
        tx = normalise_weights(mask)
        updates, _ = tx.update(zero, tx.init(params), params)
        np.testing.assert_allclose(params["kernel"] + updates["kernel"], 1.0, atol=1e-6)
        assert float(jnp.abs(updates["net"]["conv"]["weight"]).max()) == 0.0
    weight = params["net"]["conv"]["weight"]
    np.testing.assert_allclose(unit(weight), weight, rtol=1e-6)


def test_it_asks_for_the_parameters():
    params, _ = example()
    with pytest.raises(ValueError, match="needs the parameters"):
        normalise_weights().update(params, optax.EmptyState())
