"""Schedules of diffusion models. Time is reversed with respect to the papers, so that t = 1 is the data.

    VP      alpha = exp(-B/2)    sigma = sqrt(1 - exp(-B))          Song et al. 2021, eq. 32-33
    sub-VP  alpha = exp(-B/2)    sigma = 1 - exp(-B)                ibid., eq. 35
    VE      alpha = 1            sigma = s_max (s_min / s_max)^t    ibid., eq. 30-31
    EDM     alpha = 1            sigma^(1/rho) linear in t          Karras et al. 2022, eq. 5

with s = 1 - t and B(s) = s^2 (beta_max - beta_min) / 2 + s beta_min (Song et al. 2021, arXiv:2011.13456; Karras et al.
2022, arXiv:2206.00364).
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from flowjax.schedules.base import as_time, log_ratio

__all__ = ["EDM", "VE", "VP", "SubVP"]


def _integral(t: ArrayLike, beta_min: float | int, beta_max: float | int) -> Float[Array, "..."]:
    """B, the integral of beta from the data at t = 1 to time t."""
    s = 1.0 - as_time(t)
    return 0.5 * s**2 * (beta_max - beta_min) + s * beta_min


def _time_of_integral(b: Float[Array, "..."], beta_min: float | int, beta_max: float | int) -> Float[Array, "..."]:
    """The inverse of `_integral`: the root of a quadratic, computed without cancellation."""
    slope = beta_max - beta_min
    return 1.0 - 2 * b / (beta_min + jnp.sqrt(beta_min**2 + 2 * b * slope))


def _check_betas(name: str, beta_min: float | int, beta_max: float | int) -> None:
    if not 0 < beta_min <= beta_max:
        raise ValueError(f"{name}: betas must be 0 < beta_min <= beta_max, not {beta_min} and {beta_max}")


def _check_sigmas(name: str, s_min: float | int, s_max: float | int) -> None:
    if not 0 < s_min < s_max:
        raise ValueError(f"{name}: sigmas must be 0 < sigma_min < sigma_max, not {s_min} and {s_max}")


@jax.tree_util.register_static
@dataclass(frozen=True)
class VP:
    """The variance-preserving diffusion with linear beta (Song et al. 2021, arXiv:2011.13456, eq. 32-33).

    alpha = exp(-B / 2) and sigma = sqrt(1 - exp(-B)) with B = s^2 (beta_max - beta_min) / 2 + s beta_min and s = 1 - t.
    The prior N(0, sigma(0)^2 I) is an approximation to p_0, because alpha(0) = 0.0066 for the default betas. The
    derivative of sigma is infinite at t = 1, so `t_max` is 1 - 1e-5, the paper's epsilon for likelihoods.

    Attributes:
        beta_min, beta_max: the rate beta at the data and at the noise, 0 < beta_min <= beta_max.
    """

    beta_min: float | int = 0.1
    beta_max: float | int = 20.0
    t_min = 0.0
    t_max = 1.0 - 1e-5

    def __post_init__(self):
        _check_betas("VP", self.beta_min, self.beta_max)

    def _integral(self, t: ArrayLike) -> Float[Array, "..."]:
        return _integral(t, self.beta_min, self.beta_max)

    def alpha(self, t: ArrayLike) -> Float[Array, "..."]:
        return jnp.exp(-0.5 * self._integral(t))

    def sigma(self, t: ArrayLike) -> Float[Array, "..."]:
        return jnp.sqrt(-jnp.expm1(-self._integral(t)))

    def log_snr(self, t: ArrayLike) -> Float[Array, "..."]:
        return -jnp.log(jnp.expm1(self._integral(t)))

    def time_of_log_snr(self, log_snr: ArrayLike) -> Float[Array, "..."]:
        # alpha^2 = sigmoid(log_snr) gives B = softplus(-log_snr).
        return _time_of_integral(jax.nn.softplus(-as_time(log_snr)), self.beta_min, self.beta_max)


@jax.tree_util.register_static
@dataclass(frozen=True)
class SubVP:
    """The sub-VP diffusion (Song et al. 2021, arXiv:2011.13456, eq. 35): alpha of VP, and sigma of VP squared.

    sigma vanishes smoothly at t = 1; `t_max` is 1 - 1e-5 as for VP. alpha(0) = 0.0066 for the default betas.

    Attributes:
        beta_min, beta_max: the rate beta at the data and at the noise, 0 < beta_min <= beta_max.
    """

    beta_min: float | int = 0.1
    beta_max: float | int = 20.0
    t_min = 0.0
    t_max = 1.0 - 1e-5

    def __post_init__(self):
        _check_betas("SubVP", self.beta_min, self.beta_max)

    def alpha(self, t: ArrayLike) -> Float[Array, "..."]:
        return jnp.exp(-0.5 * _integral(t, self.beta_min, self.beta_max))

    def sigma(self, t: ArrayLike) -> Float[Array, "..."]:
        return -jnp.expm1(-_integral(t, self.beta_min, self.beta_max))

    def log_snr(self, t: ArrayLike) -> Float[Array, "..."]:
        return log_ratio(self.alpha(t), self.sigma(t))

    def time_of_log_snr(self, log_snr: ArrayLike) -> Float[Array, "..."]:
        # r = alpha / (1 - alpha^2) is a quadratic equation in alpha. Its root is computed as alpha where r < 1 and as
        # 1 - alpha elsewhere, which avoids cancellation.
        r = jnp.exp(jnp.clip(as_time(log_snr) / 2, -40.0, 40.0))
        q = jnp.sqrt(1 + 4 * r**2)
        below_one = (1 + 1 / (2 * r + q)) / (1 + q)
        log_alpha = jnp.where(r < 1, jnp.log(2 * r) - jnp.log1p(q), jnp.log1p(-jnp.minimum(below_one, 0.99)))
        return _time_of_integral(-2 * log_alpha, self.beta_min, self.beta_max)


@jax.tree_util.register_static
@dataclass(frozen=True)
class VE:
    """The variance-exploding diffusion (Song et al. 2021, arXiv:2011.13456, eq. 30-31): alpha = 1, geometric sigma.

    The prior N(0, sigma_max^2 I) is an approximation to p_0, because x_0 still contains the data. It is good if
    sigma_max is well above the distances between data points.

    Attributes:
        sigma_min, sigma_max: sigma at the data and at the noise, 0 < sigma_min < sigma_max.
    """

    sigma_min: float | int = 0.01
    sigma_max: float | int = 50.0
    t_min = 0.0
    t_max = 1.0

    def __post_init__(self):
        _check_sigmas("VE", self.sigma_min, self.sigma_max)

    def alpha(self, t: ArrayLike) -> Float[Array, "..."]:
        return jnp.ones_like(as_time(t))

    def sigma(self, t: ArrayLike) -> Float[Array, "..."]:
        return jnp.exp(-0.5 * self.log_snr(t))

    def log_snr(self, t: ArrayLike) -> Float[Array, "..."]:
        return -2 * (math.log(self.sigma_max) + as_time(t) * math.log(self.sigma_min / self.sigma_max))

    def time_of_log_snr(self, log_snr: ArrayLike) -> Float[Array, "..."]:
        return (-0.5 * as_time(log_snr) - math.log(self.sigma_max)) / math.log(self.sigma_min / self.sigma_max)


@jax.tree_util.register_static
@dataclass(frozen=True)
class EDM:
    """alpha = 1 and sigma^(1/rho) linear in t (Karras et al. 2022, arXiv:2206.00364, eq. 5).

    Equal steps in t are EDM's sampling grid. (In the paper this formula defines the grid, not the schedule.) The prior
    N(0, sigma_max^2 I) is an approximation to p_0, as for VE.

    Attributes:
        sigma_min, sigma_max: sigma at the data and at the noise, 0 < sigma_min < sigma_max.
        rho: the exponent, positive; larger values put more steps at low noise.
    """

    sigma_min: float | int = 0.002
    sigma_max: float | int = 80.0
    rho: float | int = 7.0
    t_min = 0.0
    t_max = 1.0

    def __post_init__(self):
        _check_sigmas("EDM", self.sigma_min, self.sigma_max)
        if not self.rho > 0:
            raise ValueError(f"EDM: rho must be positive, not {self.rho}")

    @property
    def _roots(self) -> tuple[float, float]:
        return self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)

    def alpha(self, t: ArrayLike) -> Float[Array, "..."]:
        return jnp.ones_like(as_time(t))

    def sigma(self, t: ArrayLike) -> Float[Array, "..."]:
        high, low = self._roots
        t = as_time(t)
        return ((1 - t) * high + t * low) ** self.rho

    def log_snr(self, t: ArrayLike) -> Float[Array, "..."]:
        return -2 * jnp.log(self.sigma(t))

    def time_of_log_snr(self, log_snr: ArrayLike) -> Float[Array, "..."]:
        high, low = self._roots
        root = jnp.exp(-0.5 * as_time(log_snr) / self.rho)
        return (high - root) / (high - low)
