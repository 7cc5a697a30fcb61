"""Continuous-time consistency models: a consistency function trained with its derivative along trajectories (sCM).

A consistency function is constant along every trajectory of the flow (`flowjax.methods.consistency_function`). As the
step of discrete consistency training goes to 0, the gradient of its loss becomes that of -f . sg[w(t) df/dt] with the
tangent

    (1)  df/dt = df(t, x_t) / dt + (df / dx) v

and a weight w, where sg[] is a value without a gradient. Here v is the velocity of the path given both ends (training
from scratch) or that of a teacher (distillation). Lu & Song 2024 (arXiv:2410.11081) make this stable on the path
x = cos(u) x1 + sin(u) x0 with data of unit variance, whose time u runs from the data to the noise. On an affine path, u
is the angle with

    (2)  tan u = sigma / alpha,    -du/dt = (alpha' sigma - alpha sigma') / (alpha^2 + sigma^2)

and x / sqrt(alpha^2 + sigma^2) is the point of their path. f is the same function of the trajectory on both paths, so
with dots for derivatives -d/du = -(1 / u') d/dt and with v_net for the velocity of the network, their tangent is

    (3)  g = a + r (cos(u) f_dot - a),    a = cos(u)^2 (v - v_net) / (sqrt(alpha^2 + sigma^2) |u'|)

(their algorithm 1, where -g is the tangent because time is reversed). The part a is the error of the velocity. The
warm-up r goes from 0 to 1 over the first steps, so that training starts from flow matching. The tangent is normalised,

    (4)  g <- g / (|g| + c)

with c = 0.1, and the loss is the sum over the coordinates of the squares of

    (5)  (f - sg[f]) / sin(u) - sg[g]

where f = cos(u) x - sin(u) F on their path, so that the first term is the change of their network -F. The value of
the loss is the mean of |g|^2, and only its gradient has a meaning. The metric `tangent_norm` is the mean of |g| before
(4), with r = 1.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.batch import Batch
from flowjax.couplings import INDEPENDENT
from flowjax.methods.base import Context, Loss
from flowjax.methods.components import Components
from flowjax.methods.consistency_function import (
    ConsistencyMethod,
    ConsistencySettings,
    consistency_function,
    consistency_parts,
)
from flowjax.methods.draw import draw, row_mean_square
from flowjax.methods.teacher import path_velocity
from flowjax.paths.affine import expand
from flowjax.predictions import velocity, well_conditioned
from flowjax.ranges import Range
from flowjax.typing import Batched, Output, Params, PRNGKey, Time

__all__ = ["ContinuousConsistency"]


@dataclass(frozen=True)
class Settings(ConsistencySettings):
    """The keys of `config.method`.

    Attributes:
        times: the distribution of the times. Lu & Song 2024 use log_normal(-1.0, 1.4) from scratch and
            log_normal(-0.8, 1.6) with a teacher, for data of unit variance.
        warmup: the number of steps of the optimizer over which r in equation (3) grows from 0 to 1.
        normalise: the constant c of the normalisation of the tangent; 0 for no normalisation.
    """

    times: str = "log_normal(-1.0, 1.4)"
    warmup: Annotated[int, Range(0, 2_000_000_000)] = 10_000
    normalise: Annotated[float, Range(0, 1e6)] = 0.1


@dataclass(frozen=True)
class ContinuousConsistency(ConsistencyMethod):
    """Continuous-time consistency training or distillation on a Gaussian path.

    Attributes:
        warmup, normalise: as in `Settings`.
    """

    warmup: int = 10_000
    normalise: float = 0.1

    Settings: ClassVar[type] = Settings
    comparable_loss: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]] = ("tangent_norm", "velocity_error")

    @classmethod
    def from_config(cls, parts: Components) -> "ContinuousConsistency":
        settings = parts.settings
        own: dict[str, Any] = {"warmup": settings.warmup, "normalise": settings.normalise}
        return cls(**consistency_parts(parts, "continuous_consistency"), **own)

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        low, high = self.interval
        interval = low, min(high, well_conditioned(self.path, sigma=True)[1])  # equation (5) divides by sin(u)
        p = draw(key, batch, self.path, self.source, INDEPENDENT, interval, self.drawn).sample
        v = path_velocity(self.teacher, context, p, batch.cond, self.guidance)
        output, state = self.output(params, context, p.t, p.x_t, batch.cond, key)
        forward = replace(self, network=self.network.with_forward_mode())

        def network(t: Array, x: Batched) -> Output:
            return forward.output(params, context, t, x, batch.cond, key)[0]

        def function(t: Time, x: Batched, output: Output) -> Batched:
            return consistency_function(self.path, self.prediction, t, x, output)

        one = jnp.ones_like(p.t)
        fixed, along = jax.jvp(network, (p.t, p.x_t), (one, v))
        f, f_dot = jax.jvp(function, (p.t, p.x_t, fixed), (one, v, along))
        error = v - self._velocity(p.t, p.x_t, fixed)
        r = self.path.rates(p.t, p.x_t)
        radius = jnp.hypot(r.alpha, r.sigma)
        cos, sin = r.alpha / radius, r.sigma / radius
        speed = (r.dalpha * r.sigma - r.alpha * r.dsigma) / radius**2
        whole, first = cos * f_dot / speed, cos**2 * error / (radius * speed)
        warm = jnp.minimum(jnp.asarray(context.step) / self.warmup, 1.0) if self.warmup else 1.0
        tangent = first + warm * (whole - first)
        if self.normalise:
            tangent = tangent / (self._norm(tangent) + self.normalise)
        change = (function(p.t, p.x_t, output) - jax.lax.stop_gradient(f)) / sin
        rows = row_mean_square(change - jax.lax.stop_gradient(tangent)) * p.x_t[0].size
        metrics = {"tangent_norm": jnp.mean(self._norm(whole)), "velocity_error": jnp.mean(row_mean_square(error))}
        return Loss(jnp.mean(rows), metrics, state)

    def _velocity(self, t: Float[Array, " B"], x: Batched, output: Output) -> Batched:
        """The velocity that follows from the network's output."""
        return velocity.from_ends(self.path, t, x, self.prediction.to_ends(self.path, t, x, output))

    @staticmethod
    def _norm(x: Batched) -> Array:
        """The Euclidean norm of each row, with trailing axes so that it broadcasts against x."""
        return expand(jnp.sqrt(row_mean_square(x) * x[0].size), x)
