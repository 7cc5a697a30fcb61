"""The resolution shift of a schedule, which spends more time at high noise for larger images."""

from dataclasses import dataclass

import jax
from jaxtyping import Array, ArrayLike, Float

from flowjax.schedules.base import Schedule, as_time

__all__ = ["Shifted"]


@jax.tree_util.register_static
@dataclass(frozen=True)
class Shifted:
    """A schedule evaluated at the warped time t / (t + shift (1 - t)) (Stable Diffusion 3: Esser et al. 2024,
    arXiv:2403.03206, eq. 23).

    On CondOT this lowers log-SNR by 2 log(shift) at every t. If the side of an image grows by the factor `shift`, the
    noise in the image averaged down to its former resolution is then unchanged. Other schedules get the same warp.

    Attributes:
        base: the schedule to shift.
        shift: the factor, positive; 1 changes nothing, and Stable Diffusion 3 uses 3 at 1024 x 1024 pixels.
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
