"""The interface of schedules, with functions that differentiate, invert and check them."""

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
"""Times at which a piecewise formula is likely to have its joints: 1/2, 1/3, 2/3, 1/4, ..."""
_CHECK_ACCURACY = 1e-3
_BISECTIONS = 40


@runtime_checkable
class Schedule(Protocol):
    """The coefficients of an affine path. All methods are elementwise and accept arrays of any shape.

    `t_min` and `t_max` are the default interval of training and solving. On it, alpha, sigma and their derivatives are
    finite, and the velocity and x_t together determine x0 and x1.
    """

    @property
    def t_min(self) -> float:
        """The first time at which the schedule is well conditioned."""
        ...

    @property
    def t_max(self) -> float:
        """The last time at which the schedule is well conditioned."""
        ...

    def alpha(self, t: ArrayLike) -> Float[Array, "..."]:
        """The coefficient of the data x1."""
        ...

    def sigma(self, t: ArrayLike) -> Float[Array, "..."]:
        """The coefficient of the source x0."""
        ...

    def log_snr(self, t: ArrayLike) -> Float[Array, "..."]:
        """log(alpha^2 / sigma^2), strictly increasing in t."""
        ...

    def time_of_log_snr(self, log_snr: ArrayLike) -> Float[Array, "..."]:
        """The inverse of `log_snr`."""
        ...


class Rates(NamedTuple):
    """Values and time derivatives of a schedule, each with the shape of t.

    Attributes:
        alpha, sigma: the coefficients.
        dalpha, dsigma: their derivatives with respect to t.
    """

    alpha: Float[Array, "..."]
    sigma: Float[Array, "..."]
    dalpha: Float[Array, "..."]
    dsigma: Float[Array, "..."]


def rates(schedule: Schedule, t: ArrayLike) -> Rates:
    """alpha, sigma and their time derivatives at t, computed by `jax.jvp`."""
    t = as_time(t)
    one = jnp.ones_like(t)
    alpha, dalpha = jax.jvp(schedule.alpha, (t,), (one,))
    sigma, dsigma = jax.jvp(schedule.sigma, (t,), (one,))
    return Rates(alpha, sigma, dalpha, dsigma)


def log_snr_slope(schedule: Schedule, t: ArrayLike) -> Float[Array, "..."]:
    """The time derivative of the log-SNR, by forward-mode differentiation."""
    t = as_time(t)
    return jax.jvp(schedule.log_snr, (t,), (jnp.ones_like(t),))[1]


def as_time(t: ArrayLike) -> Float[Array, "..."]:
    """t as an array of at least float32, because half precision does not resolve times near 1."""
    t = jnp.asarray(t)
    return t.astype(jnp.promote_types(t.dtype, jnp.float32))


def log_ratio(alpha: Float[Array, "..."], sigma: Float[Array, "..."]) -> Float[Array, "..."]:
    return 2.0 * (jnp.log(alpha) - jnp.log(sigma))


