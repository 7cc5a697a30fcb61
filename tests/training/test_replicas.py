"""`network_over_rows` computes the same function as the network. Tests on 2 and 8 devices are in `test_sharding.py`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowjax.batch import Batch
from flowjax.conditions import Field
from flowjax.keys import row_keys
from flowjax.methods import Context, MeanFlow, Network
from flowjax.models import MLP, functional
from flowjax.models.functional import Variables
from flowjax.models.layers import dropout
from flowjax.paths import GaussianPath
from flowjax.schedules import CondOT
from flowjax.sources import Normal
from flowjax.training import sharding
from flowjax.training.parameters import network_over_rows


def network(params, t, x, cond, key=None):
    """A network with one weight used only in bfloat16, and one used in two types; conditions may be missing."""
    h = (x.astype(jnp.bfloat16) @ params["a"].astype(jnp.bfloat16)).astype(jnp.float32) + t[:, None]
    h = dropout(h, 0.5, row_keys(key, x.shape[0]))
    h = h @ params["b"] + (x.astype(jnp.bfloat16) @ params["b"].astype(jnp.bfloat16)).astype(jnp.float32)
    return h if cond is None else h + cond["label"][:, None]


@pytest.mark.parametrize("cond", [None, {"label": jnp.arange(4)}])
def test_output_and_gradient_are_those_of_the_network(cond):
    """Up to the rounding of another order of operations in bfloat16, 2^-8 for numbers of order 1."""
    mesh = jax.make_mesh((1, 1, 1), sharding.AXES, (jax.sharding.AxisType.Auto,) * 3)
    a, b, x = jax.random.normal(jax.random.key(0), (3, 4, 4))
    params, key = {"a": a, "b": b, "unused": jnp.ones(3)}, jax.random.key(1)
    types = {"a": jnp.bfloat16, "b": jnp.float32, "unused": jnp.float32}
    loss = lambda f: lambda params: jnp.mean(f(params, 0.5 * jnp.ones(4), x, cond, key=key) ** 2)
    spread = loss(network_over_rows(network, mesh, lambda params: types))
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


FIELDS = (
    Field("label", "label", num_classes=3),
    Field("obs", "vector", (2,)),
    Field("points", "set", (3, 2)),
)


def by_rows(network):
    """The network in `network_over_rows` on a mesh of one device, as in the trainer."""
    mesh = jax.make_mesh((1, 1, 1), sharding.AXES, (jax.sharding.AxisType.Auto,) * 3)
    plain = lambda params, *arguments, **inputs: network.apply(Variables(params, {}), *arguments, **inputs)[0]
    mapped = network_over_rows(plain, mesh)
    apply = lambda variables, *arguments, **inputs: (mapped(variables.params, *arguments, **inputs), {})
    return dataclasses.replace(network, apply=apply)


def test_a_second_time_and_all_conditions_go_along():
    """The loss of a mean flow, which has a forward derivative of the mapped network, up to the rounding of float32."""
    make = lambda rngs: MLP((2,), width=8, depth=2, fields=FIELDS, two_times=True, rngs=rngs)
    network = Network.of(functional(make), fused=True)
    keys = iter(jax.random.split(jax.random.key(0), 9))
    normal = lambda *shape: jax.random.normal(next(keys), shape)
    points = normal(8, 3, 2).at[2, 1].set(jnp.nan)  # a missing element of the set
    cond = {"label": jnp.arange(8) % 4 - 1, "obs": normal(8, 2).at[0].set(jnp.nan), "points": points}
    batch = Batch(normal(8, 2), cond)
    params = network.init(next(keys)).params
    params = jax.tree.map(lambda a: a + 0.1 * jnp.cos(jnp.arange(a.size)).reshape(a.shape), params)
    values = []
    for own in (network, by_rows(network)):
        method = MeanFlow(own, GaussianPath(CondOT()), Normal((2,)), different=0.5)
        loss = lambda p, method=method: method.loss(p, Context(training=True), jax.random.key(1), batch).value
        values.append(jax.jit(jax.value_and_grad(loss))(params))
    (one, own), (two, other) = values
    assert float(one) == pytest.approx(float(two), rel=1e-5)
    for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_names_of_methods_scalars_and_outputs_of_several_arrays():
    """As for a bijection: `apply(variables, x, cond, method="invert")` returns a pair."""

    class Scale(nnx.Module):
        def __init__(self, rngs):
            self.log = nnx.Param(jax.random.normal(rngs.params(), (3,)))

        def invert(self, x, cond=None, *, s=0.0, forward_mode=False):
            assert isinstance(forward_mode, bool)
            return x * jnp.exp(-self.log[...]) + jnp.reshape(s, (-1, 1)), jnp.broadcast_to(-self.log[...].sum(), len(x))

    network = Network.of(functional(Scale))
    variables, x = network.init(jax.random.key(0)), jnp.ones((4, 3))
    given = {"method": "invert", "s": 0.5, "forward_mode": True}
    plain, mapped = (net.apply(variables, x, None, **given)[0] for net in (network, by_rows(network)))
    for a, b in zip(plain, mapped, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
