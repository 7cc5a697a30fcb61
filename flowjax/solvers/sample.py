"""`sample`: one call for every way from the source to the data.

A name is a sampler of `SAMPLERS`, a Runge-Kutta method or another explicit ODE solver of diffrax on a grid, the same
with adaptive steps, or an SDE solver of diffrax; `g` turns `euler` and `heun` into their stochastic forms.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Key

from flowjax.paths.affine import AffinePath
from flowjax.paths.transition import Variance
from flowjax.precision import at_least_float32
from flowjax.predictions import Denoiser, defined_on, field
from flowjax.schedules import check_monotone
from flowjax.solvers import deterministic, diffusions, exponential, grids, multistep, samplers, sde, stochastic
from flowjax.solvers.diffusions import Diffusion
from flowjax.solvers.grids import Grid
from flowjax.solvers.ode import (
    ADAPTIVE_SOLVERS,
    MULTISTEP_SOLVERS,
    SOLVERS,
    Stats,
    check_name,
    check_steps,
    multistep_nfe,
    solve_ode,
)
from flowjax.solvers.samplers import Sampler
from flowjax.typing import Batched, Cond, PRNGKey


@dataclass(frozen=True)
class Options:
    """What some samplers can be told; None for a sampler's own default.

    Attributes:
        eta: of `ddim`, between 0 and 1: the share of DDPM's noise.
        churn: of `edm`: S_churn over the number of steps, at most sqrt(2) - 1.
        g: the diffusion of an SDE: one of `flowjax.solvers.diffusions`, a function (path, t) -> g^2, or a number.
        variance: of `ddpm`: small, large or learned.
    """

    eta: float | None = None
    churn: float | None = None
    g: Diffusion | float | int | None = None
    variance: Variance | None = None

    @property
    def diffusion(self) -> Diffusion | None:
        return diffusions.Constant(self.g) if isinstance(self.g, int | float) else self.g


def _ddim(path: AffinePath, o: Options) -> Sampler:
    return stochastic.Ancestral(path, o.eta) if o.eta else deterministic.DDIM(path)


_g = lambda path, o: o.diffusion or diffusions.default(path)

SAMPLERS: dict[str, Callable[[AffinePath, Options], Sampler]] = {
    "ab2": lambda path, o: deterministic.AdamsBashforth(path),
    "ddim": _ddim,
    "ddpm": lambda path, o: stochastic.Ancestral(path, variance=o.variance or "small"),
    "edm": lambda path, o: deterministic.EDMHeun(path, o.churn or 0.0),
    "dpmpp_2m": lambda path, o: exponential.DPMSolverPP2M(path),
    "dpmpp_3m": lambda path, o: exponential.DPMSolverPP3M(path),
    "dpmpp_sde": lambda path, o: exponential.DPMSolverPP2M(path, sde=True),
    "unipc": lambda path, o: exponential.UniPC(path),
    "euler_maruyama": lambda path, o: stochastic.EulerMaruyama(path, _g(path, o)),
    "stochastic_heun": lambda path, o: stochastic.StochasticHeun(path, _g(path, o)),
    "pc": lambda path, o: stochastic.PredictorCorrector(path, _g(path, o)),
    "langevin": lambda path, o: stochastic.AnnealedLangevin(path),
}
"""Samplers by name."""

_STOCHASTIC_FORM = {"euler": "euler_maruyama", "heun": "stochastic_heun"}
_TAKES = {
    "eta": ("ddim",),
    "churn": ("edm",),
    "variance": ("ddpm",),
    "g": ("euler", "heun", "euler_maruyama", "stochastic_heun", "pc", *sde.SDE_SOLVERS),
}


def known_solvers() -> list[str]:
    return sorted({*SAMPLERS, *SOLVERS, *MULTISTEP_SOLVERS, *ADAPTIVE_SOLVERS, *sde.SDE_SOLVERS})


def check_solver(name: str, steps: int | None, options: Options = Options()) -> None:
    """ValueError, in one line, unless `sample` knows this solver and it takes these steps (None: adaptive) and
    options.
    """
    name = name.lower()
    check_name(name, known_solvers())
    for option, takers in _TAKES.items():
        if getattr(options, option) is not None and name not in takers:
            raise ValueError(f"{name} takes no {option}; it is for {', '.join(takers)}")
    check_steps(name, steps, name in ADAPTIVE_SOLVERS and options.g is None)
    if options.eta is not None and not 0 <= options.eta <= 1:
        raise ValueError(f"eta must be between 0 (DDIM) and 1 (DDPM), not {options.eta}")


def make_sampler(name: str, path: AffinePath, options: Options = Options()) -> Sampler | None:
    """The sampler of that name on a path; None for an SDE solver of diffrax and for diffrax's multistep ODE solvers.

    Raises:
        ValueError: if the path cannot give it what it needs.
    """
    name = name.lower()
    if options.g is not None:
        name = _STOCHASTIC_FORM.get(name, name)
    if name in sde.SDE_SOLVERS:
        samplers.check(_like_diffrax(path, options))
        return None
    if name in SAMPLERS:
        sampler = SAMPLERS[name](path, options)
        samplers.check(sampler)
        return sampler
    return deterministic.RungeKutta(path, SOLVERS[name]) if name in SOLVERS else None


def interval(name: str, path: AffinePath, options: Options = Options()) -> tuple[float, float]:
    """The times on which that solver can be used on that path."""
    sampler = make_sampler(name, path, options)
    if name.lower() in sde.SDE_SOLVERS:
        sampler = _like_diffrax(path, options)
    return (path.t_min, path.t_max) if sampler is None else samplers.interval(sampler)


def _like_diffrax(path: AffinePath, options: Options) -> Sampler:
    """What asks of a path and a grid what diffrax's SDE solvers do."""
    return stochastic.EulerMaruyama(path, _g(path, options))


