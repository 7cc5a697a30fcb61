"""Networks that have learned the average velocities of a flow in closed form, and the gradients of losses at them."""

from typing import Any, cast

import jax
import jax.numpy as jnp

from flowjax.methods import Context, Network
from flowjax.models.functional import Variables
from flowjax.paths import GaussianPath
from flowjax.paths.affine import expand
from flowjax.schedules import VP, CondOT
from flowjax.sources import Normal
from tests.methods.normal_flow import Between, KnownFlow

FLOWS = {"condot": KnownFlow(GaussianPath(CondOT())), "vp": KnownFlow(GaussianPath(VP()))}


def average(flow):
    """The exact average velocity plus params times a function that is not 0, also for s = t."""

    def apply(params, t, x, cond, s):
        s, t = (jnp.broadcast_to(time, x.shape[:1]) for time in (s, t))
        apart = jnp.abs(t - s) > 1e-6
        length = expand(jnp.where(apart, t - s, 1.0), x)
        u = jnp.where(expand(apart, x), (flow.flow_map(s, t, x) - x) / length, flow.velocity(s, x))
        return u + params * (1 + expand(t - s, x)) * jnp.cos(x + expand(s, x))

    return apply


def method_of(kind, flow="condot", taught=False, **settings):
    """A method whose network is `average` of the flow; its teacher, if any, has the exact velocity."""
    known, apply = FLOWS[flow], cast(Any, average(FLOWS[flow]))
    made: dict[str, Any] = {"drawn": Between(0.02, 0.98), "teacher": known if taught else None, **settings}
    return kind(Network.from_function(apply), known.path, Normal((1,)), **made)


def gradients(method, batch_of, params=0.0, batches=300, seed=0):
    """d loss / d params for independent batches `batch_of(key)`, (batches,)."""

    def slope(params, key):
        key_data, key_loss = jax.random.split(key)
        context = Context(teacher=Variables({}, {}))
        return method.loss(params, context, key_loss, batch_of(key_data)).value

    keys = jax.random.split(jax.random.key(seed), batches)
    return jax.jit(jax.vmap(jax.grad(slope), in_axes=(None, 0)))(jnp.asarray(params), keys)


def standard_errors(values):
    """The mean divided by its standard error."""
    return float(values.mean() / (values.std() / len(values) ** 0.5))
