"""The explicit diffrax solvers that are not Runge-Kutta methods, on a fixed grid: one diffrax solve for the batch."""

from typing import Any

import diffrax
import jax
from jaxtyping import Array, Float

from flowjax.abilities import space_of
from flowjax.solvers.controllers import StepTo
from flowjax.solvers.fixed_grid import IN_ANY_SPACE
from flowjax.spaces import check_euclidean
from flowjax.typing import Cond, Field, PyTree

__all__ = ["integrate"]


def integrate(
    field: Field, x: PyTree, cond: Cond, times: Float[Array, " T"], solver: diffrax.AbstractSolver, save: bool = False
) -> PyTree:
    """Like `fixed_grid.integrate`, for a diffrax solver that steps to each of `times` (`controllers.StepTo`).

    Raises:
        ValueError: if the space of the field is not Euclidean.
    """
    check_euclidean(type(solver).__name__, space_of(field), IN_ANY_SPACE)

    def v(t: Any, y: PyTree, args: Cond) -> PyTree:
        return jax.tree.map(lambda y, dy: dy.astype(y.dtype), y, field(t, y, args))

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(v),
        solver,
        times[0],
        times[-1],
        dt0=None,
        y0=x,
        args=cond,
        stepsize_controller=StepTo(times),
        saveat=diffrax.SaveAt(t0=True, steps=True) if save else diffrax.SaveAt(t1=True),
        max_steps=times.shape[0],
        throw=False,
    )
    return jax.tree.map(lambda y: y[: times.shape[0]] if save else y[0], solution.ys)
