"""`solve_ode`: one function for every explicit ODE solver, with fixed or adaptive steps.

The names are diffrax's class names in lower case, and `rk4`. With `steps` the grid is uniform, and a Runge-Kutta method
is one `lax.scan`. Without `steps`, diffrax controls the error of each sample separately.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from flowjax.errors import check_name
from flowjax.precision import at_least_float32
from flowjax.solvers import adaptive, fixed_grid, multistep
from flowjax.solvers.fixed_grid import EULER, RK4, Tableau, tableau_of
from flowjax.typing import Cond, Field, PyTree

__all__ = [
    "ADAPTIVE_SOLVERS",
    "MAX_STEPS",
    "MULTISTEP_SOLVERS",
    "SOLVERS",
    "Stats",
    "check_solver",
    "check_steps",
    "multistep_nfe",
    "solve_ode",
    "times_within",
]

_RUNGE_KUTTA = (
    diffrax.Heun,
    diffrax.Midpoint,
    diffrax.Ralston,
    diffrax.Bosh3,
    diffrax.Tsit5,
    diffrax.Dopri5,
    diffrax.Dopri8,
)
SOLVERS: dict[str, Tableau] = {"euler": EULER, "rk4": RK4} | {s.__name__.lower(): tableau_of(s) for s in _RUNGE_KUTTA}
"""Runge-Kutta methods for fixed steps, by name."""

MULTISTEP_SOLVERS: dict[str, Any] = {
    "leapfrogmidpoint": diffrax.LeapfrogMidpoint,
    "reversibleheun": diffrax.ReversibleHeun,
}
"""Explicit solvers that need more than the last state; with fixed steps they run in diffrax."""

_STEPS_ONLY = ("heun", "midpoint")
ADAPTIVE_SOLVERS: dict[str, Any] = {
    **{s.__name__.lower(): s for s in _RUNGE_KUTTA if s.__name__.lower() not in _STEPS_ONLY},
    "reversibleheun": diffrax.ReversibleHeun,
}
"""Solvers with an error estimate for adaptive steps, by name.

