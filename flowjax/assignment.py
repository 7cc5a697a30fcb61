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

from flowjax.typing import Batched

_LEVELS = 16
_LARGEST, _SMALLEST = 0.4, 0.002  # of the mean cost


def entropic_potentials(x0: Batched, x1: Batched) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """(u, v) with |x1_i - x0_j|^2 - u_i - v_j close to non-negative, and close to zero on an optimal assignment.

    One sweep of Sinkhorn's iteration (Cuturi 2013) at each level of a geometric schedule, on kernels that already
    hold the potentials so far, so that nothing overflows. Pure, jit-able, float32.
    """
    x0, x1 = (x.reshape(x.shape[0], -1).astype(jnp.float32) for x in (x0, x1))
    n = x1.shape[0]
    cost = (x1**2).sum(-1)[:, None] + (x0**2).sum(-1) - 2 * x1 @ x0.T

    def sweep(potentials: tuple[Array, Array], eps: Array) -> tuple[tuple[Array, Array], None]:
        u, v = potentials
        kernel = jnp.exp((u[:, None] + v - cost) / eps)
        rows = jnp.maximum(kernel @ jnp.ones(n), 1e-30)
        columns = jnp.maximum((1 / rows) @ kernel, 1e-30)
        return (u - eps * jnp.log(rows), v - eps * jnp.log(columns)), None

    levels = jnp.maximum(cost.mean(), 1e-12) * jnp.geomspace(_LARGEST, _SMALLEST, _LEVELS)
    return lax.scan(sweep, (jnp.zeros(n), jnp.zeros(n)), levels)[0]


def assign(x0: ArrayLike, x1: ArrayLike, u: ArrayLike, v: ArrayLike) -> Int[np.ndarray, " B"]:
    """The rows of x0 whose assignment to the rows of x1 costs least in all, exactly. On the host, in float64.

    Potentials that are not finite are ignored. Points that are not finite have no assignment: rows stay as they are.
    """
    from scipy.optimize import linear_sum_assignment

    a, b = (np.asarray(x, np.float64) for x in (x0, x1))
    a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return np.arange(len(b), dtype=np.int32)
    cost = (b**2).sum(1)[:, None] - 2 * b @ a.T + (a**2).sum(1)
    u, v = np.asarray(u, np.float64), np.asarray(v, np.float64)
    if np.isfinite(u).all() and np.isfinite(v).all():
        cost -= u[:, None]
        cost -= v
    return linear_sum_assignment(cost)[1].astype(np.int32)
