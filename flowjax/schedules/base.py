"""What a schedule is, its derivatives, its inverse and its checks."""

import math
from functools import lru_cache
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float

__all__ = [
    "Rates",
    "Schedule",
    "as_time",
    "bisect_log_snr",
    "check_monotone",
    "clip_time",
    "log_ratio",
    "log_snr_range",
    "log_snr_slope",
    "rates",
]

_CHECK_POINTS = 257
_CHECK_FRACTIONS = sorted({p / q for q in range(2, 13) for p in range(1, q)})
"""Where a formula is likely to change its form: 1/2, 1/3, 2/3, 1/4, ..."""
_CHECK_ACCURACY = 1e-3
_BISECTIONS = 40


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
    t = as_time(t)
    one = jnp.ones_like(t)
    alpha, dalpha = jax.jvp(schedule.alpha, (t,), (one,))
    sigma, dsigma = jax.jvp(schedule.sigma, (t,), (one,))
    return Rates(alpha, sigma, dalpha, dsigma)


def log_snr_slope(schedule: Schedule, t: ArrayLike) -> Float[Array, "..."]:
    """d(log SNR)/dt, by forward-mode differentiation."""
    t = as_time(t)
    return jax.jvp(schedule.log_snr, (t,), (jnp.ones_like(t),))[1]


def as_time(t: ArrayLike) -> Float[Array, "..."]:
    """t as an array of at least float32: a half-precision time cannot tell 0.999 from 1."""
    t = jnp.asarray(t)
    return t.astype(jnp.promote_types(t.dtype, jnp.float32))


def log_ratio(alpha: Float[Array, "..."], sigma: Float[Array, "..."]) -> Float[Array, "..."]:
    return 2.0 * (jnp.log(alpha) - jnp.log(sigma))


def bisect_log_snr(schedule: Schedule, log_snr: ArrayLike) -> Float[Array, "..."]:
    """The inverse of `schedule.log_snr` on [t_min, t_max] by bisection, for schedules without a closed form.

    The answer is within (t_max - t_min) 2^-40 or float precision; values out of range give the nearer end.
    """
    target = as_time(log_snr)
    low = jnp.full_like(target, schedule.t_min)
    high = jnp.full_like(target, schedule.t_max)

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        later = schedule.log_snr(middle) < target
        return jnp.where(later, middle, low), jnp.where(later, high, middle)

    low, high = lax.fori_loop(0, _BISECTIONS, halve, (low, high))
    return 0.5 * (low + high)


def log_snr_range(schedule: Schedule) -> tuple[float, float]:
    """log-SNR at t_min and at t_max; infinite where alpha or sigma vanish there."""
    with jax.ensure_compile_time_eval():
        return float(schedule.log_snr(schedule.t_min)), float(schedule.log_snr(schedule.t_max))


def check_monotone(schedule: Schedule) -> None:
    """Refuses a schedule whose signal-to-noise ratio does not grow, or whose derivatives are wrong.

    The derivatives of alpha, sigma and log-SNR by automatic differentiation are compared with finite differences in
    float64, on a grid of [t_min, t_max] that includes simple fractions of it. They differ where a formula is joined of
    pieces: `jnp.abs` and `jnp.sign`, for example, have derivative 0 at 0. A schedule that passes is not checked again.

    Raises:
        ValueError: naming the time at which log-SNR falls or is not a number, or at which a derivative is wrong.
    """
    try:
        _check(schedule)
    except TypeError:  # a schedule that cannot be hashed is checked each time
        _check.__wrapped__(schedule)


@lru_cache(256)
def _check(schedule: Schedule) -> None:
    times = np.linspace(schedule.t_min, schedule.t_max, _CHECK_POINTS)
    with jax.ensure_compile_time_eval():
        values = np.asarray(schedule.log_snr(jnp.asarray(times, float)))
    wrong = np.isnan(values[1:]) | (values[1:] <= values[:-1])
    if wrong.any():
        t = times[1:][wrong][0]
        raise ValueError(
            f"{schedule} is not monotone: its log-SNR does not grow at t = {t:.3g}; alpha must rise against sigma from "
            "t_min to t_max"
        )
    low, span, fractions = schedule.t_min, schedule.t_max - schedule.t_min, np.asarray(_CHECK_FRACTIONS)
    times = np.unique(np.concatenate([times, low + span * fractions, fractions]))
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        for name in ("alpha", "sigma", "log_snr"):
            _check_derivative(schedule, name, times)


def _check_derivative(schedule: Schedule, name: str, times: Float[np.ndarray, " T"]) -> None:
    """Whether the derivative lies between the differences to either side, up to their errors.

    With steps h = eps^(1/3) of the interval these are the rounding of the values, a few eps |f| / h, and the third
    derivative's h^2 / 6 |f'''|, which is below a thousandth of the slope for all that changes over more than a
    thousandth of the interval. The second derivative moves the two differences to either side of the slope.
    """
    f = getattr(schedule, name)
    eps = jnp.finfo(jax.eval_shape(f, jnp.asarray(times)).dtype).eps
    h = (schedule.t_max - schedule.t_min) * float(eps) ** (1 / 3)
    t = jnp.asarray(times[(times >= schedule.t_min + h) & (times <= schedule.t_max - h)])
    evaluate = jax.jit(lambda t: (*jax.jvp(f, (t,), (jnp.ones_like(t),)), f(t - h), f(t + h)))  # one small program
    middle, slope, before, after = (np.asarray(a, np.float64) for a in evaluate(t))
    left, right = (middle - before) / h, (after - middle) / h
    rounding = 8 * float(eps) * np.maximum(np.abs(before), np.abs(after)) / h
    error = rounding + _CHECK_ACCURACY * np.maximum(np.abs(left), np.abs(right))
    right_slope = (slope >= np.minimum(left, right) - error) & (slope <= np.maximum(left, right) + error)
    if not right_slope.all():
        i = int(np.argmin(right_slope))
        raise ValueError(
            f"{schedule}: the derivative of {name} at t = {float(t[i]):.4g} is {slope[i]:.4g} by jax.jvp and "
            f"{(left[i] + right[i]) / 2:.4g} by finite differences, so velocities would be wrong there; write {name} "
            "with jnp.where instead of jnp.sign, jnp.abs, jnp.minimum or jnp.maximum"
        )


def clip_time(schedule: Schedule, log_snr: ArrayLike) -> Float[Array, "..."]:
    """The time of that log-SNR, or the nearer end of [t_min, t_max] where the schedule does not reach it."""
    low, high = log_snr_range(schedule)
    inside = jnp.clip(as_time(log_snr), low if math.isfinite(low) else None, high if math.isfinite(high) else None)
    return jnp.clip(schedule.time_of_log_snr(inside), schedule.t_min, schedule.t_max)
