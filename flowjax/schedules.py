"""Schedules: how much data and how much source there is in a point at time t.

A schedule is the pair (alpha, sigma) of the affine path `x_t = alpha(t) x1 + sigma(t) x0`, with t = 0 the source and
t = 1 the data. Only `alpha` and `sigma` are written down; their derivatives come from `rates`, by forward-mode
differentiation, so a formula exists once. Each is written so that its small end is clean in float32.

The signal-to-noise ratio is `alpha^2 / sigma^2`; `log_snr` and its inverse `time_of_log_snr` are the change of time
that carries one schedule onto another.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float


@runtime_checkable
class Schedule(Protocol):
    """What a path asks of a schedule. Times and values are arrays of any one shape.

    `t_min` and `t_max` bound the interval on which alpha, sigma and both derivatives are finite and the pair
    (velocity, x_t) determines both ends: the default interval of training and solving.
    """

    @property
    def t_min(self) -> float: ...

    @property
    def t_max(self) -> float: ...

    def alpha(self, t: ArrayLike) -> Float[Array, "..."]: ...

    def sigma(self, t: ArrayLike) -> Float[Array, "..."]: ...

    def log_snr(self, t: ArrayLike) -> Float[Array, "..."]: ...

    def time_of_log_snr(self, log_snr: ArrayLike) -> Float[Array, "..."]: ...


class Rates(NamedTuple):
    """Values and time derivatives of a schedule, each of the shape of t."""

    alpha: Float[Array, "..."]
    sigma: Float[Array, "..."]
    dalpha: Float[Array, "..."]
    dsigma: Float[Array, "..."]


def rates(schedule: Schedule, t: ArrayLike) -> Rates:
    """alpha, sigma and their derivatives at t, by `jax.jvp`: no second, hand-written formula."""
    t = _as_time(t)
    one = jnp.ones_like(t)
    alpha, dalpha = jax.jvp(schedule.alpha, (t,), (one,))
    sigma, dsigma = jax.jvp(schedule.sigma, (t,), (one,))
    return Rates(alpha, sigma, dalpha, dsigma)


def _as_time(t: ArrayLike) -> Float[Array, "..."]:
    """t as an array of at least float32: a half-precision time cannot tell 0.999 from 1."""
    t = jnp.asarray(t)
    return t.astype(jnp.promote_types(t.dtype, jnp.float32))


def _log_ratio(alpha: Float[Array, "..."], sigma: Float[Array, "..."]) -> Float[Array, "..."]:
    return 2.0 * (jnp.log(alpha) - jnp.log(sigma))


@jax.tree_util.register_static
@dataclass(frozen=True)
class CondOT:
    """alpha = t, sigma = 1 - t: straight lines at constant speed (Lipman et al. 2023, eq. 20; Liu et al. 2023)."""

    t_min: ClassVar[float] = 0.0
    t_max: ClassVar[float] = 1.0

    def alpha(self, t: ArrayLike) -> Float[Array, "..."]:
        return _as_time(t)

    def sigma(self, t: ArrayLike) -> Float[Array, "..."]:
        return 1.0 - _as_time(t)

    def log_snr(self, t: ArrayLike) -> Float[Array, "..."]:
        return _log_ratio(self.alpha(t), self.sigma(t))

    def time_of_log_snr(self, log_snr: ArrayLike) -> Float[Array, "..."]:
        return jax.nn.sigmoid(_as_time(log_snr) / 2)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Cosine:
    """alpha = sin(pi t / 2), sigma = cos(pi t / 2): alpha^2 + sigma^2 = 1 (Albergo & Vanden-Eijnden 2023, the
    trigonometric interpolant; GVP in Ma et al. 2024). sigma is written as a sine of 1 - t, exact near t = 1."""

    t_min: ClassVar[float] = 0.0
    t_max: ClassVar[float] = 1.0

    def alpha(self, t: ArrayLike) -> Float[Array, "..."]:
        return jnp.sin(jnp.pi / 2 * _as_time(t))

    def sigma(self, t: ArrayLike) -> Float[Array, "..."]:
        return jnp.sin(jnp.pi / 2 * (1.0 - _as_time(t)))

    def log_snr(self, t: ArrayLike) -> Float[Array, "..."]:
        return _log_ratio(self.alpha(t), self.sigma(t))

    def time_of_log_snr(self, log_snr: ArrayLike) -> Float[Array, "..."]:
        half = _as_time(log_snr) / 2
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
        return _as_time(t) ** self.n

    def sigma(self, t: ArrayLike) -> Float[Array, "..."]:
        t = _as_time(t)
        # expm1 keeps the digits of 1 - t^n near t = 1; below 1/2 the plain form is exact enough and has a derivative
        # at 0.
        late = -jnp.expm1(self.n * jnp.log(jnp.maximum(t, 0.5)))
        return jnp.where(t > 0.5, late, 1.0 - t**self.n)

    def log_snr(self, t: ArrayLike) -> Float[Array, "..."]:
        return _log_ratio(self.alpha(t), self.sigma(t))

    def time_of_log_snr(self, log_snr: ArrayLike) -> Float[Array, "..."]:
        return jnp.exp(jax.nn.log_sigmoid(_as_time(log_snr) / 2) / self.n)


@jax.tree_util.register_static
@dataclass(frozen=True)
class VP:
    """The variance-preserving diffusion with linear beta (Song et al. 2021, eq. 32-33), time reversed to t = 1 at the
    data.

    With s = 1 - t and B = s^2 (beta_max - beta_min) / 2 + s beta_min:  alpha = exp(-B / 2), sigma = sqrt(1 - exp(-B)).
    alpha(0) = exp(-B(0)/2) = 0.0066 for the usual 0.1 and 20: the prior N(0, sigma(0)^2 I) is an approximation to p_0.
    sigma has an infinite slope at t = 1, so `t_max` is 1 - 1e-5 (the paper's own epsilon for likelihood).
    """

    beta_min: float | int = 0.1
    beta_max: float | int = 20.0
    t_min: ClassVar[float] = 0.0
    t_max: ClassVar[float] = 1.0 - 1e-5

    def __post_init__(self):
        if not 0 < self.beta_min <= self.beta_max:
            raise ValueError(f"VP: 0 < beta_min <= beta_max is needed, not {self.beta_min} and {self.beta_max}")

    def _integral(self, t: ArrayLike) -> Float[Array, "..."]:
        s = 1.0 - _as_time(t)
        return 0.5 * s**2 * (self.beta_max - self.beta_min) + s * self.beta_min

    def alpha(self, t: ArrayLike) -> Float[Array, "..."]:
        return jnp.exp(-0.5 * self._integral(t))

    def sigma(self, t: ArrayLike) -> Float[Array, "..."]:
        return jnp.sqrt(-jnp.expm1(-self._integral(t)))

    def log_snr(self, t: ArrayLike) -> Float[Array, "..."]:
        return -jnp.log(jnp.expm1(self._integral(t)))

    def time_of_log_snr(self, log_snr: ArrayLike) -> Float[Array, "..."]:
        # alpha^2 = sigmoid(log_snr) gives B = softplus(-log_snr); then the root of the quadratic, without cancellation.
        b = jax.nn.softplus(-_as_time(log_snr))
        slope = self.beta_max - self.beta_min
        return 1.0 - 2 * b / (self.beta_min + jnp.sqrt(self.beta_min**2 + 2 * b * slope))
