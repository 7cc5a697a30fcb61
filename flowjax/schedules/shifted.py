"""Resolution shift: more time at high noise for larger images."""

from dataclasses import dataclass

import jax
from jaxtyping import Array, ArrayLike, Float

from flowjax.schedules.base import Schedule, as_time

__all__ = ["Shifted"]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Shifted:
    """A schedule whose time runs as t / (t + shift (1 - t)) (Esser et al. 2024, SD3, eq. 23).

    On CondOT log-SNR falls by 2 log(shift) at every t, which keeps the noise seen by a coarse view of an image when its
    resolution grows by `shift` along each side. On other schedules it is the same change of time.

    Args:
        base: the schedule.
        shift: positive; 3 in SD3 at 1024 x 1024, 1 changes nothing.
    """

    base: Schedule
    shift: float | int

    def __post_init__(self):
        if not self.shift > 0:
            raise ValueError(f"Shifted: shift must be positive, not {self.shift}")

    def _warp(self, t: ArrayLike) -> Float[Array, "..."]:
        t = as_time(t)
        return t / (t + self.shift * (1 - t))

    def _unwarp(self, u: ArrayLike) -> Float[Array, "..."]:
        u = as_time(u)
        return self.shift * u / (1 + (self.shift - 1) * u)

    @property
    def t_min(self) -> float:
        return float(self._unwarp_float(self.base.t_min))

    @property
    def t_max(self) -> float:
        return float(self._unwarp_float(self.base.t_max))

    def _unwarp_float(self, u: float) -> float:
        return self.shift * u / (1 + (self.shift - 1) * u)

    def alpha(self, t: ArrayLike) -> Float[Array, "..."]:
        return self.base.alpha(self._warp(t))

    def sigma(self, t: ArrayLike) -> Float[Array, "..."]:
        return self.base.sigma(self._warp(t))

    def log_snr(self, t: ArrayLike) -> Float[Array, "..."]:
        return self.base.log_snr(self._warp(t))

    def time_of_log_snr(self, log_snr: ArrayLike) -> Float[Array, "..."]:
        return self._unwarp(self.base.time_of_log_snr(log_snr))
