"""Another schedule at sampling time: a model trained on one path, used on another.

At equal log-SNR the points of two noiseless affine paths with the same ends differ by a scale alone:

    x / sqrt(alpha^2 + sigma^2)  at  t   equals   x' / sqrt(alpha'^2 + sigma'^2)  at  t' = log_snr'^-1(log_snr(t))

so the posterior means of the ends are the same, and every sampler, guide or likelihood of the new path applies.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from flowjax.abilities import Ends, HasEnds, interval_of
from flowjax.paths.affine import AffinePath
from flowjax.predictions import PathModel
from flowjax.schedules import clip_time
from flowjax.typing import Array, Batched, Cond, Time

__all__ = ["Rescheduled", "overlap"]


@dataclass(frozen=True)
class Rescheduled(PathModel):
    """A model of one path used on another, which differs in its schedule alone.

    At equal log-SNR the points of the two paths are equal up to a scale, so the posterior means are the same. Exact
    where the path of the model reaches that log-SNR (its `interval`, which `flowjax.solvers.sample` keeps to); beyond
    it the nearest time is used.

    Args:
        model: on its own path.
        path: to use it on.

    Raises:
        ValueError: for a path with noise.
    """

    model: HasEnds
    path: AffinePath

    def __post_init__(self):
        if self.trained.noise is not None or self.path.noise is not None:
            raise ValueError("a path with noise cannot change its schedule: gamma would have to follow")

    @property
    def trained(self) -> AffinePath:
        """The path of the model."""
        return self.model.path

    @property
    def interval(self) -> tuple[float, float]:
        return overlap(self.trained, self.path, interval_of(self.model))

    def ends(self, t: Time, x: Batched, cond: Cond = None) -> Ends:
        time = clip_time(self.trained.schedule, self.path.schedule.log_snr(t))
        return self.model.ends(time, x * (_size(self.trained, time, x) / _size(self.path, t, x)), cond)


def _size(path: AffinePath, t: Time, like: Batched) -> Array:
    """sqrt(alpha^2 + sigma^2) at t, shaped to multiply `like`."""
    r = path.rates(t, like)
    return jnp.sqrt(r.alpha**2 + r.sigma**2)


def overlap(trained: AffinePath, path: AffinePath, interval: tuple[float, float] | None = None) -> tuple[float, float]:
    """The times of `path` whose log-SNR `trained` reaches: where `Rescheduled` is exact.

    Args:
        trained, path: the path of the model, and the one it is used on.
        interval: the times at which the model can be asked; all of `trained` where None.
    """
    low, high = interval or (trained.t_min, trained.t_max)
    low, high = max(low, trained.t_min), min(high, trained.t_max)
    with jax.ensure_compile_time_eval():
        ends = []
        for t, unbounded in ((low, path.t_min), (high, path.t_max)):
            level = float(trained.schedule.log_snr(t))
            ends.append(unbounded if math.isinf(level) else float(path.schedule.time_of_log_snr(level)))
    return max(path.t_min, min(ends[0], path.t_max)), min(path.t_max, max(ends[1], path.t_min))
