"""Time grids: the times at which a sampler with a given number of steps evaluates the model.

    uniform      uniform in t
    condot       uniform in alpha / (alpha + sigma): the noise levels of uniform times on CondOT
    edm(rho)     uniform in (sigma / alpha)^(1/rho) (Karras et al. 2022, eq. 5); the published levels are
                 edm(7, 0.002, 80)
    log_snr      uniform in log-SNR (Lu et al. 2022)
    learned      optimised by gradient descent to be close to a solve with more steps (`learn`)

`edm` and `log_snr` clip sigma / alpha to [1e-3, 1e3], because the logarithm is infinite where alpha or sigma is zero.
`condot` does not need this. It is the default of the samplers whose steps depend only on the noise levels: with it they
take the same steps on every schedule, as far as the noise levels of the schedule reach.

A grid of N steps has N + 1 times t0 = times[0] < ... < times[N] = t1. A sampler that ends with the denoising E[x1 | x]
uses the first N of them. If the path still has noise at t1, it uses a grid of N times that ends at t1 instead. A single
step of such a sampler is the denoising at t0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
"""(schedule, t0, t1, n) -> (n,) increasing times from t0 to t1."""


def uniform(schedule: Schedule, t0: float, t1: float, n: int) -> Float[Array, " T"]:
    """A grid that is uniform in t."""
    return _pin(jnp.linspace(t0, t1, n), t0, t1)


def condot(schedule: Schedule, t0: float, t1: float, n: int) -> Float[Array, " T"]:
    """A grid that is uniform in alpha / (alpha + sigma), which is t on `CondOT`."""
    ends = jax.nn.sigmoid(0.5 * schedule.log_snr(jnp.array([t0, t1])))
    inside = jnp.linspace(ends[0], ends[1], n)[1:-1]
    times = clip_time(schedule, 2 * (jnp.log(inside) - jnp.log1p(-inside)))
    return jnp.concatenate([jnp.array([t0]), times, jnp.array([t1])])


@dataclass(frozen=True)
class EDM:
    """A grid that is uniform in (sigma / alpha)^(1/rho) (Karras et al. 2022, arXiv 2206.00364, eq. 5).

    By default the noise levels span the whole path, up to ratios of 1e-3 and 1e3, so that the grid does not depend on
    the scale of the data. The paper's levels, `EDM(7, 0.002, 80)`, are meant for data with a standard deviation near
    one. They need fewer steps for such data, but cannot resolve data whose standard deviation is near 80.

    Args:
        rho: larger values give smaller steps near the data.
        lowest, highest: the limits of sigma / alpha for all times but the first and the last, which are t0 and t1.

    Raises:
        ValueError: if rho is not positive, or unless 0 < lowest < highest.
    """

    rho: float | int = 7.0
    lowest: float | int = _LEAST_RATIO
    highest: float | int = 1 / _LEAST_RATIO

    def __post_init__(self):
        if not self.rho > 0:
            raise ValueError(f"edm: rho must be positive, not {self.rho}")
        if not 0 < self.lowest < self.highest < math.inf:
            raise ValueError(
                f"edm: lowest and highest must satisfy 0 < lowest < highest, not {self.lowest}, {self.highest}"
            )

    def __call__(self, schedule: Schedule, t0: float, t1: float, n: int) -> Float[Array, " T"]:
        ends = jnp.exp(-0.5 * schedule.log_snr(jnp.array([t0, t1])))
        high, low = jnp.clip(ends, self.lowest, self.highest) ** (1 / self.rho)
        levels = jnp.linspace(high, low, n) ** self.rho
        return _pin(clip_time(schedule, -2 * jnp.log(levels)), t0, t1)


def log_snr(schedule: Schedule, t0: float, t1: float, n: int) -> Float[Array, " T"]:
    """A grid that is uniform in log-SNR (Lu et al. 2022)."""
    edge = -2 * np.log(_LEAST_RATIO)
    low, high = jnp.clip(schedule.log_snr(jnp.array([t0, t1])), -edge, edge)
    return _pin(clip_time(schedule, jnp.linspace(low, high, n)), t0, t1)


GRIDS: dict[str, Callable[..., Grid]] = {
    "uniform": lambda: uniform,
    "condot": lambda: condot,
    "edm": EDM,
    "log_snr": lambda: log_snr,
}
"""Functions that make a grid from its arguments, by name."""


def _pin(times: Float[Array, " T"], t0: float, t1: float) -> Float[Array, " T"]:
    """The times with the ends set to t0 and t1, which rounding and clipping may have changed."""
    return times.at[0].set(t0).at[-1].set(t1)


def times_for(
    sampler: Sampler, steps: int, grid: Grid | None = None, t0: float | None = None, t1: float | None = None
) -> Float[Array, " T"]:
    """The times at which a sampler evaluates the model in a solve of `steps` steps.

    Args:
        sampler: the sampler that uses the grid.
        steps: the number of steps, the denoising included.
        grid: the grid; None is the default of the sampler.
        t0, t1: the ends of the solve; by default the interval on which the sampler is defined.

    Returns:
        (T,) times: `steps` + 1 of them, or `steps` for a sampler that ends with the denoising.

    Raises:
        ValueError: if the sampler is undefined at one of the times, the times are not increasing, or there are too few
            steps.
    """
    low, high = samplers.interval(sampler)
    t0, t1 = low if t0 is None else t0, high if t1 is None else t1
    if steps < 1 or (steps == 1 and sampler.denoise and sampler.stochastic):
        why = " for a sampler with noise, whose last step is the denoising; ddim takes a single step"
        raise ValueError(f"steps must be at least {f'2{why}' if steps == 1 else '1'}, not {steps}")
    grid = grid or GRIDS[sampler.grid]()
    if sampler.path is None:
        return without_path(grid, t0, t1, steps)
    schedule = sampler.path.schedule
    with jax.ensure_compile_time_eval():
        noisy = sampler.denoise and steps > 1 and float(schedule.sigma(t1)) > 0
        times = grid(schedule, t0, t1, steps if noisy else steps + 1)
        times = times[:-1] if sampler.denoise and not noisy else times
        if not isinstance(times, Tracer):
            check_times(sampler, times)
    return times


def without_path(grid: Grid | None, t0: float, t1: float, steps: int) -> Float[Array, " T"]:
    """The grid of a model without a path, which is uniform in t.

    Raises:
        ValueError: if `grid` is another grid.
    """
    if grid is not None and grid is not uniform:
        raise ValueError("this model has no path, so its grid must be 'uniform' or an array of times")
    return jnp.linspace(t0, t1, steps + 1)


def check_times(sampler: Sampler, times: Float[Array, " T"] | Float[np.ndarray, " T"]) -> None:
    """Checks, before anything is compiled, that the sampler is defined at these times.

    Raises:
        ValueError: if it is not; the message names the first such time and the coefficient that is zero there.
    """
    values = np.asarray(times)
    least = 1 if sampler.denoise and not sampler.stochastic else 2
    if values.ndim != 1 or len(values) < least or not (np.diff(values) > 0).all():
        raise ValueError(f"times must be a strictly increasing grid of at least {least}, got {values.tolist()[:8]}")
    if sampler.path is None:
        return
    low, high = sampler.path.t_min, sampler.path.t_max
    if values[0] < low - 1e-6 or values[-1] > high + 1e-6:
        raise ValueError(
            f"times must lie in [{low:.7g}, {high:.7g}], the interval of the path, and these go from {values[0]:.7g} "
            f"to {values[-1]:.7g}"
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
            raise ValueError(f"g is infinite at t = {t:.4g}: leave this time out of the grid, or use g = sigma(1)")
    for what, value, needed in checks:
        if needed and (value <= 0).any():
            t = values[value <= 0][0]
            raise ValueError(f"{name} is undefined at t = {t:.4g}, where {what} = 0: leave this time out of the grid")


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
    """Learns the times for which a deterministic sampler is closest to its own solve with `fine` times as many steps.

    Adam minimises the mean squared distance between the final states over the logarithms of the grid's intervals (as in
    "learning to discretize"; Tong et al. 2025). The best grid of all iterations is returned, so on `x` it is at least
    as good as the grid that the search started from.

    Args:
        sampler: a deterministic sampler.
        model: a model on the path of the sampler.
        x: (B, *event) source samples; a few hundred are enough.
        steps: the number of steps, the denoising included.
        keys: (B,) keys, passed to the sampler.
        cond: the condition, with leading axis B, or None.
        t0, t1: the ends of the solve; by default the interval on which the sampler and the model are defined.
        start: the grid to start from; None is the default of the sampler.
        fine: the number of steps of the reference divided by `steps`.
        iterations: the number of steps of Adam.
        lr: the learning rate of Adam.

    Returns:
        (T,) times, as many as `times_for` returns.

    Raises:
        ValueError: if the sampler is stochastic.
    """
    if sampler.stochastic:
        raise ValueError(
            "a learned grid needs a deterministic sampler, because samples with different noise cannot be compared"
        )
    (low, high), known = samplers.interval(sampler), interval_of(model)
    low, high = max(low, known[0]) if t0 is None else t0, min(high, known[1]) if t1 is None else t1
    import optax  # only this function needs it

    first = times_for(sampler, steps, start, low, high)
    if steps == 1:
        return first  # there is nothing to choose
    target = samplers.run(sampler, model, x, times_for(sampler, fine * steps, start, low, high), keys=keys, cond=cond)
    # The denoising replaces a step over the last interval, so this interval is learned too.
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