def sample(
    denoiser: Denoiser,
    path: AffinePath,
    x: Batched,
    *,
    solver: str | Sampler = "dopri5",
    steps: int | None = None,
    grid: Grid | str | Sequence[float] | Float[Array, " T"] | None = None,
    key: PRNGKey | Key[Array, " B"] | None = None,
    cond: Cond = None,
    t0: float | None = None,
    t1: float | None = None,
    options: Options = Options(),
    rtol: float = 1e-5,
    atol: float = 1e-5,
    save: bool = False,
) -> tuple[Float[Array, "..."], Stats]:
    """Carries x from the source to the data.

    Args:
        denoiser: of `path`, possibly guided or rescheduled; the same object reuses its compilation.
        path: its path.
        x: (B, *event) at t0, in general from `path.prior(source)`; half precision is converted to float32 here, and
            stays so.
        solver: a name (`known_solvers`), or a sampler of your own.
        steps: on the grid; None adapts them, where the solver can.
        grid: a name in `GRIDS`, a function like those of `flowjax.solvers.grids`, or the times themselves; where None
            the sampler's own.
        key: of a stochastic solver: one key, from which row i takes `fold_in(key, i)`; or (B,) keys, one a row.
        cond: condition, leading axis B, or None.
        t0, t1: the interval; by default all of the path that the solver can take.
        options: what some samplers can be told.
        rtol, atol: of an adaptive solve.
        save: return the states at all times of the grid, on a new leading axis.

    Returns:
        The samples, or with `save` all states, in the dtype of x but at least float32; and `Stats`.

    Raises:
        ValueError: before anything is compiled: on an unknown solver, options it does not take, a path that lacks what
            it needs, a grid on which it is undefined, or a stochastic solver without a key.
        RuntimeError: if an adaptive solve does not arrive.
    """
    name = solver.lower() if isinstance(solver, str) else ""
    if not callable(denoiser):
        raise ValueError(
            f"a denoiser is called as denoiser(t, x, cond): pass, say, oracle.denoiser, not {type(denoiser)}"
        )
    check_monotone(path.schedule)
    rule = _named_grid(grid) if isinstance(grid, str) else grid if callable(grid) else None
    given = None if grid is None or rule is not None else _times(grid)
    if given is not None:
        if steps not in (None, len(given) - 1):
            raise ValueError(f"a grid of {len(given)} times is {len(given) - 1} steps, not {steps}: leave steps out")
        steps = len(given) - 1
    chosen = _choose(solver, name, path, steps, options)
    if x.ndim == 0 or x.shape[0] == 0:
        raise ValueError("the batch is empty: at least one row is needed")
    x = at_least_float32(x)
    t0, t1 = _ends(name, chosen, denoiser, path, options, t0, t1, given)
    if steps is None:
        if save or grid is not None:
            raise ValueError("an adaptive solve chooses its own times, so it has no grid: say how many steps")
        return solve_ode(field(denoiser, path), x, cond=cond, t0=t0, t1=t1, solver=name, rtol=rtol, atol=atol)
    draws = name in sde.SDE_SOLVERS if chosen is None else chosen.stochastic
    if draws and key is None:
        raise ValueError("this sampler draws noise: pass key=jax.random.key(seed)")
    keys = samplers.row_keys(key, x.shape[0]) if draws and key is not None else None
    if chosen is None:
        times = rule if given is None else jnp.asarray(given, float)
        return _by_diffrax(name, denoiser, path, x, steps, times, keys, cond, t0, t1, options, save)
    if given is not None:
        times, count = jnp.asarray(given, float), len(given) - 1 + chosen.denoise
        if not isinstance(given, Tracer):
            grids.check_times(chosen, given)
    else:
        times, count = grids.times_for(chosen, steps, rule, t0, t1), steps
    y = samplers.run(chosen, denoiser, x, times, keys=keys, cond=cond, save=save)
    return y, _stats(x, samplers.evaluations(chosen, count))


