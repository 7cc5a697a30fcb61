"""Parameters that may travel in a narrower type: which ones, and that nothing changes by it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.batch import Batch
from flowjax.build import build
from flowjax.config import defaults, resolve
from flowjax.data import DataSpec
from flowjax.data.affine import image_scale
from flowjax.methods import Context
from flowjax.training.narrow import travelling
from flowjax.training.state import init_state

NARROW = jnp.bfloat16


def uses(p, x):
    """One parameter a way of use."""
    h = x.astype(NARROW) @ p["cast"].astype(NARROW)
    h = h @ p["moved"].T[1:].reshape(2, -1)[:, :2].astype(NARROW)
    h = jax.checkpoint(lambda w, h: jnp.tanh(h @ w.astype(NARROW)))(p["inside"], h)
    h, _ = jax.lax.scan(lambda h, _: (h @ p["looped"].astype(NARROW), None), h, None, length=3)
    h = h @ p["twice"].astype(NARROW) + p["twice"][0].astype(NARROW)
    h = h + p["gathered"][jnp.zeros(h.shape[0], int)].astype(NARROW) + p["repeated"].astype(NARROW)
    h = h.astype(jnp.float32) @ p["plain"] + (h @ p["both"].astype(NARROW)) * p["both"].sum()
    return h.sum() * p["count"].astype(jnp.float32)


def test_which_types_are_seen():
    w = jnp.eye(2)
    own = {"moved": jnp.ones((2, 3)), "count": jnp.ones((), jnp.int32), "repeated": jnp.ones(2)}
    params = dict.fromkeys(("cast", "inside", "looped", "twice", "plain", "both", "gathered"), w) | own
    seen = travelling(uses, params, jnp.ones((4, 2)))
    narrow = {name for name, dtype in seen.items() if dtype == NARROW}
    assert narrow == {"cast", "moved", "inside", "repeated"}  # a sum over rows after the cast is one reduction
    assert seen["count"] == jnp.int32
    assert {seen[name] for name in ("twice", "plain", "both", "looped", "gathered")} == {jnp.dtype("float32")}
    assert travelling(lambda p: p, w) == w.dtype  # what is given back is used


@pytest.mark.parametrize("model", ["dit", pytest.param("adm", marks=pytest.mark.slow)])
def test_the_loss_and_its_gradient_are_the_same_numbers(model):
    """Of a network in bfloat16 whose parameters are cast before it or in it; its float32 parts stay float32."""
    config = defaults(model)
    small = {"adm": {"channels": 32, "multipliers": (1,), "blocks": 1, "attention": (8,), "head_width": 16}}
    for key, value in small.get(model, {"depth": 1, "width": 48, "heads": 2, "remat": "block"}).items():
        config.model[key] = value
    config = resolve(config)
    method = build(config, DataSpec("images", (8, 8, 3), image_scale(256), levels=256))
    state = jax.jit(lambda: init_state(config, method))()
    params = jax.tree.map(lambda p: p + 0.02 * jnp.cos(jnp.arange(p.size)).reshape(p.shape), state.params)  # no zeros
    batch = Batch(jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32), None)
    loss = lambda params: method.loss(params, Context(), jax.random.key(1), batch).value
    dtypes = travelling(loss, params)
    kinds = {str(dtype) for dtype in jax.tree.leaves(dtypes)}
    assert kinds == {"bfloat16", "float32"}

    def cast_first(params):
        found, gradient = jax.value_and_grad(loss)(jax.tree.map(lambda p, dtype: p.astype(dtype), params, dtypes))
        return found, jax.tree.map(lambda g: g.astype(jnp.float32), gradient)

    ours, gradient = jax.jit(cast_first)(params)
    plain, expected = jax.jit(jax.value_and_grad(loss))(params)
    assert ours == plain
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)
