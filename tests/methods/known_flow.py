"""A flow in closed form, for tests of methods that learn flow maps: from N(0, 1) to N(M, C^2) in each coordinate.

The path has the marginals N(mean, std^2) with mean = alpha M and std^2 = alpha^2 C^2 + sigma^2, and its flow keeps
(x - mean) / std: X(s, t, x) = mean_t + std_t / std_s (x - mean_s).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flowjax.batch import Batch
from flowjax.methods import Context, Network
from flowjax.methods.times import Drawn
from flowjax.models.functional import Variables
from flowjax.paths import GaussianPath
from flowjax.schedules import VP, CondOT
from flowjax.sources import Normal

M, C = 1.5, 0.6
PATHS = {"condot": GaussianPath(CondOT()), "vp": GaussianPath(VP())}


def moments(path, t):
    alpha, sigma = path.schedule.alpha(t), path.schedule.sigma(t)
    return alpha * M, jnp.sqrt(alpha**2 * C**2 + sigma**2)


def flow_map(path, s, t, x):
    (mean_s, std_s), (mean_t, std_t) = moments(path, s), moments(path, t)
    return mean_t + std_t / std_s * (x - mean_s)


def velocity(path, t, x):
    """d/dt of the flow map at s = t."""
    (mean, std), (dmean, dstd) = jax.jvp(lambda t: moments(path, t), (t,), (jnp.ones_like(t),))
    return dmean + dstd / std * (x - mean)


def column(t, x):
    return jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])[:, None]


def average(path):
    """The exact average velocity plus params times a function that is not 0, also for s = t."""

    def apply(params, t, x, cond, s=0.0):
        s, t = column(s, x), column(t, x)
        apart = jnp.abs(t - s) > 1e-6
        length = jnp.where(apart, t - s, 1.0)
        u = jnp.where(apart, (flow_map(path, s, t, x) - x) / length, velocity(path, s, x))
        return u + params * (1 + t - s) * jnp.cos(x + s)

    return Network.from_function(apply)


@dataclasses.dataclass(frozen=True)
class Exact:
    """A teacher whose model has the exact velocity."""

    path: Any

    def model(self, params, state):
        return self

    def velocity(self, t, x, cond=None):
        return velocity(self.path, column(t, x), x)


@dataclasses.dataclass(frozen=True)
class Inside:
    """Uniform times away from the ends, in the dtype of the tests."""

    def __call__(self, key, n, path, interval, profile=None):
        return Drawn(jax.random.uniform(key, (n,), minval=0.02, maxval=0.98), jnp.ones(n))


def method_of(kind, path="condot", taught=False, **settings):
    path = PATHS[path]
    teacher = Exact(path) if taught else None
    return kind(average(path), path, Normal((1,)), drawn=Inside(), teacher=teacher, **settings)


def loss(method, params, key, n, cond=None):
    """The loss of a batch of data; the context has variables for a teacher."""
    key_data, key_loss = jax.random.split(key)
    batch = Batch(M + C * jax.random.normal(key_data, (n, 1)), cond)
    return method.loss(params, Context(teacher=Variables(None, {})), key_loss, batch)


def gradients(method, batches=400, n=256, seed=0):
    """d loss / d params at the exact average velocity, for independent batches, (batches,)."""
    slope = jax.grad(lambda params, key: loss(method, params, key, n).value)
    keys = jax.random.split(jax.random.key(seed), batches)
    return jax.jit(jax.vmap(lambda key: slope(jnp.zeros(()), key)))(keys)


def standard_errors(values):
    """The mean divided by its standard error."""
    return float(values.mean() / (values.std() / len(values) ** 0.5))
