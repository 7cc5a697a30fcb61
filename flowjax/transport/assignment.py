"""Exact optimal assignment between two point sets under squared distance, warm-started by entropic potentials.

SciPy's shortest augmenting path solver is exact for any cost matrix, and subtracting a number from a row or a column
changes no optimum:  C_ij - u_i - v_j  has the assignments of C_ij. It is fast where most reduced costs of an optimum
are close to zero. A few sweeps of Sinkhorn's iteration in float32, with the regularisation falling from the scale of
the cost to a five-hundredth of it, give such u and v for a tenth of the time they save (256 points of 8 Gaussians:
10.8 ms cold, 2.8 ms warm; 1,024: 463 and 66). The potentials only steer; exactness is the solver's, in float64.
"""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Int

__all__ = ["assign", "entropic_potentials", "finite_mean"]

_LARGEST, _SMALLEST = 0.4, 0.002  # of the mean cost


def finite_mean(cost: Float[Array, "B B"]) -> Float[Array, ""]:
    """The mean over pairs that are allowed (not inf), and at least 1e-12."""
    allowed = jnp.isfinite(cost)
    return jnp.maximum(jnp.where(allowed, cost, 0.0).sum() / jnp.maximum(allowed.sum(), 1), 1e-12)


def entropic_potentials(cost: Float[Array, "B B"], levels: int = 16) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """(u, v) with cost_ij - u_i - v_j close to non-negative, and close to zero on an optimal assignment.

    One sweep of Sinkhorn's iteration (Cuturi 2013) at each level of a geometric schedule, on kernels that already
    hold the potentials so far, so that nothing overflows. Pure, jit-able, float32; costs may be inf.
    """
    n = cost.shape[0]

    def sweep(potentials: tuple[Array, Array], eps: Array) -> tuple[tuple[Array, Array], None]:
        u, v = potentials
        kernel = jnp.exp((u[:, None] + v - cost) / eps)
        rows = jnp.maximum(kernel @ jnp.ones(n), 1e-30)
        columns = jnp.maximum((1 / rows) @ kernel, 1e-30)
        return (u - eps * jnp.log(rows), v - eps * jnp.log(columns)), None

    schedule = finite_mean(cost) * jnp.geomspace(_LARGEST, _SMALLEST, levels)
    return lax.scan(sweep, (jnp.zeros(n), jnp.zeros(n)), schedule)[0]


def assign(
    x0: ArrayLike, x1: ArrayLike, u: ArrayLike, v: ArrayLike, penalty: ArrayLike | None = None
) -> Int[np.ndarray, " B"]:
    """The rows of x0 whose assignment to the rows of x1 costs least in all, exactly. On the host, in float64.

    `penalty` (B, B) is added to the cost; inf forbids a pair. Potentials that are not finite are ignored. Points that
    are not finite have no assignment: rows stay as they are.
    """
    from scipy.optimize import linear_sum_assignment

    a, b = (np.asarray(x, np.float64) for x in (x0, x1))
    a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return np.arange(len(b), dtype=np.int32)
    centre = (a.mean(0) + b.mean(0)) / 2  # rounding is then relative to the spread of the points
    a, b = a - centre, b - centre
    cost = (b**2).sum(1)[:, None] - 2 * b @ a.T + (a**2).sum(1)
    if penalty is not None:
        cost += np.asarray(penalty)
    u, v = np.asarray(u, np.float64), np.asarray(v, np.float64)
    if np.isfinite(u).all() and np.isfinite(v).all():
        cost -= u[:, None]
        cost -= v
    return linear_sum_assignment(cost)[1].astype(np.int32)
