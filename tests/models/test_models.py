"""Networks: shapes, conditioning, counts, and the derivatives that likelihood needs."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax.conditions import NO_LABEL, Field
from flowjax.model_defaults import MODEL_DEFAULTS
from flowjax.models import MLP, UNet
from flowjax.models.embeddings import time_features
from flowjax.models.layers import fold, unfold
from flowjax.models.mlp import ACTIVATIONS
from flowjax.models.unet import _double, _halve
from flowjax.names import MODELS

LABEL = (Field("label", "label", num_classes=3),)


def perturbed(model):
    """Zero-initialised last layers hide everything: give every parameter some noise."""
    graph, state = nnx.split(model)
    leaves, tree = jax.tree.flatten(state)
    rng = np.random.default_rng(9)
    noisy = [a + 0.1 * jnp.asarray(rng.normal(size=a.shape), a.dtype) for a in leaves]
    return nnx.merge(graph, jax.tree.unflatten(tree, noisy))


@pytest.fixture(scope="module")
def mlp():
    return perturbed(MLP((2, 3), width=8, depth=2, features=4, fields=LABEL, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def unet():
    return perturbed(
        UNet((6, 10, 2), channels=8, multipliers=(1, 2), blocks=1, patch=2, fields=LABEL, rngs=nnx.Rngs(0))
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_defaults_of_a_constructor_are_those_of_configs(name):
    parameters = inspect.signature(MODELS[name].__init__).parameters
    assert {key: parameters[key].default for key in MODEL_DEFAULTS[name]} == MODEL_DEFAULTS[name]


@pytest.mark.parametrize("name", ["mlp", pytest.param("unet", marks=pytest.mark.slow)])
def test_shape_time_and_label(name, request):
    model = request.getfixturevalue(name)
    shape = {"mlp": (2, 3), "unet": (6, 10, 2)}[name]
    x = jax.random.normal(jax.random.key(0), (4, *shape))
    graph, state = nnx.split(model)
    model = jax.jit(lambda t, x, cond: nnx.merge(graph, state)(t, x, cond))
    labels = {"label": jnp.array([0, 1, 2, NO_LABEL])}
    out = model(0.3, x, labels)
    assert out.shape == x.shape
    np.testing.assert_allclose(out, model(jnp.full(4, 0.3), x, labels), rtol=1e-5, atol=1e-5)
    assert not np.allclose(out, model(0.7, x, labels), atol=1e-3)
    np.testing.assert_allclose(out[3], model(0.3, x, None)[3], rtol=1e-4, atol=1e-5)  # no label is label -1
    assert not np.allclose(out[0], model(0.3, x, None)[0], atol=1e-4)
    alone = model(0.3, x[1:2], {"label": labels["label"][1:2]})
    np.testing.assert_allclose(alone[0], out[1], rtol=1e-4, atol=1e-4)  # rows do not see each other


def test_mlp_parameter_count():
    model = MLP((2,), width=64, depth=3, features=0, rngs=nnx.Rngs(0))
    count = sum(a.size for a in jax.tree.leaves(nnx.split(model)[1]))
    assert count == (3 * 64 + 64) + 2 * (64 * 64 + 64) + (64 * 2 + 2)


def test_fresh_networks_start_at_zero():
    assert float(jnp.abs(MLP((2,), rngs=nnx.Rngs(0))(0.5, jnp.ones((3, 2)))).max()) == 0.0


def test_pixels_fold_and_unfold_and_odd_maps_come_back():
    x = jnp.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    np.testing.assert_array_equal(unfold(fold(x, 2), 2), x)
    np.testing.assert_array_equal(fold(x, 2)[0, 0, 0], x[0, :2, :2].reshape(-1))
    odd = jnp.ones((1, 7, 5, 2))
    assert _halve(odd).shape == (1, 4, 3, 2)
    np.testing.assert_array_equal(_double(_halve(odd), (7, 5)), odd)


def test_time_features_have_unit_mean_square():
    t = jnp.linspace(0, 1, 10_001)
    np.testing.assert_allclose((time_features(t, 8) ** 2).mean(0), 1.0, atol=1e-3)


def test_bad_sizes_are_told():
    with pytest.raises(ValueError, match="patch 3 does not divide"):
        UNet((8, 8, 1), patch=3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="unknown activation"):
        MLP((2,), activation="sely", rngs=nnx.Rngs(0))


def test_selu_is_the_published_one():
    """Against jax.nn's, written with expm1: two roundings of numbers up to 1.76 apart."""
    x = jnp.linspace(-20, 20, 4001)
    np.testing.assert_allclose(ACTIVATIONS["selu"](x), jax.nn.selu(x), rtol=1e-6, atol=3e-7)
    slope = jax.vmap(jax.grad(ACTIVATIONS["selu"]))(x)
    np.testing.assert_allclose(slope, jax.vmap(jax.grad(jax.nn.selu))(x), rtol=1e-6, atol=1e-6)
