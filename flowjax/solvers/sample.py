"""`sample`: one function for every solver that maps the source to the data."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from flowjax.abilities import Bijection, HasToData, interval_of, velocity_of
from flowjax.errors import check_name
from flowjax.keys import RowKeys, row_keys
from flowjax.paths.affine import AffinePath
from flowjax.precision import at_least_float32
from flowjax.schedules import check_monotone
from flowjax.solvers import grids, multistep, names, samplers, sde
from flowjax.solvers.grids import Grid
from flowjax.solvers.names import (
    DEFAULT_OPTIONS,
    PUSH_FORWARD,
    Options,
    check_abilities,
    check_solver,
    make_sampler,
    plain_name,
)
from flowjax.solvers.ode import MULTISTEP_SOLVERS, Stats, multistep_nfe, solve_ode
from flowjax.solvers.samplers import Sampler
from flowjax.typing import Batched, Cond, PRNGKey

__all__ = ["sample"]


def sample(
    model: Any,
    x: Batched,
    *,
    solver: str | Sampler = "dopri5",
    steps: int | None = None,
    grid: Grid | str | Sequence[float] | Float[Array, " T"] | None = None,
    key: PRNGKey | RowKeys | None = None,
    cond: Cond = None,
    t0: float | None = None,
    t1: float | None = None,
    options: Options = DEFAULT_OPTIONS,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    save: bool = False,
) -> tuple[Float[Array, "..."], Stats]:
    """Maps x from the source at t0 to the data at t1.

    Args:
        model: a model with the abilities that the solver needs (`flowjax.abilities`), possibly guided or rescheduled.
            Pass the same object again to reuse its compilation.
        x: (B, *event) source samples at t0, in general from `model.path.prior(source)`. Half precision is converted to
            float32.
        solver: a name (`known_solvers`), a `Sampler` object, or the name of a sampler class outside the library, such
            as `my_package.samplers:Mine`.
        steps: the number of steps; None for adaptive steps, if the solver has them.
        grid: a name in `GRIDS`, a function like those in `flowjax.solvers.grids`, or an array of increasing times; None
            is the default of the sampler.
        key: for a stochastic solver: one key, of which sample i uses `fold_in(key, i)`, or (B,) keys.
        cond: the condition, with leading axis B, or None.
        t0, t1: the ends of the solve; by default the interval on which the model and the solver are defined.
        options: options of single samplers.
        rtol, atol: the tolerances of an adaptive solve.
        save: whether to return the states at all times of the grid, on a new leading axis.

    Returns:
        The samples, or with `save` all states, in the dtype of x but at least float32; and `Stats`.

    Raises:
        ValueError: if the solver is unknown, the model lacks an ability, the solver does not accept one of the options,
            cannot be used on the path or is undefined at a time of the grid, or a stochastic solver has no key. Nothing
            has been compiled then.
        RuntimeError: if an adaptive solve does not reach t1.
    """
    name = plain_name(solver) if isinstance(solver, str) else ""
    path: AffinePath | None = getattr(model, "path", None)
    if path is not None:
        check_monotone(path.schedule)
    rule = _named_grid(grid) if isinstance(grid, str) else grid if callable(grid) else None
    given = None if grid is None or rule is not None else _times(grid)
    if given is not None:
        if steps not in (None, len(given) - 1):
            raise ValueError(f"a grid of {len(given)} times has {len(given) - 1} steps, not {steps}: leave steps out")
        steps = len(given) - 1
    chosen = _choose(solver, name, model, path, steps, options)
    if x.ndim == 0 or x.shape[0] == 0:
        raise ValueError("the batch is empty: at least one row is needed")
    x = at_least_float32(x)
    if name == PUSH_FORWARD:
        if save or grid is not None or t0 is not None or t1 is not None:
            raise ValueError(f"{name} evaluates the model's map once, so it has no grid or times: leave them out")
        return _push_forward(model, x, cond), _stats(x, 1)
    t0, t1 = _span(name, chosen, model, path, options, t0, t1, given)
    if steps is None:
        if save or grid is not None:
            raise ValueError("an adaptive solve chooses its own times, so it has no grid: pass steps=N")
        return solve_ode(velocity_of(model), x, cond=cond, t0=t0, t1=t1, solver=name, rtol=rtol, atol=atol)
    stochastic = name in sde.SDE_SOLVERS if chosen is None else chosen.stochastic
    if stochastic and key is None:
        raise ValueError("this sampler is stochastic and needs a key: pass key=jax.random.key(seed)")
    keys = row_keys(key, x.shape[0]) if stochastic and key is not None else None
    if chosen is None:
        times = rule if given is None else jnp.asarray(given, float)
        return _by_diffrax(name, model, path, x, steps, times, keys, cond, t0, t1, options, save)
    if given is not None:
        times, count = jnp.asarray(given, float), len(given) - 1 + chosen.denoise
        if not isinstance(given, Tracer):
            grids.check_times(chosen, given)
    else:
        times, count = grids.times_for(chosen, steps, rule, t0, t1), steps
    y = samplers.run(chosen, model, x, times, keys=keys, cond=cond, save=save)
    return y, _stats(x, samplers.evaluations(chosen, count))


@partial(jax.jit, static_argnames="model")
def _push_forward(model: Bijection | HasToData, x: Batched, cond: Cond) -> Batched:
    if isinstance(model, Bijection):
        return model.forward(x, cond)[0]
    return model.to_data(interval_of(model)[0], x, cond)


def _by_diffrax(
    name: str,
    model: Any,
    path: AffinePath | None,
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
    if name in sde.SDE_SOLVERS and path is not None:
        if save:
            raise ValueError(f"{name} returns only its last state: save=True needs another sampler")
        like = names.like_diffrax(path, options)
        times = grid if isinstance(grid, jax.Array) else grids.times_for(like, steps, grid, t0, t1)
        grids.check_times(like, times)
        x = sde.solve_sde(model, x, times, keys, g=names.diffusion_of(path, options), name=name, cond=cond)
        return model.ends(times[-1], x, cond).x1, _stats(x, sde.evaluations(name, len(times) - 1) + 1)
    if isinstance(grid, jax.Array):
        times = grid
    elif path is not None:
        times = (grid or grids.uniform)(path.schedule, t0, t1, steps + 1)
    else:
        times = grids.without_path(grid, t0, t1, steps)
    y = multistep.integrate(velocity_of(model), x, cond, times, MULTISTEP_SOLVERS[name](), save)
    return y, _stats(x, multistep_nfe(name, len(times) - 1))


def _times(grid: Any) -> Array | np.ndarray:
    """The times as a NumPy array where their values are known, so that they can be checked under `jit` too."""
    return grid if isinstance(grid, Tracer) else np.asarray(grid, float)


def _named_grid(name: str) -> Grid:
    check_name("grid", name, grids.GRIDS)
    return grids.GRIDS[name]()


def _choose(
    solver: str | Sampler, name: str, model: Any, path: AffinePath | None, steps: int | None, options: Options
) -> Sampler | None:
    """The sampler, after all checks; None for a solver that `samplers.run` does not run."""
    if isinstance(solver, str):
        check_solver(name, steps, options)
        check_abilities(model, name, names.needs_of(name, options))
        return make_sampler(name, path, options)
    check_abilities(model, type(solver).__name__, solver.needs)
    if solver.path is not None and solver.path != path:
        raise ValueError(f"the sampler was made for another path, {solver.path}, and the model has {path}")
    if steps is None:
        raise ValueError(f"{type(solver).__name__} needs a number of steps: pass steps=N")
    samplers.check(solver)
    return solver


def _span(
    name: str,
    chosen: Sampler | None,
    model: Any,
    path: AffinePath | None,
    options: Options,
    t0: float | None,
    t1: float | None,
    given: Array | np.ndarray | None,
) -> tuple[float, float]:
    """The start and the end of the solve.

    Raises:
        ValueError: if the model is undefined at one of them, or the solve would not run forwards.
    """
    known = interval_of(model)
    low, high = names.interval(name, path, options) if chosen is None else samplers.interval(chosen)
    if given is not None and not isinstance(given, Tracer):
        t0, t1 = float(given[0]), float(given[-1])
    start, end = max(low, known[0]) if t0 is None else t0, min(high, known[1]) if t1 is None else t1
    if isinstance(start, Tracer) or isinstance(end, Tracer):
        return start, end
    first, last = known if path is None else (path.t_min, path.t_max)
    if not (first - 1e-6 <= start < end <= last + 1e-6):
        raise ValueError(
            f"the solve must run forwards within [{first:.7g}, {last:.7g}], the interval of the model's path, not from "
            f"{start:.7g} to {end:.7g}"
        )
    if start < known[0] - 1e-6 or end > known[1] + 1e-6:
        raise ValueError(
            f"the solve runs from {start:.4g} to {end:.4g}, but the network's prediction determines the ends only on "
            f"[{known[0]:.4g}, {known[1]:.4g}]: choose t0 and t1 in this interval"
        )
    return start, end


def _stats(x: Batched, nfe: int) -> Stats:
    return Stats(jnp.full(x.shape[0], nfe), jnp.ones(x.shape[0], bool))