def _by_diffrax(
    name: str,
    denoiser: Denoiser,
    path: AffinePath,
    x: Batched,
    steps: int,
    grid: Any,
    keys: Any,
    cond: Cond,
    t0: float,
    t1: float,
    options: Options,
    save: bool,
) -> tuple[Float[Array, "..."], Stats]:
    """diffrax's multistep ODE solvers and its SDE solvers, on a grid."""
    if name in sde.SDE_SOLVERS:
        if save:
            raise ValueError(f"{name} returns its last state alone: save=True needs another sampler")
        like = _like_diffrax(path, options)
        times = grid if isinstance(grid, jax.Array) else grids.times_for(like, steps, grid, t0, t1)
        grids.check_times(like, times)
        x = sde.solve_sde(denoiser, path, x, times, keys, g=_g(path, options), name=name, cond=cond)
        return denoiser(times[-1], x, cond).x1, _stats(x, sde.evaluations(name, len(times) - 1) + 1)
    times = grid if isinstance(grid, jax.Array) else (grid or grids.uniform)(path.schedule, t0, t1, steps + 1)
    y = multistep.integrate(field(denoiser, path), x, cond, times, MULTISTEP_SOLVERS[name](), save)
    return y, _stats(x, multistep_nfe(name, len(times) - 1))


def _times(grid: Any) -> Array | np.ndarray:
    """Times that were given, in NumPy wherever they are known: inside `jit` they would otherwise not be."""
    return grid if isinstance(grid, Tracer) else np.asarray(grid, float)


def _named_grid(name: str) -> Grid:
    if name not in grids.GRIDS:
        raise ValueError(f"unknown grid {name!r}: known are {', '.join(grids.GRIDS)}")
    return grids.GRIDS[name]()


def _choose(solver: str | Sampler, name: str, path: AffinePath, steps: int | None, options: Options) -> Sampler | None:
    """The sampler that was meant, checked; None for diffrax's own solvers."""
    if isinstance(solver, str):
        check_solver(name, steps, options)
        return make_sampler(name, path, options)
    if solver.path != path:
        raise ValueError(f"the sampler is of another path, {solver.path}, than {path}")
    if steps is None:
        raise ValueError(f"{type(solver).__name__} takes a number of steps: say how many with steps=N")
    samplers.check(solver)
    return solver


def _ends(
    name: str,
    chosen: Sampler | None,
    denoiser: Denoiser,
    path: AffinePath,
    options: Options,
    t0: float | None,
    t1: float | None,
    given: Array | np.ndarray | None,
) -> tuple[float, float]:
    """Where the solve runs from and to; refuses times at which the network's prediction does not determine the ends."""
    asked = defined_on(denoiser)
    low, high = interval(name, path, options) if chosen is None else samplers.interval(chosen)
    if given is not None and not isinstance(given, Tracer):
        t0, t1 = float(given[0]), float(given[-1])
    start, end = max(low, asked[0]) if t0 is None else t0, min(high, asked[1]) if t1 is None else t1
    if isinstance(start, Tracer) or isinstance(end, Tracer):
        return start, end
    first, last = path.t_min, path.t_max
    if not (first - 1e-6 <= start < end <= last + 1e-6):
        raise ValueError(
            f"the solve must run forwards within [{first:.7g}, {last:.7g}], the interval of its path, not from "
            f"{start:.7g} to {end:.7g}"
        )
    if start < asked[0] - 1e-6 or end > asked[1] + 1e-6:
        raise ValueError(
            f"the solve runs from {start:.4g} to {end:.4g}, and the network's prediction determines the ends on "
            f"[{asked[0]:.4g}, {asked[1]:.4g}] alone: keep it within"
        )
    return start, end


def _stats(x: Batched, nfe: int) -> Stats:
    return Stats(jnp.full(x.shape[0], nfe), jnp.ones(x.shape[0], bool))
