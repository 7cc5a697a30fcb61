"""The residual MLP: its formula in NumPy, its count, its start, precision and dropout."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax.conditions import Field
from flowjax.models import ResMLP
from tests.models.test_models import perturbed

TINY = {"width": 16, "depth": 2, "features": 4}


def network(**changes):
    graph, state = nnx.split(perturbed(ResMLP((2, 3), **TINY | changes, rngs=nnx.Rngs(0))))
    return jax.jit(lambda t, x, key=None: nnx.merge(graph, state)(t, x, key=key)), state


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(0), (4, 2, 3))


def test_its_output_is_the_formula_of_its_docstring(x):
    """In float64 NumPy, with the approximation of GELU by tanh: to the rounding of float32 in ten layers."""
    apply, state = network(outputs=2)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), nnx.to_pure_dict(state))
    dense = lambda layer, h: h @ layer["kernel"] + layer["bias"]
    silu = lambda a: a / (1 + np.exp(-a))
    gelu = lambda a: 0.5 * a * (1 + np.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
    norm = lambda h: (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
    t = np.array([0.1, 0.4, 0.6, 1.0])
    angle = np.pi * t[:, None] * np.array([1, 2])
    features = math.sqrt(2) * np.concatenate([np.sin(angle), np.cos(angle)], 1)
    c = silu(dense(p["time2"], silu(dense(p["time1"], features))))
    h = dense(p["stem"], np.asarray(x, np.float64).reshape(4, 6))
    for i in range(2):
        block = p["blocks"][i]
        shift, scale, gate = np.split(dense(block["modulation"], c), 3, 1)
        h = h + gate * dense(block["mlp2"], gelu(dense(block["mlp1"], norm(h) * (1 + scale) + shift)))
    shift, scale = np.split(dense(p["modulation"], c), 2, 1)
    expected = dense(p["out"], h * (1 + scale) + shift).reshape(4, 2, 6)
    np.testing.assert_allclose(apply(jnp.asarray(t, jnp.float32), x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [1, 3])
def test_the_number_of_parameters_is_the_closed_form(depth):
    """A block has a modulation of 3 W^2 and two layers of e W^2; the times have two layers, the label K + 1 vectors."""
    w, e, d, f = 24, 3, 5, 8
    fields = (Field("label", "label", num_classes=7),)
    fresh = lambda: ResMLP((d,), width=w, depth=depth, expansion=e, features=f, fields=fields, rngs=nnx.Rngs(0))
    count = sum(a.size for a in jax.tree.leaves(nnx.split(nnx.eval_shape(fresh))[1]))
    block = (3 + 2 * e) * w**2 + (3 + e + 1) * w
    ends = (d + 1) * w + 2 * (w + 1) * w + (w + 1) * d
    assert count == depth * block + ends + (f + 1) * w + (w + 1) * w + 8 * w


def test_a_fresh_network_is_zero_and_its_blocks_are_the_identity(x):
    fresh = ResMLP((2, 3), **TINY, rngs=nnx.Rngs(0))
    assert float(jnp.abs(fresh(0.5, x)).max()) == 0.0
    h, c = jax.random.normal(jax.random.key(0), (3, 1, 16)), jnp.ones((3, 16))
    np.testing.assert_array_equal(fresh.blocks[0](h, c, None), h)
    assert float(jnp.abs(fresh.blocks[0].mlp2.kernel[...]).min()) > 0  # it is the gate that is zero


def test_bfloat16_is_float32_rounded(x):
    """bfloat16 has 2^-9 of rounding; some ten roundings add up in quadrature to a few per cent at most."""
    want, got = network()[0](0.3, x), network(dtype="bfloat16")[0](0.3, x)
    assert got.dtype == jnp.float32
    assert 1e-5 < float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want)) < 0.05


def test_dropout_is_drawn_from_the_key_alone(x):
    (dropped, _), (plain, _), key = network(dropout=0.5), network(), jax.random.key(3)
    np.testing.assert_allclose(dropped(0.3, x), plain(0.3, x), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(dropped(0.3, x, key), dropped(0.3, x, key))
    assert not np.allclose(dropped(0.3, x, key), dropped(0.3, x, jax.random.key(4)), atol=1e-3)


@pytest.mark.parametrize("features", [0, 5])
def test_an_odd_number_of_features_is_refused(features):
    with pytest.raises(ValueError, match=rf"^features must be an even number of at least 2, not {features}$"):
        ResMLP((2,), features=features, rngs=nnx.Rngs(0))
