"""Adaptive explicit ODE solvers from diffrax, with separate error control for each sample.

Each sample is solved separately under `vmap`. Its step sizes depend only on its own error, so its result does not
depend on the other samples. A sample that has finished is still computed until the last one finishes, but no more
evaluations are counted for it. The error norm is the largest root mean square over the leaves of the state, so that a
log-density which is solved together with an image is held to the tolerance too.
"""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flowjax.abilities import space_of
from flowjax.solvers.controllers import FromFirstStep
from flowjax.solvers.fixed_grid import IN_ANY_SPACE
from flowjax.solvers.rows import rows_of, with_rows
from flowjax.spaces import check_euclidean
from flowjax.typing import Cond, Field, PyTree

__all__ = ["evaluations", "integrate"]

_FIRST_STEP = 0.01
"""The first step as a fraction of the interval. diffrax's default depends on its version and costs two evaluations."""


def _norm(error: PyTree) -> Float[Array, ""]:
    return jnp.max(jnp.stack([jnp.sqrt(jnp.mean(leaf**2)) for leaf in jax.tree.leaves(error)]))


def evaluations(solver: diffrax.AbstractSolver, steps: Int[Array, " B"]) -> Int[Array, " B"]:
    """The number of evaluations of the field in that many attempted steps, accepted or rejected.

    A first-same-as-last method with s stages evaluates once at the start and s - 1 times per step.
    """
    if isinstance(solver, diffrax.ReversibleHeun):
        return 1 + steps
    assert isinstance(solver, diffrax.AbstractERK)
    tableau = solver.tableau
    assert isinstance(tableau, diffrax.ButcherTableau)
    return 1 + (tableau.num_stages - 1) * steps if tableau.fsal else tableau.num_stages * steps


def integrate(
    field: Field,
    x: PyTree,
    cond: Cond,
    t0: float | Float[Array, ""],
    t1: float | Float[Array, ""],
    solver: diffrax.AbstractSolver,
    rtol: float | Float[Array, ""],
    atol: float | Float[Array, ""],
    max_steps: int,
    save_at: Float[Array, " T"] | None,
    adjoint: diffrax.AbstractAdjoint | None = None,
) -> tuple[PyTree, Int[Array, " B"], Bool[Array, " B"]]:
    """Solves the ODE from t0 to t1, for each sample separately.

    Args:
        field, x, cond, t0, t1: see `solve_ode`.
        solver: a diffrax solver with an error estimate.
        rtol, atol: the tolerances of each sample.
        max_steps: the largest number of attempted steps per sample.
        save_at: the times at which to return the state; None returns it at t1.
        adjoint: how the solve is differentiated; None is diffrax's default, `RecursiveCheckpointAdjoint`.

    Returns:
        The state at t1 (or at each time of `save_at`, on a new leading axis), the number of evaluations for each
        sample, rejected steps included, and whether each sample reached t1 within `max_steps`.

    Raises:
        ValueError: if the space of the field is not Euclidean.
    """
    check_euclidean(f"an adaptive solve by {type(solver).__name__}", space_of(field), IN_ANY_SPACE)

    def one(x: PyTree, cond: Cond, rows: PyTree) -> tuple[PyTree, Array, Array]:
        lift = lambda tree: jax.tree.map(lambda leaf: leaf[None], tree)
        one_field = with_rows(field, lift(rows))

        def v(t: Any, x: PyTree, cond: Cond) -> PyTree:
            return jax.tree.map(lambda y, leaf: leaf[0].astype(y.dtype), x, one_field(t, lift(x), lift(cond)))

        # `BacksolveAdjoint` differentiates only by arguments of the field, so closed-over arrays become arguments
        hoisted, constants = (v, []) if adjoint is None else jax.closure_convert(v, t0, x, cond)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, x, args: hoisted(t, x, args[0], *args[1])),
            solver,
            t0,
            t1,
            dt0=None,
            y0=x,
            args=(cond, constants),
            adjoint=diffrax.RecursiveCheckpointAdjoint() if adjoint is None else adjoint,
            stepsize_controller=FromFirstStep(rtol=rtol, atol=atol, norm=_norm, first_step=_FIRST_STEP),
            saveat=diffrax.SaveAt(t1=True) if save_at is None else diffrax.SaveAt(ts=save_at),
            max_steps=max_steps,
            throw=False,
        )
        ys = jax.tree.map(lambda y: y[0], solution.ys) if save_at is None else solution.ys
        return ys, solution.stats["num_steps"], solution.result == diffrax.RESULTS.successful

    rows_to = 0 if save_at is None else 1
    rows = rows_of(field, jax.tree.leaves(x)[0].shape[0])
    ys, steps, converged = jax.vmap(one, out_axes=(rows_to, 0, 0))(x, cond, rows)
    return ys, evaluations(solver, steps), converged
