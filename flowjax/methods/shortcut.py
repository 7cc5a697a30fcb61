"""Shortcut models: a network learns steps of every dyadic size, each from two steps of half the size.

Source: Frans et al. 2024, arXiv:2410.12557, whose time also runs from the noise to the data.

The network u(s, t, x) is the average velocity of the flow X between s and t (`methods.average_velocity`), where the
paper passes the step size t - s. A row is of one of two kinds:

    (1)  s = t            flow matching: the target is the velocity of equation (2) of `methods.average_velocity`
    (2)  t = s + h        self-consistency: the target is the mean velocity of two steps of size h / 2,

             x' = x + h/2 u(s, s + h/2, x)
             (u(s, s + h/2, x) + u(s + h/2, s + h, x')) / 2

with x on the path at time s, and no gradient through the target (eq. 4 and 5, algorithm 1). The step sizes are
h = L 2^-k for k = 0 ... K, with L the length of the interval of times, and s is its start plus a multiple of h: these
are the steps of samplers with 2^k uniform steps. Other numbers of steps are extrapolations of the network.

The smallest steps, with k = K, have no halves. The paper replaces u in their target by the velocity u(s, s, x), which
makes it two Euler steps. Here it is a step of Heun's method, at the same cost and with an error of higher order in h:

    (3)  x' = x + h u(s, s, x),    (u(s, s, x) + u(s + h, s + h, x')) / 2

The flow map fulfils (2) exactly, and (3) up to an error of u of the order h^2. The targets of (2) and (3) are functions
of x, so that they have no variance given x, but errors of short steps pass on to longer ones.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp

from flowjax.batch import Batch
from flowjax.methods.average_velocity import (
    AverageVelocityMethod,
    AverageVelocitySettings,
    Rows,
    mean_where,
)
from flowjax.methods.base import Context, Loss
from flowjax.methods.draw import row_mean_square
from flowjax.paths.affine import expand
from flowjax.ranges import Range
from flowjax.typing import Params, PRNGKey

__all__ = ["Shortcut"]


@dataclass(frozen=True)
class Settings(AverageVelocitySettings):
    """The keys of `config.method`.

    Attributes:
        times: the distribution of the times of the rows of flow matching.
        different: fraction of the rows of self-consistency. The other rows learn the velocity.
        levels: the number K of times that the interval is halved to get the smallest steps; samplers can take 1, 2, 4,
            ... 2^K steps.
        target_half_life: half-life, in samples, of the moving average of the parameters with which targets are
            computed; 0 to compute them with the parameters themselves.
    """

    different: Annotated[float, Range(0, 1)] = 0.25
    levels: Annotated[int, Range(1, 20)] = 7
    target_half_life: Annotated[float, Range(0, 1e15)] = 50_000.0


@dataclass(frozen=True)
class Shortcut(AverageVelocityMethod):
    """Shortcut models on an affine path.

    Attributes:
        different, levels: as in `Settings`.
    """

    different: float = 0.25
    levels: int = 7

    Settings: ClassVar[type] = Settings
    metrics: ClassVar[tuple[str, ...]] = ("marginal_error", "squared_error", "velocity_error", "consistency_error")

    @property
    def trained_steps(self) -> tuple[int, ...]:
        return tuple(2**k for k in range(self.levels + 1))

    def draw_steps(self, key: PRNGKey, batch: Batch) -> Rows:
        """Draws the two times of each row: equal ones, or those of a dyadic step; and the points at the first one."""
        key_draw, key_apart, key_time, key_level, key_step = jax.random.split(key, 5)
        n, (low, high) = batch.x1.shape[0], self.interval
        first = self.drawn(key_time, n, self.path, self.interval).t
        apart = jax.random.bernoulli(key_apart, self.different, (n,))
        steps = 2 ** jax.random.randint(key_level, (n,), 0, self.levels + 1)
        i = jax.random.randint(key_step, (n,), 0, steps)
        time_of = lambda i: (low + (high - low) * (i / steps)).astype(first.dtype)
        return self.draw_at(
            key_draw, batch, jnp.where(apart, time_of(i), first), jnp.where(apart, time_of(i + 1), first)
        )

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        s, t, apart, p, marginal_error = self.draw_steps(key, batch)
        output, state = self.network(params, context, t, p.x_t, batch.cond, s=s, key=key, mask=batch.mask)
        fixed = self.fixed_average(params, context, key, batch)
        finest = t - s < 1.5 * (self.interval[1] - self.interval[0]) / 2**self.levels
        middle = jnp.where(finest, t, (s + t) / 2)  # equation (3) or (2)
        u_first = fixed(s, jnp.where(finest, s, middle), p.x_t)
        x_middle = (p.x_t + expand(middle - s, p.x_t) * u_first).astype(p.x_t.dtype)
        consistent = (u_first + fixed(middle, t, x_middle)) / 2
        velocity = self.velocity(context, p, batch, fixed)
        target = jax.lax.stop_gradient(jnp.where(expand(apart, p.x_t), consistent, velocity))
        errors = row_mean_square(output - target, batch.mask)
        metrics = {
            "marginal_error": marginal_error,
            "squared_error": jnp.mean(errors),
            "velocity_error": mean_where(errors, ~apart),
            "consistency_error": mean_where(errors, apart),
        }
        return Loss(jnp.mean(errors), metrics, state)
