"""A network spread over rows by hand is the same function. On 2 and 8 devices: `test_sharding.py`, `*_as_on_gpu`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.keys import row_keys
from flowjax.models.layers import dropout
from flowjax.training import sharding
from flowjax.training.replicas import network_over_rows


def network(params, t, x, cond, key=None):
    """One weight used in bfloat16 alone, one in two types; conditions may be missing."""
    h = (x.astype(jnp.bfloat16) @ params["a"].astype(jnp.bfloat16)).astype(jnp.float32) + t[:, None]
    h = dropout(h, 0.5, row_keys(key, x.shape[0]))
    h = h @ params["b"] + (x.astype(jnp.bfloat16) @ params["b"].astype(jnp.bfloat16)).astype(jnp.float32)
    return h if cond is None else h + cond["label"][:, None]


@pytest.mark.parametrize("cond", [None, {"label": jnp.arange(4)}])
def test_output_and_gradient_are_those_of_the_network(cond):
    """To the rounding of another order of operations, in bfloat16: 2^-8 of numbers of order 1."""
    mesh = jax.make_mesh((1, 1, 1), sharding.AXES, (jax.sharding.AxisType.Auto,) * 3)
    a, b, x = jax.random.normal(jax.random.key(0), (3, 4, 4))
    params, key = {"a": a, "b": b, "unused": jnp.ones(3)}, jax.random.key(1)
    loss = lambda f: lambda params: jnp.mean(f(params, 0.5 * jnp.ones(4), x, cond, key=key) ** 2)
    spread = loss(network_over_rows(network, mesh))
    (one, own), (two, other) = (jax.jit(jax.value_and_grad(f))(params) for f in (loss(network), spread))
    assert float(one) == pytest.approx(float(two), rel=2**-7)
    for name in params:
        assert other[name].dtype == jnp.float32
        np.testing.assert_allclose(own[name], other[name], rtol=0.05, atol=2**-6)
    [mapped] = [eqn for eqn in jax.make_jaxpr(spread)(params).eqns if eqn.primitive.name == "shard_map"]
    stacks = [v.aval for v in mapped.invars if v.aval.shape[:1] == (1,)]
    assert sorted((a.shape, str(a.dtype)) for a in stacks) == [
        ((1, 3), "float32"),
        ((1, 4, 4), "bfloat16"),
        ((1, 4, 4), "float32"),
    ]
