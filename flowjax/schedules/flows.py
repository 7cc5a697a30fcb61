"""Schedules of flow matching: x_t is the source x0 at t = 0 and the data x1, or close to it, at t = 1."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from flowjax.schedules.base import as_time, log_ratio

__all__ = ["CondOT", "Cosine", "Polynomial"]


@jax.tree_util.register_static
@dataclass(frozen=True)
class CondOT:
    """alpha = t and sigma = 1 - (1 - sigma_min) t: straight lines at constant speed.

    (Lipman et al. 2023, arXiv:2210.02747, eq. 20; for sigma_min = 0 rectified flow, Liu et al. 2023, arXiv:2209.03003.)

    Attributes:
        sigma_min: sigma at t = 1, in [0, 1).
    """

    sigma_min: float | int = 0.0
    t_min = 0.0
    t_max = 1.0

    def __post_init__(self):
        if not 0 <= self.sigma_min < 1:
            raise ValueError(f"CondOT: sigma_min must be in [0, 1), not {self.sigma_min}")

    def alpha(self, t: ArrayLike) -> Float[Array, "..."]:
        return as_time(t)

    def sigma(self, t: ArrayLike) -> Float[Array, "..."]:
        return 1.0 - (1.0 - self.sigma_min) * as_time(t)

    def log_snr(self, t: ArrayLike) -> Float[Array, "..."]:
        return log_ratio(self.alpha(t), self.sigma(t))

    def time_of_log_snr(self, log_snr: ArrayLike) -> Float[Array, "..."]:
        u = jax.nn.sigmoid(as_time(log_snr) / 2)
        return u / (1.0 - self.sigma_min * u)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Cosine:
    """alpha = sin(pi t / 2) and sigma = cos(pi t / 2), so that alpha^2 + sigma^2 = 1.

    This is the trigonometric interpolant of Albergo & Vanden-Eijnden 2023 (arXiv:2209.15571), called GVP by Ma et al.
    2024 (arXiv:2401.08740). sigma is computed as sin(pi (1 - t) / 2), which is accurate near t = 1.
    """

    t_min = 0.0
    t_max = 1.0

    def alpha(self, t: ArrayLike) -> Float[Array, "..."]:
        return jnp.sin(jnp.pi / 2 * as_time(t))

    def sigma(self, t: ArrayLike) -> Float[Array, "..."]:
        return jnp.sin(jnp.pi / 2 * (1.0 - as_time(t)))

    def log_snr(self, t: ArrayLike) -> Float[Array, "..."]:
        return log_ratio(self.alpha(t), self.sigma(t))

    def time_of_log_snr(self, log_snr: ArrayLike) -> Float[Array, "..."]:
        half = as_time(log_snr) / 2
        # atan2(e^h, 1), with both arguments scaled so that neither overflows.
        return jnp.arctan2(jnp.exp(jnp.minimum(half, 0.0)), jnp.exp(jnp.minimum(-half, 0.0))) * (2 / jnp.pi)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Polynomial:
    """alpha = t^n and sigma = 1 - t^n (Lipman et al. 2024, arXiv:2412.06264, table 2).

    At t = 0 the velocity is zero for n > 1 and infinite for n < 1, so it does not determine the data. For n != 1,
    `t_min` is therefore the time at which alpha is 1e-6.

    Attributes:
        n: the exponent, positive.
    """

    n: float | int
    t_max = 1.0

    def __post_init__(self):
        if not self.n > 0:
            raise ValueError(f"Polynomial(n): n must be positive, not {self.n}")

    @property
    def t_min(self) -> float:
        return 0.0 if self.n == 1 else 1e-6 ** (1 / self.n)

    def alpha(self, t: ArrayLike) -> Float[Array, "..."]:
        return as_time(t) ** self.n

    def sigma(self, t: ArrayLike) -> Float[Array, "..."]:
        t = as_time(t)
        # expm1 avoids cancellation in 1 - t^n near t = 1. Below 1/2 the plain form is accurate, and unlike the
        # logarithm it has a derivative at 0.
        late = -jnp.expm1(self.n * jnp.log(jnp.maximum(t, 0.5)))
        return jnp.where(t > 0.5, late, 1.0 - t**self.n)

    def log_snr(self, t: ArrayLike) -> Float[Array, "..."]:
        return log_ratio(self.alpha(t), self.sigma(t))

    def time_of_log_snr(self, log_snr: ArrayLike) -> Float[Array, "..."]:
        return jnp.exp(jax.nn.log_sigmoid(as_time(log_snr) / 2) / self.n)