`heun` and `midpoint` have an error estimate too, but need hundreds of evaluations with it. In diffusion models these
names mean a fixed number of steps, so they are only available with `steps`.
"""

MAX_STEPS = 4096
_ROUNDING = 1e-6
"""The distance that a float32 time may lie outside an interval with float64 ends."""


class Stats(NamedTuple):
    """Statistics of a solve.

    Attributes:
        nfe: (B,) the number of evaluations of the field for each sample, rejected steps included.
        converged: (B,) whether each sample reached the end within the step limit; always True with fixed steps.
    """

    nfe: Int[Array, " B"]
    converged: Bool[Array, " B"]


def solve_ode(
    field: Field,
    x: PyTree,
    *,
    cond: Cond = None,
    t0: float | Float[Array, ""] | None = None,
    t1: float | Float[Array, ""] | None = None,
    solver: str = "dopri5",
    rtol: float | Float[Array, ""] = 1e-5,
    atol: float | Float[Array, ""] = 1e-5,
    steps: int | None = None,
    save_at: Float[Array, " T"] | np.ndarray | list[float] | tuple[float, ...] | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
) -> tuple[PyTree, Stats]:
    """Solves dx/dt = field(t, x, cond) from t0 to t1, in either direction.

    Args:
        field: the velocity v(t, x, cond). `t` is a scalar. Pass the same function object again to reuse its
            compilation.
        x: the state at t0: (B, *event), or a pytree of such arrays. Half precision and integers are converted to
            float32.
        cond: the condition, a pytree with leading axis B, or None.
        t0, t1: the start and the end. From 0 to 1 the solve maps the source to the data, from 1 to 0 the data to the
            source. By default the ends of `field.interval`, which the velocity of a model has, or 0 and 1 for a field
            without an interval. With fixed steps the result is NaN if the field is not finite at one of the times.
        solver: a name in `SOLVERS` or `MULTISTEP_SOLVERS` with `steps`, and in `ADAPTIVE_SOLVERS` without.
        rtol, atol: the tolerances of an adaptive solve.
        steps: the number of equal steps; None for adaptive steps.
        save_at: the times at which to return the state, from t0 towards t1; with `steps` they must lie on the grid.
        adjoint: how an adaptive solve is differentiated. None is `diffrax.RecursiveCheckpointAdjoint`, which computes
            the reverse-mode derivative of the numerical solution. `diffrax.BacksolveAdjoint()` solves the adjoint ODE
            backwards; its memory does not grow with the number of steps, and its error is about as large as the
            tolerances. `diffrax.ForwardMode()` allows `jax.jvp`. A solve with fixed steps can be differentiated in
            both modes without an adjoint.

    Returns:
        The state at t1, or with `save_at` the states on a new leading axis (T, B, *event), in the dtype of x but at
        least float32; and `Stats`.

    Raises:
        ValueError: if the solver is unknown or has no error estimate for adaptive steps, `steps` < 1, the batch is
            empty, a time of `save_at` is not on the grid, an adjoint is given with fixed steps, or t0 or t1 lies
            outside the interval of the field.
        RuntimeError: if an adaptive solve does not reach t1. Under `jit` there is no error: see `stats.converged`.
    """
    name = solver.lower()
    check_solver(name, steps)
    if any(leaf.ndim == 0 or leaf.shape[0] == 0 for leaf in jax.tree.leaves(x)):
        raise ValueError("the batch is empty: at least one row is needed")
    t0, t1 = times_within(field, t0, t1)
    x = at_least_float32(x)
    times = None if save_at is None else np.asarray(save_at, float)
    if steps is not None and adjoint is not None:
        raise ValueError("adjoint is for adaptive solves: leave it out, as fixed steps are differentiated directly")
    if steps is not None:
        index = None if times is None else _grid_index(times, t0, t1, steps)
        ys = _fixed(field, x, cond, jnp.asarray(t0, float), jnp.asarray(t1, float), name, steps, index)
        rows = jax.tree.leaves(x)[0].shape[0]
        return ys, Stats(jnp.full(rows, _fixed_nfe(name, steps)), jnp.ones(rows, bool))
    saved = None if times is None else jnp.asarray(times, float)
    start, end, how = jnp.asarray(t0, float), jnp.asarray(t1, float), _Adjoint(adjoint)
    ys, stats = _adaptive(field, x, cond, start, end, saved, name, rtol, atol, how)
    if not isinstance(stats.converged, Tracer) and not bool(stats.converged.all()):
        failed, why = int((~stats.converged).sum()), "increase rtol and atol, or use a fixed number of steps (steps=N)"
        for t in (t0, t1):
            if not all(bool(jnp.isfinite(v).all()) for v in jax.tree.leaves(field(jnp.asarray(t, float), x, cond))):
                why = f"the field is not finite at t = {t}; integrate within the times at which it is defined"
        raise RuntimeError(f"{name} did not reach t = {t1} in {MAX_STEPS} steps for {failed} samples: {why}")
    return ys, stats


def times_within(
    field: Field, t0: float | Float[Array, ""] | None, t1: float | Float[Array, ""] | None
) -> tuple[float | Float[Array, ""], float | Float[Array, ""]]:
    """The start and the end of a solve: t0 and t1, or where they are None the ends of the interval of the field.

    The interval of a field without the attribute `interval` is (0, 1).

    Raises:
        ValueError: if t0 or t1 lies outside the interval that the field has.
    """
    known = getattr(field, "interval", None)
    low, high = known or (0.0, 1.0)
    start, end = low if t0 is None else t0, high if t1 is None else t1
    for name, t in (("t0", start), ("t1", end)):
        if known and not isinstance(t, Tracer) and not low - _ROUNDING <= float(t) <= high + _ROUNDING:
            raise ValueError(
                f"{name} = {float(t):.7g} is outside [{low:.7g}, {high:.7g}], where this field is defined: choose t0 "
                "and t1 in this interval, or leave them out"
            )
    return start, end


def check_solver(name: str, steps: int | None) -> None:
    """Checks that `solve_ode` has this solver for this number of steps (None: adaptive).

    Raises:
        ValueError: if it does not.
    """
    name = name.lower()
    check_name("solver", name, sorted({*SOLVERS, *MULTISTEP_SOLVERS, *ADAPTIVE_SOLVERS}))
    check_steps(name, steps, name in ADAPTIVE_SOLVERS)


def check_steps(name: str, steps: int | None, adaptive: bool) -> None:
    """Checks that a solver has a positive number of steps, or adapts its steps.

    Args:
        name: the name of the solver.
        steps: the number of steps, or None.
        adaptive: whether the solver can adapt its steps.

    Raises:
        ValueError: if it does not.
    """
    if steps is None and name in _STEPS_ONLY:
        raise ValueError(f"{name} needs a fixed number of steps: pass steps=N, or use dopri5, which has adaptive steps")
    if steps is None and not adaptive:
        raise ValueError(f"{name} has no error estimate, so it cannot adapt its steps: pass steps=N")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")


def _grid_index(times: np.ndarray, t0: float | Array, t1: float | Array, steps: int) -> tuple[int, ...]:
    position = (times - float(t0)) / (float(t1) - float(t0)) * steps
    index = np.rint(position)
    if np.any(np.abs(position - index) > 1e-4) or np.any((index < 0) | (index > steps)):
        raise ValueError(f"save_at must lie on the grid of {steps} steps from {t0} to {t1}: {times.tolist()} does not")
    return tuple(int(i) for i in index)


def multistep_nfe(name: str, steps: int) -> int:
    """Evaluations of a solver in `MULTISTEP_SOLVERS`: one per step, and for reversible Heun one more at the start."""
    return steps + (name == "reversibleheun")


def _fixed_nfe(name: str, steps: int) -> int:
    return steps * SOLVERS[name].stages if name in SOLVERS else multistep_nfe(name, steps)


@partial(jax.jit, static_argnames=("field", "name", "steps", "index"))
def _fixed(
    field: Field, x: PyTree, cond: Cond, t0: Array, t1: Array, name: str, steps: int, index: tuple[int, ...] | None
) -> PyTree:
    times = (t0 + (t1 - t0) * jnp.linspace(0.0, 1.0, steps + 1)).at[-1].set(t1)
    if name in SOLVERS:
        ys = fixed_grid.integrate(field, x, cond, times, SOLVERS[name], save=index is not None)
    else:
        ys = multistep.integrate(field, x, cond, times, MULTISTEP_SOLVERS[name](), save=index is not None)
    return ys if index is None else jax.tree.map(lambda y: y[jnp.asarray(index)], ys)


@dataclass(frozen=True, eq=False)
class _Adjoint:
    """An adjoint as a static argument of `jit`. diffrax's adjoints can be compared, but not all have a hash."""

    value: diffrax.AbstractAdjoint | None

    def __hash__(self) -> int:
        return hash(type(self.value))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Adjoint) and type(self.value) is type(other.value) and self.value == other.value


@partial(jax.jit, static_argnames=("field", "name", "adjoint"))
def _adaptive(
    field: Field, x: PyTree, cond: Cond, t0: Array, t1: Array, save_at, name: str, rtol, atol, adjoint: _Adjoint
):
    method = ADAPTIVE_SOLVERS[name]()
    ys, nfe, converged = adaptive.integrate(
        field, x, cond, t0, t1, method, rtol, atol, MAX_STEPS, save_at, adjoint.value
    )
    return ys, Stats(nfe, converged)