def bisect_log_snr(schedule: Schedule, log_snr: ArrayLike) -> Float[Array, "..."]:
    """The inverse of `schedule.log_snr` on [t_min, t_max] by bisection, for schedules without a closed form.

    Args:
        schedule: the schedule.
        log_snr: values of any shape; those that the schedule does not reach give the nearer end of the interval.

    Returns:
        Times with the shape of log_snr, exact to (t_max - t_min) 2^-40 or to the precision of the dtype.
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
    """The log-SNR at t_min and at t_max; it is infinite if alpha or sigma vanishes there."""
    with jax.ensure_compile_time_eval():
        return float(schedule.log_snr(schedule.t_min)), float(schedule.log_snr(schedule.t_max))


def check_monotone(schedule: Schedule) -> None:
    """Checks that the log-SNR of a schedule increases with t and that its derivatives are right.

    The derivatives of alpha, sigma and log-SNR by automatic differentiation are compared with finite differences in
    float64, on a grid of [t_min, t_max] that includes simple fractions. They may differ at the joints of a piecewise
    formula; `jnp.abs` and `jnp.sign`, for example, have derivative 0 at 0. Results are cached for hashable schedules.

    Raises:
        ValueError: if log-SNR decreases or is NaN, or a derivative is wrong; the message contains the time.
    """
    try:
        _check(schedule)
    except TypeError:  # the schedule is not hashable, so its result cannot be cached
        _check.__wrapped__(schedule)


@lru_cache(256)
def _check(schedule: Schedule) -> None:
    times = np.linspace(schedule.t_min, schedule.t_max, _CHECK_POINTS)
    with jax.ensure_compile_time_eval():
        values = np.asarray(jax.jit(lambda t: schedule.log_snr(t))(times.astype(np.float32)))
    wrong = np.isnan(values[1:]) | (values[1:] <= values[:-1])
    if wrong.any():
        t = times[1:][wrong][0]
        raise ValueError(
            f"{schedule} is not monotone: its log-SNR does not increase at t = {t:.3g}; alpha / sigma must increase "
            "from t_min to t_max"
        )
    low, span, fractions = schedule.t_min, schedule.t_max - schedule.t_min, np.asarray(_CHECK_FRACTIONS)
    times = np.unique(np.concatenate([times, low + span * fractions, fractions]))
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        _check_derivatives(schedule, times)


def _check_derivatives(schedule: Schedule, times: Float[np.ndarray, " T"]) -> None:
    """Checks that each derivative lies between the backward and the forward difference, up to their errors.

    The step h is eps^(1/3) times the length of the interval. The errors are rounding, a few eps |f| / h, and the
    third-order term h^2 / 6 |f'''|, which is below a thousandth of the slope for functions that vary on scales above a
    thousandth of the interval. The second-order term has opposite signs in the two differences.
    """
    functions = {name: getattr(schedule, name) for name in ("alpha", "sigma", "log_snr")}
    eps = {name: float(jnp.finfo(jax.eval_shape(f, times).dtype).eps) for name, f in functions.items()}
    step = {name: (schedule.t_max - schedule.t_min) * eps[name] ** (1 / 3) for name in functions}
    inner = {name: times[(times >= schedule.t_min + h) & (times <= schedule.t_max - h)] for name, h in step.items()}

    @jax.jit
    def evaluate(inner: dict[str, Array]) -> dict[str, tuple[Array, ...]]:
        found = {}
        for name, f in functions.items():
            t, h = inner[name], step[name]
            found[name] = (*jax.jvp(f, (t,), (jnp.ones_like(t),)), f(t - h), f(t + h))
        return found

    found = evaluate(inner)
    for name, t in inner.items():
        h = step[name]
        middle, slope, before, after = (np.asarray(a, np.float64) for a in found[name])
        left, right = (middle - before) / h, (after - middle) / h
        rounding = 8 * eps[name] * np.maximum(np.abs(before), np.abs(after)) / h
        error = rounding + _CHECK_ACCURACY * np.maximum(np.abs(left), np.abs(right))
        right_slope = (slope >= np.minimum(left, right) - error) & (slope <= np.maximum(left, right) + error)
        if not right_slope.all():
            i = int(np.argmin(right_slope))
            raise ValueError(
                f"{schedule}: the derivative of {name} at t = {t[i]:.4g} is {slope[i]:.4g} by jax.jvp and "
                f"{(left[i] + right[i]) / 2:.4g} by finite differences, so velocities would be wrong there; write "
                f"{name} with jnp.where instead of jnp.sign, jnp.abs, jnp.minimum or jnp.maximum"
            )


def clip_time(schedule: Schedule, log_snr: ArrayLike) -> Float[Array, "..."]:
    """The time at which the schedule has the given log-SNR, clipped to [t_min, t_max]."""
    low, high = log_snr_range(schedule)
    inside = jnp.clip(as_time(log_snr), low if math.isfinite(low) else None, high if math.isfinite(high) else None)
    return jnp.clip(schedule.time_of_log_snr(inside), schedule.t_min, schedule.t_max)
