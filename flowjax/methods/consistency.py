"""Consistency training, tuning and distillation: a network learns the map of the flow to the data.

A consistency function f(t, x) maps every point of a trajectory to the end of the trajectory, and f(t_max, x) = x
(`flowjax.methods.consistency_function`). The loss compares it at two close times s < t of one trajectory:

    (1)  L = E  d(f(s, x_s), sg[f(t, x_t)]) / sqrt((alpha_t - alpha_s)^2 + (sigma_t - sigma_s)^2)

(Song et al. 2023, arXiv:2303.01469, algorithms 2 and 3), with sg[] for a value without a gradient and with the same
dropout in both evaluations. Without a teacher, x_s and x_t are points of the path with the same ends (x0, x1); with a
teacher, x_t is reached from x_s by one step of an ODE solver along the teacher's velocity. The denominator is the
root mean square distance of x_s and x_t for data of unit variance. Where alpha = 1 it is the difference of the noise
levels, as in Song & Dhariwal 2023 (arXiv:2310.14189, table 1). There, d is the pseudo-Huber loss
(`flowjax.methods.errors_of_rows`) with c = 0.00054, and the number of intervals is doubled after every K steps of the
optimizer, up to a largest number:

    (2)  n = min(first 2^floor(step / K), last)

Papers number times from the data; here s is the time with more noise. Two spacings choose the pair (s, t) from a drawn
time:

    grid         the interval that contains the drawn time, of n equal intervals of the schedule's time. With the
                 schedule edm(0.002, 80), whose equal intervals are Karras' noise levels, and with times
                 log_normal(-1.1, 2.0), this is the discretised distribution of Song & Dhariwal 2023, sec. 3.5 and
                 appendix A
    remaining    s is the drawn time, and t = s + (t_max - s) / n. With the schedule edm(0.002, 80, 1), whose noise
                 level is linear in time, this is the mapping r = (1 - 1 / n) t of Geng et al. 2024 (arXiv:2406.14548,
                 sec. 3), without its factor for small noise levels. For n = 1, t is the last time and the loss is that
                 of a denoiser, from which training moves to consistency in stages

Consistency tuning is training with `train.start_from` (arXiv:2406.14548).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flowjax.batch import Batch
from flowjax.couplings import INDEPENDENT
from flowjax.errors import ConfigError, lookup
from flowjax.methods.base import Context, Loss
from flowjax.methods.components import Components
from flowjax.methods.consistency_function import (
    ConsistencyMethod,
    ConsistencySettings,
    consistency_function,
    consistency_parts,
)
from flowjax.methods.draw import draw, row_mean_square
from flowjax.methods.errors_of_rows import PseudoHuber, RowLoss
from flowjax.methods.teacher import teacher_velocity
from flowjax.methods.times import Fixed
from flowjax.paths.affine import expand
from flowjax.paths.base import PathSample
from flowjax.ranges import Range
from flowjax.solvers import fixed_grid
from flowjax.solvers.ode import SOLVERS
from flowjax.typing import Batched, Cond, Params, PRNGKey, PyTree

__all__ = ["SPACINGS", "Consistency", "grid", "remaining"]

TARGET = "target"
"""Name of the moving average of the parameters at the later time, if `target_half_life` is not 0."""

PSEUDO_HUBER = PseudoHuber(0.00054)
"""The distance of Song & Dhariwal 2023."""

Pair = tuple[Float[Array, " B"], Float[Array, " B"]]
"""The two times s < t of each row."""


def grid(drawn: Float[Array, " B"], n: Array, low: float, high: float) -> Pair:
    """The ends of the interval that contains the drawn time, of n equal intervals from `low` to `high`.

    Args:
        drawn: the drawn times, (B,).
        n: the number of intervals, a scalar.
        low, high: the smallest and the largest time.

    Returns:
        The start s and the end t of each interval, each (B,).
    """
    i = jnp.clip(jnp.floor((drawn - low) / (high - low) * n), 0, n - 1)
    return low + (high - low) * i / n, jnp.where(i + 1 < n, low + (high - low) * (i + 1) / n, high)


def remaining(drawn: Float[Array, " B"], n: Array, low: float, high: float) -> Pair:
    """The drawn time, and the time after one n-th of the time that remains until `high`.

    Args:
        drawn: the drawn times, (B,).
        n: the number of parts of the remaining time, a scalar. For n = 1 the second time is `high`.
        low: not used.
        high: the largest time.

    Returns:
        The two times s and t, each (B,).
    """
    return drawn, jnp.where(n > 1, drawn + (high - drawn) / n, high)


SPACINGS: dict[str, Callable[[Float[Array, " B"], Array, float, float], Pair]] = {"grid": grid, "remaining": remaining}
"""The values of `method.spacing`: functions of the drawn times, n, and the smallest and the largest time."""


@dataclass(frozen=True)
class Settings(ConsistencySettings):
    """The keys of `config.method`.

    Attributes:
        times: the distribution of the drawn times.
        spacing: the pairs of times: `grid` (consistency training) or `remaining` (consistency tuning).
        first, last: the number n of intervals at the start of training, and the largest number.
        doubling: the number of steps of the optimizer after which n is doubled. `train.steps` divided by
            log2(last / first) + 1 spends as many steps on every n.
        loss: the distance d as a function of the mean square over the coordinates.
        target_half_life: half-life, in samples, of the moving average of the parameters with which f is evaluated at
            the later time; 0 for the parameters themselves.
        solver: the ODE solver of the teacher's step: `euler`, `heun` or another explicit Runge-Kutta method.
    """

    times: str = "log_normal(-1.1, 2.0)"
    spacing: str = "grid"
    first: Annotated[int, Range(1, 2**24)] = 10
    last: Annotated[int, Range(1, 2**24)] = 1280
    doubling: Annotated[int, Range(1, 2_000_000_000)] = 10_000
    loss: str = "pseudo_huber(0.00054)"
    target_half_life: Annotated[float, Range(0, 1e15)] = 0.0
    solver: str = "heun"


@dataclass(frozen=True)
class Consistency(ConsistencyMethod):
    """Discrete consistency training on a Gaussian path.

    Attributes:
        spacing, first, last, doubling, target_half_life, solver: as in `Settings`.
        row_loss: the distance d (`methods.errors_of_rows`).
    """

    spacing: str = "grid"
    first: int = 10
    last: int = 1280
    doubling: int = 10_000
    row_loss: RowLoss = PSEUDO_HUBER
    target_half_life: float = 0.0
    solver: str = "heun"

    Settings: ClassVar[type] = Settings
    comparable_loss: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]] = ("squared_error", "intervals")

    @classmethod
    def from_config(cls, parts: Components) -> "Consistency":
        settings = parts.settings
        lookup("method.spacing", settings.spacing, SPACINGS)
        lookup("method.solver", settings.solver, SOLVERS)
        if settings.first > settings.last:
            raise ConfigError(f"method.first {settings.first} must not be above method.last {settings.last}")
        names = ("spacing", "first", "last", "doubling", "target_half_life", "solver")
        own: dict[str, Any] = {name: getattr(settings, name) for name in names}
        return cls(**consistency_parts(parts, "consistency"), **own, row_loss=parts.row_loss(settings.loss))

    @property
    def targets(self) -> Mapping[str, float]:
        return {TARGET: self.target_half_life} if self.target_half_life else {}

    def intervals(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """The number n of intervals at this step of the optimizer, equation (2)."""
        doublings = jnp.minimum(jnp.asarray(step) // self.doubling, 24)
        return jnp.minimum(self.first * 2.0**doublings, float(self.last))

    def loss(self, params: Params, context: Context, key: PRNGKey, batch: Batch) -> Loss:
        key_draw, key_times = jax.random.split(key)
        drawn, n = self.drawn(key_times, batch.x1.shape[0], self.path, self.interval).t, self.intervals(context.step)
        s, t = SPACINGS[self.spacing](drawn, n, *self.interval)
        p = draw(key_draw, batch, self.path, self.source, INDEPENDENT, self.interval, Fixed(s)).sample
        later = self._later(context, p, t, batch.cond)
        fixed = context.targets.get(TARGET, params)
        target = jax.lax.stop_gradient(self._f(fixed, context, t, later, batch.cond, key)[0])
        value, state = self._f(params, context, s, p.x_t, batch.cond, key)
        rows = row_mean_square(value - target)
        loss = jnp.mean(self._weight(s, t) * self.row_loss(rows))
        return Loss(loss, {"squared_error": jnp.mean(rows), "intervals": n}, state)

    def _f(
        self, params: Params, context: Context, t: Array, x: Batched, cond: Cond, key: PRNGKey
    ) -> tuple[Batched, PyTree]:
        output, state = self.output(params, context, t, x, cond, key)
        return consistency_function(self.path, self.prediction, t, x, output), state

    def _later(self, context: Context, p: PathSample, t: Float[Array, " B"], cond: Cond) -> Batched:
        """The points at time t of the trajectories through p."""
        if self.teacher is None:
            return self.path.sample(None, t, p.x0, p.x1).x_t

        def field(time: Array, x: Batched, cond: Cond) -> Batched:
            return teacher_velocity(self.teacher, context, time.reshape(-1), x, cond, self.guidance)

        return fixed_grid.step(field, p.x_t, cond, expand(p.t, p.x_t), expand(t, p.x_t), SOLVERS[self.solver])

    def _weight(self, s: Float[Array, " B"], t: Float[Array, " B"]) -> Float[Array, " B"]:
        """The denominator of equation (1), inverted; 0 for a row whose two times are the same."""
        schedule = self.path.schedule
        moved = jnp.hypot(schedule.alpha(t) - schedule.alpha(s), schedule.sigma(t) - schedule.sigma(s))
        return jnp.where(moved > 0, 1 / jnp.where(moved > 0, moved, 1.0), 0.0)
