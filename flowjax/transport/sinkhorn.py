"""Entropic optimal transport between two batches of equal weights (Cuturi 2013), on the device.

    min_P  <P, C> + eps KL(P | 1/B^2)      with row sums 1/B (data) and column sums 1/B (source)

by Sinkhorn's iteration on kernels that already hold the potentials, with eps falling to its value by a fifth a sweep,
so that nothing under- or overflows however small eps is. `tau` relaxes the source's side to a penalty tau KL(P^T 1 |
1/B) (unbalanced transport; Chizat et al. 2018): source points far from all data are then used less.

A plan that has not converged has wrong marginals. `round_plan` (Altschuler et al. 2017, algorithm 2) mends them
exactly; how much there was to mend is `Plan.marginal_error`, and training stops where it was too much.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from flowjax.transport.assignment import finite_mean
from flowjax.typing import PRNGKey

__all__ = ["Plan", "draw_rows", "round_plan", "sinkhorn"]

_START, _FALL = 0.4, 0.8
_CHECKED_TO = 1e-3


_State = tuple[Array, Array, Array, Array]
"""Potentials, sweeps done, and the marginal_error at the last."""


class Plan(NamedTuple):
    """A transport plan.

    Attributes:
        matrix: (B, B), row i the data point i, column j the source point j; its entries sum to 1.
        marginal_error: sum of |row sum - 1 / B| before rounding.
        sweeps: of Sinkhorn's iteration that were done.
    """

    matrix: Float[Array, "B B"]
    marginal_error: Float[Array, ""]
    sweeps: Int[Array, ""]


def sinkhorn(
    cost: Float[Array, "B B"],
    eps: float | Float[Array, ""],
    *,
    tau: float = math.inf,
    max_sweeps: int = 2000,
    tolerance: float = _CHECKED_TO,
) -> Plan:
    """The entropic plan for `cost`, rounded to exact marginals where tau is inf. Pure, jit-able, float32.

    Args:
        cost: (B, B); inf forbids a pair, where the source's marginal is exact up to `marginal_error` only.
        eps: the regularisation, in units of the cost; positive.
        tau: penalty on the source's marginal; inf for balanced transport.
        max_sweeps: after which the plan is taken as it is: look at `marginal_error`.
        tolerance: of the marginal_error at which the sweeps end.
    """
    n = cost.shape[0]
    eps = jnp.asarray(eps, jnp.float32)
    start = _START * finite_mean(cost)
    relaxed = 1.0 if math.isinf(tau) else tau / (tau + eps)

    def level(k: Array) -> Array:
        return jnp.maximum(eps, start * _FALL**k)

    def kernel(u: Array, v: Array, e: Array) -> Array:
        return jnp.exp((u[:, None] + v - cost) / e)

    def sweep(state: _State) -> _State:
        u, v, k, _ = state
        e = level(k)
        p = kernel(u, v, e)
        rows = p.sum(1)
        u = u - e * jnp.log(jnp.maximum(rows, 1e-30))
        columns = (1 / jnp.maximum(rows, 1e-30)) @ p
        v = relaxed * (v - e * jnp.log(jnp.maximum(columns, 1e-30)))
        # only a sweep that began at the last eps says how far that plan is from its marginals
        settled = level(k - 1) == eps
        return u, v, k + 1, jnp.where(settled, jnp.abs(rows - 1).mean(), jnp.inf)

    def going(state: _State) -> Array:
        return (state[2] < max_sweeps) & ~(state[3] <= tolerance)

    first = (jnp.zeros(n), jnp.zeros(n), jnp.zeros(()), jnp.asarray(jnp.inf))
    u, v, k, _ = lax.while_loop(going, sweep, first)
    matrix = kernel(u, v, eps) / n
    marginal_error = jnp.abs(matrix.sum(1) - 1 / n).sum()
    if not math.isinf(tau):
        return Plan(matrix / jnp.maximum(matrix.sum(), 1e-30), marginal_error, k.astype(jnp.int32))
    # rounding spreads what is missing over all pairs; on forbidden ones it is given back to the row's others
    rounded = jnp.where(jnp.isfinite(cost), round_plan(matrix), 0.0)
    return Plan(rounded / (n * jnp.maximum(rounded.sum(1, keepdims=True), 1e-30)), marginal_error, k.astype(jnp.int32))


def round_plan(plan: Float[Array, "B B"]) -> Float[Array, "B B"]:
    """The plan moved to row and column sums 1 / B exactly (Altschuler et al. 2017, algorithm 2).

    In L1 it moves by at most twice the marginal_error of the marginals.
    """
    n = plan.shape[0]
    plan = plan * jnp.minimum(1 / (n * jnp.maximum(plan.sum(1), 1e-30)), 1.0)[:, None]
    plan = plan * jnp.minimum(1 / (n * jnp.maximum(plan.sum(0), 1e-30)), 1.0)
    rows, columns = 1 / n - plan.sum(1), 1 / n - plan.sum(0)
    missing = jnp.maximum(rows.sum(), 0.0)
    return plan + jnp.where(missing > 0, rows[:, None] * columns / jnp.maximum(missing, 1e-30), 0.0)


def draw_rows(key: PRNGKey, plan: Float[Array, "B B"]) -> Int[Array, " B"]:
    """One column for each row, with probability proportional to the plan's entries."""
    cumulative = jnp.cumsum(jnp.maximum(plan, 0.0), 1)
    u = jax.random.uniform(key, (plan.shape[0], 1)) * cumulative[:, -1:]
    return jnp.minimum((cumulative <= u).sum(1), plan.shape[0] - 1)
