"""Schedules of flow matching: from pure source at t = 0 to pure data at t = 1."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from flowjax.schedules.base import as_time, log_ratio

__all__ = ["CondOT", "Cosine", "Polynomial"]


@jax.tree_util.register_static
@dataclass(frozen=True)
class CondOT:
    """alpha = t, sigma = 1 - t: straight lines at constant speed (Lipman et al. 2023, eq. 20; Liu et al. 2023).

    Args:
        sigma_min: what is left of the source at t = 1, sigma = 1 - (1 - sigma_min) t, as in Lipman et al. 2023; 0 for
            none.
    """

    sigma_min: float | int = 0.0
    t_min: ClassVar[float] = 0.0
    t_max: ClassVar[float] = 1.0

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
    """alpha = sin(pi t / 2), sigma = cos(pi t / 2): alpha^2 + sigma^2 = 1 (Albergo & Vanden-Eijnden 2023, the
    trigonometric interpolant; GVP in Ma et al. 2024). sigma is written as a sine of 1 - t, exact near t = 1."""

    t_min: ClassVar[float] = 0.0
    t_max: ClassVar[float] = 1.0

    def alpha(self, t: ArrayLike) -> Float[Array, "..."]:
        return jnp.sin(jnp.pi / 2 * as_time(t))

    def sigma(self, t: ArrayLike) -> Float[Array, "..."]:
        return jnp.sin(jnp.pi / 2 * (1.0 - as_time(t)))

    def log_snr(self, t: ArrayLike) -> Float[Array, "..."]:
        return log_ratio(self.alpha(t), self.sigma(t))

    def time_of_log_snr(self, log_snr: ArrayLike) -> Float[Array, "..."]:
        half = as_time(log_snr) / 2
        # atan2 of (e^h, 1), scaled by e^-|h| so that neither argument overflows.
        return jnp.arctan2(jnp.exp(jnp.minimum(half, 0.0)), jnp.exp(jnp.minimum(-half, 0.0))) * (2 / jnp.pi)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Polynomial:
    """alpha = t^n, sigma = 1 - t^n (the convex polynomial scheduler of Lipman et al. 2024, table 2).

    For n != 1 the velocity at t = 0 vanishes (n > 1) or is infinite (n < 1), so it does not determine the data there:
    `t_min` is the time at which alpha is 1e-6.

    Args:
        n: the exponent, positive.
    """

    n: float | int
    t_max: ClassVar[float] = 1.0

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
        # expm1 keeps the digits of 1 - t^n near t = 1; below 1/2 the plain form is exact enough and has a derivative
        # at 0.
        late = -jnp.expm1(self.n * jnp.log(jnp.maximum(t, 0.5)))
        return jnp.where(t > 0.5, late, 1.0 - t**self.n)

    def log_snr(self, t: ArrayLike) -> Float[Array, "..."]:
        return log_ratio(self.alpha(t), self.sigma(t))

    def time_of_log_snr(self, log_snr: ArrayLike) -> Float[Array, "..."]:
        return jnp.exp(jax.nn.log_sigmoid(as_time(log_snr) / 2) / self.n)
