"""`sample`: one call for every way from the source to the data.

A name is a sampler of `SAMPLERS`, a Runge-Kutta method or another explicit ODE solver of diffrax on a grid, the same
with adaptive steps, or an SDE solver of diffrax; `g` turns `euler` and `heun` into their stochastic forms.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Key

from flowjax.paths.affine import AffinePath
from flowjax.predictions import Denoiser, defined_on, field
from flowjax.solvers import deterministic, diffusions, exponential, grids, multistep, samplers, sde, stochastic
from flowjax.solvers.diffusions import Diffusion
from flowjax.solvers.grids import Grid
from flowjax.solvers.ode import ADAPTIVE_SOLVERS, MULTISTEP_SOLVERS, SOLVERS, Stats, multistep_nfe, solve_ode
from flowjax.solvers.samplers import Sampler
from flowjax.typing import Batched, Cond, PRNGKey


@dataclass(frozen=True)
class Options:
    """What some samplers can be told; None for a sampler's own default.

    Attributes:
        eta: of `ddim`, between 0 and 1: the share of DDPM's noise.
        churn: of `edm`: S_churn over the number of steps, at most sqrt(2) - 1.
        g: the diffusion of an SDE.
        variance: of `ddpm`: small, large or learned.
    """

    eta: float | None = None
    churn: float | None = None
    g: Diffusion | None = None
    variance: stochastic.Variance | None = None


def _ddim(path: AffinePath, o: Options) -> Sampler:
    return stochastic.Ancestral(path, o.eta) if o.eta else deterministic.DDIM(path)


_g = lambda path, o: o.g or diffusions.default(path)

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
    if name not in known_solvers():
        close = difflib.get_close_matches(name, known_solvers(), n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown solver {name!r}; the nearest is {close!r} (known: {', '.join(known_solvers())})")
    for option, takers in _TAKES.items():
        if getattr(options, option) is not None and name not in takers:
            raise ValueError(f"{name} takes no {option}; it is for {', '.join(takers)}")
    adaptive = name in ADAPTIVE_SOLVERS and options.g is None
    if steps is None and not adaptive:
        raise ValueError(f"{name} has no error estimate, so it cannot adapt its steps: say how many with steps=N")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
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
        samplers.check(stochastic.EulerMaruyama(path))
        return None
    if name in SAMPLERS:
        sampler = SAMPLERS[name](path, options)
        samplers.check(sampler)
        return sampler
    return deterministic.RungeKutta(path, SOLVERS[name]) if name in SOLVERS else None


def interval(name: str, path: AffinePath, options: Options = Options()) -> tuple[float, float]:
    """The times on which that solver can be used on that path."""
    sampler = make_sampler(name, path, options)
    return (path.t_min, path.t_max) if sampler is None else samplers.interval(sampler)


def sample(
    denoiser: Denoiser,
    path: AffinePath,
    x: Batched,
    *,
    solver: str | Sampler = "dopri5",
    steps: int | None = None,
    grid: Grid | Float[Array, " T"] | None = None,
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
        x: (B, *event) at t0, in general from `path.prior(source)`.
        solver: a name (`known_solvers`), or a sampler of your own.
        steps: on the grid; None adapts them, where the solver can.
        grid: of `flowjax.solvers.grids`, or the times themselves; the sampler's own where None.
        key: of a stochastic solver: one key, from which row i takes `fold_in(key, i)`; or (B,) keys, one a row.
        cond: condition, leading axis B, or None.
        t0, t1: the interval; by default all of the path that the solver can take.
        options: what some samplers can be told.
        rtol, atol: of an adaptive solve.
        save: return the states at all times of the grid, on a new leading axis.

    Returns:
        The samples, or with `save` all states; and `Stats`.

    Raises:
        ValueError: before anything is compiled: on an unknown solver, options it does not take, a path that lacks what
            it needs, a grid on which it is undefined, or a stochastic solver without a key.
        RuntimeError: if an adaptive solve does not arrive.
    """
    name = solver.lower() if isinstance(solver, str) else ""
    given = jnp.asarray(grid) if isinstance(grid, jax.Array | np.ndarray) else None
    if given is not None and steps is None:
        steps = len(given) - 1
    if name:
        check_solver(name, steps, options)
        chosen = make_sampler(name, path, options)
    else:
        assert not isinstance(solver, str)
        samplers.check(solver)
        chosen = solver
    if x.ndim == 0 or x.shape[0] == 0:
        raise ValueError("the batch is empty: at least one row is needed")
    low, high = samplers.interval(chosen) if chosen is not None else (path.t_min, path.t_max)
    asked = defined_on(denoiser)
    low, high = max(low, asked[0]), min(high, asked[1])
    t0, t1 = low if t0 is None else t0, high if t1 is None else t1
    if steps is None:
        if save:
            raise ValueError(
                "an adaptive solve has no grid to save on: say how many steps, or use solve_ode(save_at=...)"
            )
        return solve_ode(_Field(denoiser, path), x, cond=cond, t0=t0, t1=t1, solver=name, rtol=rtol, atol=atol)
    keys = _row_keys(key, x) if (chosen is None and name in sde.SDE_SOLVERS) or (chosen and chosen.stochastic) else None
    if chosen is None:
        return _by_diffrax(
            name, denoiser, path, x, steps, grid if given is None else given, keys, cond, t0, t1, options, save
        )
    if given is not None:
        times, count = given, len(given) - 1 + chosen.denoise
        if not isinstance(times, Tracer):
            grids.check_times(chosen, times)
            _check_reading(times, asked)
    else:
        assert grid is None or callable(grid)
        times, count = grids.times_for(chosen, steps, grid, t0, t1), steps
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
        like = stochastic.EulerMaruyama(path)
        times = grid if isinstance(grid, jax.Array) else grids.times_for(like, steps, grid, t0, t1)
        grids.check_times(like, times)
        g = options.g or diffusions.default(path)
        x = sde.solve_sde(denoiser, path, x, times, keys, g=g, name=name, cond=cond)
        return denoiser(times[-1], x, cond).x1, _stats(x, sde.evaluations(name, len(times) - 1) + 1)
    times = grid if isinstance(grid, jax.Array) else (grid or grids.uniform)(path.schedule, t0, t1, steps + 1)
    y = multistep.integrate(_Field(denoiser, path), x, cond, times, MULTISTEP_SOLVERS[name](), save)
    return y, _stats(x, multistep_nfe(name, len(times) - 1))


def _check_reading(times: Array, asked: tuple[float, float]) -> None:
    """Refuses a grid that asks a network where its prediction does not determine the ends."""
    low, high = float(times[0]), float(times[-1])
    if low < asked[0] - 1e-6 or high > asked[1] + 1e-6:
        raise ValueError(
            f"the grid runs from {low:.4g} to {high:.4g}, and the network's prediction determines the ends on "
            f"[{asked[0]:.4g}, {asked[1]:.4g}] alone: keep the grid within"
        )


def _row_keys(key: Any, x: Batched) -> Key[Array, " B"]:
    if key is None:
        raise ValueError("this sampler draws noise: pass key=jax.random.key(seed)")
    return key if key.ndim else jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(x.shape[0]))


def _stats(x: Batched, nfe: int) -> Stats:
    return Stats(jnp.full(x.shape[0], nfe), jnp.ones(x.shape[0], bool))


@dataclass(frozen=True)
class _Field:
    """`predictions.field` as a value: equal for equal parts, so that each compiles once."""

    denoiser: Denoiser
    path: AffinePath

    def __call__(self, t: Any, x: Any, cond: Cond = None) -> Any:
        return field(self.denoiser, self.path)(t, x, cond)
