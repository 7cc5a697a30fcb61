"""Time grids: where a sampler of a given number of steps evaluates.

    uniform      even in t
    condot       alpha / (alpha + sigma) even: the noise levels that even times have on CondOT
    edm(rho)     (sigma / alpha)^(1/rho) even (Karras et al. 2022, eq. 5); edm(7, 0.002, 80) are the published levels
    log_snr      even in log-SNR (Lu et al. 2022)
    learned      minimises the distance to a fine solve, by gradient (`learn`)

`edm` and `log_snr` keep sigma / alpha within [1e-3, 1e3], because the logarithm of a vanishing alpha or sigma is
infinite. `condot` needs no such limits. It is the default of the samplers whose steps depend on the noise levels alone:
with it they take the same steps on every schedule, as far as the schedule's noise levels reach.

A grid of N steps has N + 1 times t0 = times[0] < ... < times[N] = t1. A sampler that ends with E[x1 | x] walks over the
first N of them; where the path still has noise at t1 it is given N times that end there instead.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float

from flowjax.abilities import interval_of
from flowjax.keys import RowKeys
from flowjax.schedules import Schedule, clip_time
from flowjax.solvers import samplers
from flowjax.solvers.samplers import Sampler
from flowjax.typing import Batched, Cond

__all__ = ["EDM", "GRIDS", "Grid", "check_times", "condot", "learn", "log_snr", "times_for", "uniform", "without_path"]

_LEAST_RATIO = 1e-3

Grid = Callable[[Schedule, float, float, int], Float[Array, " T"]]
"""(schedule, t0, t1, n) -> n times from t0 to t1."""


def uniform(schedule: Schedule, t0: float, t1: float, n: int) -> Float[Array, " T"]:
    return _pin(jnp.linspace(t0, t1, n), t0, t1)


def condot(schedule: Schedule, t0: float, t1: float, n: int) -> Float[Array, " T"]:
    """Even in alpha / (alpha + sigma), which is t on `CondOT`."""
    ends = jax.nn.sigmoid(0.5 * schedule.log_snr(jnp.array([t0, t1])))
    inside = jnp.linspace(ends[0], ends[1], n)[1:-1]
    times = clip_time(schedule, 2 * (jnp.log(inside) - jnp.log1p(-inside)))
    return jnp.concatenate([jnp.array([t0]), times, jnp.array([t1])])


@dataclass(frozen=True)
class EDM:
    """Even in (sigma / alpha)^(1/rho), from the noise to the data (Karras et al. 2022, eq. 5).

    By default the levels span the whole path, up to ratios of 1e-3 and 1e3, so that nothing is assumed about the scale
    of the data. The paper's levels, between 0.002 and 80, suit data of standard deviation near one: `EDM(7, 0.002, 80)`
    resolves such data with fewer steps, and never resolves data whose standard deviation approaches 80.

    Args:
        rho: larger values take smaller steps near the data.
        lowest, highest: limits of sigma / alpha. The first and the last time are the ends of the solve all the same.
    """

    rho: float | int = 7.0
    lowest: float | int = _LEAST_RATIO
    highest: float | int = 1 / _LEAST_RATIO

    def __post_init__(self):
        if not self.rho > 0:
            raise ValueError(f"edm: rho must be positive, not {self.rho}")
        if not 0 < self.lowest < self.highest < math.inf:
            raise ValueError(f"edm: 0 < lowest < highest is needed, not {self.lowest} and {self.highest}")

    def __call__(self, schedule: Schedule, t0: float, t1: float, n: int) -> Float[Array, " T"]:
        ends = jnp.exp(-0.5 * schedule.log_snr(jnp.array([t0, t1])))
        high, low = jnp.clip(ends, self.lowest, self.highest) ** (1 / self.rho)
        levels = jnp.linspace(high, low, n) ** self.rho
        return _pin(clip_time(schedule, -2 * jnp.log(levels)), t0, t1)


def log_snr(schedule: Schedule, t0: float, t1: float, n: int) -> Float[Array, " T"]:
    """Even in log-SNR."""
    edge = -2 * np.log(_LEAST_RATIO)
    low, high = jnp.clip(schedule.log_snr(jnp.array([t0, t1])), -edge, edge)
    return _pin(clip_time(schedule, jnp.linspace(low, high, n)), t0, t1)


GRIDS: dict[str, Callable[..., Grid]] = {
    "uniform": lambda: uniform,
    "condot": lambda: condot,
    "edm": EDM,
    "log_snr": lambda: log_snr,
}


def _pin(times: Float[Array, " T"], t0: float, t1: float) -> Float[Array, " T"]:
    """The ends exactly, whatever rounding and clipping did to them."""
    return times.at[0].set(t0).at[-1].set(t1)


def times_for(
    sampler: Sampler, steps: int, grid: Grid | None = None, t0: float | None = None, t1: float | None = None
) -> Float[Array, " T"]:
    """The times that a run of `steps` steps walks over, from t0 to t1 (by default all the sampler can take).

    The grid is the sampler's own where None.

    Raises:
        ValueError: if an end lies where the sampler is undefined, the grid is not increasing, or there are too few
            steps.
    """
    low, high = samplers.interval(sampler)
    t0, t1 = low if t0 is None else t0, high if t1 is None else t1
    if steps < 1 + sampler.denoise:
        raise ValueError(f"steps must be at least {1 + sampler.denoise} for this sampler, not {steps}")
    grid = grid or GRIDS[sampler.grid]()
    if sampler.path is None:
        return without_path(grid, t0, t1, steps)
    schedule = sampler.path.schedule
    with jax.ensure_compile_time_eval():
        noisy = sampler.denoise and float(schedule.sigma(t1)) > 0
        times = grid(schedule, t0, t1, steps if noisy else steps + 1)
        times = times[:-1] if sampler.denoise and not noisy else times
        if not isinstance(times, Tracer):
            check_times(sampler, times)
    return times


def without_path(grid: Grid | None, t0: float, t1: float, steps: int) -> Float[Array, " T"]:
    """The grid of a model without a path: even in t.

    Raises:
        ValueError: if another was asked for.
    """
    if grid is not None and grid is not uniform:
        raise ValueError("this model has no path, so its grid is 'uniform', or the times themselves")
    return jnp.linspace(t0, t1, steps + 1)


def check_times(sampler: Sampler, times: Float[Array, " T"] | Float[np.ndarray, " T"]) -> None:
    """Refuses a grid on which the sampler is undefined, before anything is compiled.

    Raises:
        ValueError: naming the time and what vanishes there.
    """
    values = np.asarray(times)
    if values.ndim != 1 or len(values) < 2 or not (np.diff(values) > 0).all():
        raise ValueError(f"times must be a strictly increasing grid of at least two, got {values.tolist()[:8]}")
    if sampler.path is None:
        return
    low, high = sampler.path.t_min, sampler.path.t_max
    if values[0] < low - 1e-6 or values[-1] > high + 1e-6:
        raise ValueError(
            f"times must lie in [{low:.7g}, {high:.7g}], the interval of the path, and run from {values[0]:.7g} to "
            f"{values[-1]:.7g}"
        )
    name = type(sampler).__name__
    schedule = sampler.path.schedule
    with jax.ensure_compile_time_eval():
        alpha, sigma = np.asarray(schedule.alpha(times)), np.asarray(schedule.sigma(times))
        gamma = np.ones_like(alpha) if sampler.path.noise is None else np.asarray(sampler.path.noise.gamma(times))
    checks = [("alpha", alpha, sampler.needs_alpha), ("sigma", sigma, sampler.needs_sigma)]
    if sampler.needs_score and sampler.path.noise is None:
        checks.append(("sigma", sigma, True))
    if sampler.path.noise is not None:
        checks.append(("gamma", gamma, sampler.needs_score))
    g = getattr(sampler, "g", None)
    if g is not None:
        with jax.ensure_compile_time_eval():
            noise = np.asarray(g(sampler.path, times))
        if not np.isfinite(noise).all():
            t = values[~np.isfinite(noise)][0]
            raise ValueError(f"g is infinite at t = {t:.4g}: keep the grid away from it, or take g = sigma(1)")
    for what, value, needed in checks:
        if needed and (value <= 0).any():
            t = values[value <= 0][0]
            raise ValueError(f"{name} is undefined at t = {t:.4g}, where {what} = 0: keep the grid away from it")


def learn(
    sampler: Sampler,
    model: Any,
    x: Batched,
    steps: int,
    *,
    keys: RowKeys | None = None,
    cond: Cond = None,
    t0: float | None = None,
    t1: float | None = None,
    start: Grid | None = None,
    fine: int = 8,
    iterations: int = 150,
    lr: float = 3e-2,
) -> Float[Array, " T"]:
    """Times for a deterministic sampler that bring it closest to its own solve with `fine` times the steps.

    Gradient descent through the scan on the mean squared distance of the ends, over the logarithms of the grid's
    intervals (as in "learning to discretize"; Tong et al. 2025). The best grid seen is returned, so it is never worse
    on `x` than the one it started from.

    Args:
        sampler: deterministic.
        model: of its path.
        x: (B, *event) source samples to learn on; a few hundred.
        steps: as for `times_for`.
        cond: of the model.
        t0, t1: the interval; by default all that the sampler and the model can take.
        start: the grid to start from; the sampler's own where None.
        fine: how much finer the reference is.
        iterations, lr: of Adam.
    """
    if sampler.stochastic:
        raise ValueError("a learned grid needs a deterministic sampler: ends of different noise cannot be compared")
    (low, high), asked = samplers.interval(sampler), interval_of(model)
    low, high = max(low, asked[0]) if t0 is None else t0, min(high, asked[1]) if t1 is None else t1
    first = times_for(sampler, steps, start, low, high)
    target = samplers.run(sampler, model, x, times_for(sampler, fine * steps, start, low, high), keys=keys, cond=cond)
    # the last interval may be the denoising's
    jumps = sampler.denoise and sampler.path is not None and float(sampler.path.schedule.sigma(high)) == 0
    whole = jnp.append(first, high) if jumps else first
    begin, end = whole[0], whole[-1]

    def grid_of(logits: Float[Array, " N"]) -> Float[Array, " T"]:
        inside = begin + (end - begin) * jnp.cumsum(jax.nn.softmax(logits))[:-1]
        return jnp.concatenate([begin[None], inside] if jumps else [begin[None], inside, end[None]])

    def distance(logits: Float[Array, " N"]) -> Float[Array, ""]:
        return jnp.mean((samplers.run(sampler, model, x, grid_of(logits), keys=keys, cond=cond) - target) ** 2)

    optimizer = optax.adam(lr)

    def improve(carry, _):
        logits, state, best, least = carry
        value, slope = jax.value_and_grad(distance)(logits)
        better = value < least
        best, least = jnp.where(better, logits, best), jnp.where(better, value, least)
        slope = jnp.where(jnp.isfinite(slope), slope, 0.0)
        slope = slope / (jnp.linalg.norm(slope) + 1e-12)
        updates, state = optimizer.update(slope, state)
        return (logits + updates, state, best, least), value

    logits = jnp.log(jnp.diff(whole))
    carry = (logits, optimizer.init(logits), logits, jnp.asarray(jnp.inf, target.dtype))
    (_, _, best, _), _ = jax.jit(lambda c: jax.lax.scan(improve, c, None, length=iterations))(carry)
    return grid_of(best)
