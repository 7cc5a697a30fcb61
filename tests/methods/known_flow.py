"""The flow from N(0, I) to N(m, c^2 I) in closed form, networks that have learned it, and the gradients of losses."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp

from flowjax.batch import Batch
from flowjax.methods import Context, Network
from flowjax.methods.times import Drawn
from flowjax.models.functional import Variables
from flowjax.paths import GaussianPath
from flowjax.predictions import Ends
from flowjax.schedules import VP, CondOT
from flowjax.sources import Normal


def column(t, x):
    """The times t, a number or (B,), as a column (B, 1)."""
    return jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])[:, None]


@dataclasses.dataclass(frozen=True)
class KnownFlow:
    """x_t is normal with mean alpha m and variance alpha^2 c^2 + sigma^2 in each coordinate; X keeps (x - mean) / std.

    It is a model with a velocity and a flow map, and the method of a teacher that is this model.
    """

    path: GaussianPath
    m: float = 1.5
    c: float = 0.4

    @property
    def interval(self):
        return self.path.t_min, self.path.t_max

    def moments(self, t, x):
        r = self.path.rates(t, x)
        return self.m * r.alpha, jnp.sqrt((self.c * r.alpha) ** 2 + r.sigma**2)

    def velocity(self, t, x, cond=None):
        r, (mean, std) = self.path.rates(t, x), self.moments(t, x)
        return self.m * r.dalpha + (self.c**2 * r.alpha * r.dalpha + r.sigma * r.dsigma) / std**2 * (x - mean)

    def flow_map(self, s, t, x, cond=None):
        (mean, std), (mean_t, std_t) = self.moments(s, x), self.moments(t, x)
        return mean_t + std_t / std * (x - mean)

    def average(self, s, t, x):
        """The average velocity from s to t, which is the velocity for s = t."""
        s, t = column(s, x), column(t, x)
        apart = jnp.abs(t - s) > 1e-6
        u = (self.flow_map(s[:, 0], t[:, 0], x) - x) / jnp.where(apart, t - s, 1.0)
        return jnp.where(apart, u, self.velocity(s[:, 0], x))

    def model(self, params, state):
        return self

    @property
    def context(self):
        return Context(teacher=Variables({}, {}))

    def batch(self, n, d=1, key=7):
        key = jax.random.key(key) if isinstance(key, int) else key
        return Batch(self.m + self.c * jax.random.normal(key, (n, d)))

    def output(self, prediction):
        """`apply(p, t, x, cond)` of a network whose consistency function is the flow map to t_max, where sigma is 0.

        p is added to its output.
        """

        def apply(p: Any, t, x, cond):
            x = x / prediction.inputs(self.path, t, jnp.ones_like(x))
            r, x1 = self.path.rates(t, x), self.flow_map(t, jnp.full_like(t, self.path.t_max), x)
            apart = r.sigma > 0
            x0 = jnp.where(apart, (x - r.alpha * x1) / jnp.where(apart, r.sigma, 1.0), 0.0)
            return prediction.from_ends(self.path, t, x, Ends(x0, x1)) + p

        return apply


@dataclasses.dataclass(frozen=True)
class Between:
    """Times that are uniform between two numbers."""

    low: float
    high: float

    def __call__(self, key, n, path, interval, profile=None):
        return Drawn(jax.random.uniform(key, (n,), minval=self.low, maxval=self.high), jnp.ones(n))


FLOWS = {"condot": KnownFlow(GaussianPath(CondOT())), "vp": KnownFlow(GaussianPath(VP()))}


def wrong_by(flow):
    """The exact average velocity plus params times a function that is not 0, also for s = t."""

    def apply(params, t, x, cond, s):
        return flow.average(s, t, x) + params * (1 + column(t, x) - column(s, x)) * jnp.cos(x + column(s, x))

    return apply


def method_of(kind, flow="condot", taught=False, **settings):
    """A method whose network is `wrong_by` of the flow; its teacher, if any, has the exact velocity."""
    known, apply = FLOWS[flow], cast(Any, wrong_by(FLOWS[flow]))
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


def z_score(values):
    """The mean divided by its standard error."""
    return float(values.mean() / (values.std() / len(values) ** 0.5))
