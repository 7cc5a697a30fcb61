"""A change of the schedule at sampling time: a model that was trained on one path is used on another.

At equal log-SNR, the points of two affine paths with the same ends and without additional noise differ only by a scale:

    x / sqrt(alpha^2 + sigma^2)  at  t   equals   x' / sqrt(alpha'^2 + sigma'^2)  at  t' = log_snr'^-1(log_snr(t))

The posterior means of the ends are therefore equal, and every sampler, guide or likelihood of the new path can be used.
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
    """A model on a path with another schedule than the path of the original model.

    It is exact at the times whose log-SNR the path of the model reaches. These are its `interval`, to which
    `flowjax.solvers.sample` restricts a solve by default. At other times the nearest time of the model is used.

    Args:
        model: the original model.
        path: the path on which the model is used. It differs from the path of the model only in its schedule.

    Raises:
        ValueError: if one of the paths has noise.
    """

    model: HasEnds
    path: AffinePath

    def __post_init__(self):
        if self.trained.noise is not None or self.path.noise is not None:
            raise ValueError("a path with noise cannot change its schedule, because gamma would have to change too")

    @property
    def trained(self) -> AffinePath:
        """The path of the original model."""
        return self.model.path

    @property
    def interval(self) -> tuple[float, float]:
        return overlap(self.trained, self.path, interval_of(self.model))

    def ends(self, t: Time, x: Batched, cond: Cond = None) -> Ends:
        time = clip_time(self.trained.schedule, self.path.schedule.log_snr(t))
        return self.model.ends(time, x * (_size(self.trained, time, x) / _size(self.path, t, x)), cond)


def _size(path: AffinePath, t: Time, like: Batched) -> Array:
    """sqrt(alpha^2 + sigma^2) at t, with trailing axes so that it multiplies `like`."""
    r = path.rates(t, like)
    return jnp.sqrt(r.alpha**2 + r.sigma**2)


def overlap(trained: AffinePath, path: AffinePath, interval: tuple[float, float] | None = None) -> tuple[float, float]:
    """The interval of times of `path` whose log-SNR `trained` reaches, on which `Rescheduled` is exact.

    Args:
        trained: the path of the original model.
        path: the path on which the model is used.
        interval: the times at which the original model can be evaluated; None for all times of `trained`.
    """
    low, high = interval or (trained.t_min, trained.t_max)
    low, high = max(low, trained.t_min), min(high, trained.t_max)
    with jax.ensure_compile_time_eval():
        ends = []
        for t, unbounded in ((low, path.t_min), (high, path.t_max)):
            level = float(trained.schedule.log_snr(t))
            ends.append(unbounded if math.isinf(level) else float(path.schedule.time_of_log_snr(level)))
    return max(path.t_min, min(ends[0], path.t_max)), min(path.t_max, max(ends[1], path.t_min))
