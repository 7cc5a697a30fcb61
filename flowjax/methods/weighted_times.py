"""Distributions of the training times with importance weights, which change the variance of the loss alone.

    importance           a learned density                               Nichol & Dhariwal 2021, arXiv:2102.09672, 3.3
    uniform_log_snr      log SNR uniform                                 Song et al. 2021, arXiv:2101.09258

The weight of a time is the uniform density divided by its density. Only flow matching uses weights, so that other
methods refuse these distributions (`times.plain_times`).

`importance` uses a profile u, the logarithm of the loss on equal bins of the interval. The profile is trained together
with the network by the loss  L / e^u + u, which has its minimum at u = log E[L | t]. The profile is a parameter, so it
also contributes to the global norm by which gradients are clipped.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.methods.times import Drawn, Interval, Profile, shifted_grid
from flowjax.paths.affine import AffinePath
from flowjax.predictions import well_conditioned
from flowjax.schedules import clip_time
from flowjax.schedules.base import log_snr_slope
from flowjax.typing import PRNGKey

__all__ = ["BINS", "Importance", "UniformLogSNR", "at"]

BINS = 32
"""The number of bins of a learned profile of the loss."""


@dataclass(frozen=True)
class Importance:
    """A density proportional to the learned profile of the loss, mixed with the uniform density.

    The times have importance weights, so that the expected loss does not change. If the relative standard deviation of
    the loss L is the same at all t, then the density proportional to E[L | t] gives the least variance.

    Attributes:
        even: weight of the uniform density in the mixture, in (0, 1].
    """

    even: float | int = 0.1
    weighted: ClassVar[bool] = True
    needs_profile: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 < self.even <= 1:
            raise ValueError(f"importance: even must be in (0, 1], not {self.even}")

    def __call__(
        self, key: PRNGKey, n: int, path: AffinePath, interval: Interval, profile: Profile | None = None
    ) -> Drawn:
        if profile is None:
            raise ValueError("importance needs a learned profile of the loss")
        key_bin, key_position = jax.random.split(key)
        density = (1 - self.even) * jax.nn.softmax(jax.lax.stop_gradient(profile)) + self.even / profile.size
        k = jax.random.categorical(key_bin, jnp.log(density), shape=(n,))
        u = (k + jax.random.uniform(key_position, (n,))) / profile.size
        return Drawn(interval[0] + (interval[1] - interval[0]) * u, 1 / (profile.size * density[k]))


@dataclass(frozen=True)
class UniformLogSNR:
    """Times whose log-SNR is uniform, with importance weights.

    Their density is proportional to d(log SNR)/dt, and so to the weight `likelihood` of the squared error of the noise.
    With this weight, the weighted error of every time is then the plain error of the noise times one constant, which
    has much less variance: the importance sampling of Song et al. 2021 (arXiv:2101.09258) for likelihood weighting.
    Times at which alpha or sigma is less than a thousandth of the other are left out, that is those at which the
    absolute value of log SNR = 2 log(alpha / sigma) is above 2 log 1000 = 13.8. The expected loss is that of uniform
    times on the rest of the interval.

    Attributes:
        stratified: whether to transform a stratified batch of uniform numbers instead of independent ones.
    """

    stratified: bool = False
    weighted: ClassVar[bool] = True

    def __post_init__(self):
        if not isinstance(self.stratified, bool):
            raise ValueError(f"uniform_log_snr: stratified must be True or False, not {self.stratified!r}")

    def __call__(
        self, key: PRNGKey, n: int, path: AffinePath, interval: Interval, profile: Profile | None = None
    ) -> Drawn:
        allowed = well_conditioned(path, alpha=True, sigma=True)
        low, high = max(interval[0], allowed[0]), min(interval[1], allowed[1])
        first, last = path.schedule.log_snr(low), path.schedule.log_snr(high)
        u = shifted_grid(key, n) if self.stratified else jax.random.uniform(key, (n,))
        t = jnp.clip(clip_time(path.schedule, first + (last - first) * u), low, high)
        return Drawn(t, (last - first) / ((high - low) * log_snr_slope(path.schedule, t)))


def at(profile: Profile, t: Float[Array, " B"], interval: Interval) -> Float[Array, " B"]:
    """Returns the value of the profile in the bin of each time, (B,)."""
    position = (t - interval[0]) / (interval[1] - interval[0]) * profile.size
    return profile[jnp.clip(position.astype(int), 0, profile.size - 1)]
