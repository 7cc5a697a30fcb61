"""Explicit Runge-Kutta methods on a fixed grid: one `lax.scan` over the grid for the whole batch.

A method is given by its Butcher tableau (a, b, c):

    k_i = v(t + c_i h, x + h sum_j a_ij k_j),  x' = x + h sum_i b_i k_i.

Stages that the solution does not use, such as the last stage of a first-same-as-last method, are left out, so each row
of the tableau is one evaluation per step. The solve can be differentiated in reverse and in forward mode.
"""

from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from flowjax.abilities import space_of
from flowjax.spaces import EUCLIDEAN, Space
from flowjax.typing import Cond, Field, PyTree

__all__ = ["EULER", "IN_ANY_SPACE", "RK4", "Tableau", "integrate", "step", "tableau_of"]


IN_ANY_SPACE = "use a Runge-Kutta method with a fixed number of steps, such as heun"
"""Advice for points of a space in which a solver cannot take steps."""


class Tableau(NamedTuple):
    """The coefficients of an explicit Runge-Kutta method.

    Attributes:
        a: row i has the weights of the i earlier stages.
        b: the weights of the stages in the solution.
        c: the time of each stage, as a fraction of the step.
    """

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]

    @property
    def stages(self) -> int:
        """The number of evaluations per step."""
        return len(self.b)


EULER = Tableau(a=((),), b=(1.0,), c=(0.0,))
RK4 = Tableau(a=((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6), c=(0.0, 0.5, 0.5, 1.0))
"""The classical fourth-order method."""


def tableau_of(solver: type[diffrax.AbstractERK]) -> Tableau:
    """The tableau of a diffrax class of explicit Runge-Kutta methods, without final stages that have no weight."""
    t = solver.tableau
    assert isinstance(t, diffrax.ButcherTableau)
    b = np.asarray(t.b_sol, float)
    keep = int(np.flatnonzero(b)[-1]) + 1
    a = ((), *(tuple(np.asarray(row, float).tolist()) for row in t.a_lower))
    c = (0.0, *np.asarray(t.c, float).tolist())
    return Tableau(a[:keep], tuple(b[:keep].tolist()), c[:keep])


def step(
    field: Field, x: PyTree, cond: Cond, t: Array, t_next: Array, tableau: Tableau, space: Space = EUCLIDEAN
) -> PyTree:
    """One step from t to t_next, in the space of all leaves of x."""
    h = t_next - t
    ks: list[PyTree] = []
    for row, c in zip(tableau.a, tableau.c, strict=True):
        ks.append(field(t + c * h, _add(x, h, row, ks, space), cond))
    return _add(x, h, tableau.b, ks, space)


def _add(x: PyTree, h: Array, weights: tuple[float, ...], ks: list[PyTree], space: Space) -> PyTree:
    """exp(x, h sum_i w_i k_i) in the dtype of x; in Euclidean space this is x + h sum_i w_i k_i."""
    terms = [(w, k) for w, k in zip(weights, ks, strict=True) if w != 0.0]
    if not terms:
        return x

    def add(y: Array, *k: Array) -> Array:
        slope = sum(w * ki.astype(y.dtype) for (w, _), ki in zip(terms, k, strict=True))
        return space.exp(y, space.project(y, h * slope)).astype(y.dtype)

    leaves, structure = jax.tree.flatten(x)
    slopes = (structure.flatten_up_to(k) for _, k in terms)
    moved = [add(*parts) for parts in zip(leaves, *slopes, strict=True)]
    return structure.unflatten(moved)


def integrate(
    field: Field, x: PyTree, cond: Cond, times: Float[Array, " T"], tableau: Tableau, save: bool = False
) -> PyTree:
    """Solves the ODE from times[0] to times[-1] with one step between consecutive times.

    Args:
        field: the velocity v(t, x, cond), a pytree with the structure of x. The steps are taken in its attribute
            `space`; a field without one is Euclidean.
        x: the state, a pytree of arrays of at least float32, which keep their dtype.
        cond: the condition, passed to the field.
        times: (T,) increasing or decreasing times.
        tableau: the method.
        save: whether to return the states at all T times, stacked on a new leading axis, instead of the last state.
    """

    def advance(x: PyTree, edge: tuple[Array, Array]) -> tuple[PyTree, PyTree | None]:
        x = step(field, x, cond, *edge, tableau, space_of(field))
        return x, x if save else None

    last, states = lax.scan(advance, x, (times[:-1], times[1:]))
    if not save:
        return last
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), x, states)
