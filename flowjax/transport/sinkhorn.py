"""Entropic optimal transport between two batches with uniform weights (Cuturi 2013, arXiv:1306.0895), on the device.

    min_P  <P, C> + eps KL(P | 1/B^2)      with row sums 1/B (data) and column sums 1/B (source)

The problem is solved by Sinkhorn's iteration. The kernels absorb the potentials, and the regularisation decreases to
eps by a factor of 0.8 per sweep, which avoids under- and overflow for small eps. A finite `tau` replaces the constraint
on the column sums by a penalty tau KL(P^T 1 | 1/B) (unbalanced transport; Chizat et al. 2018, arXiv:1607.05816), so
that source points far from all data are used less.

A plan that has not converged violates the marginal constraints by `Plan.marginal_error`, and training stops if that is
too large. `round_plan` (Altschuler et al. 2017, arXiv:1705.09634, algorithm 2) restores exact marginals.
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
"""The potentials u and v, the number of sweeps, and the marginal error of the last one."""


class Plan(NamedTuple):
    """A transport plan.

    Attributes:
        matrix: (B, B), with one row per data point and one column per source point; its entries sum to 1.
        marginal_error: the sum of |row sum - 1 / B| before rounding.
        sweeps: the number of Sinkhorn sweeps.
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
    """The entropic transport plan for `cost`; balanced plans are rounded to exact marginals. Pure, jit-able, float32.

    Args:
        cost: (B, B); inf forbids a pair, and then the column sums are exact only up to `Plan.marginal_error`.
        eps: the regularisation, in units of the cost; positive.
        tau: the penalty on the column sums; inf for balanced transport.
        max_sweeps: the largest number of sweeps. It may end the iteration early: check `Plan.marginal_error`.
        tolerance: the marginal error below which the iteration ends.
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
        # the row sums measure the error of the final plan only if the previous sweep used the final eps
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
    # rounding adds the missing mass to all pairs; the mass added to forbidden pairs is moved to others of the same row
    rounded = jnp.where(jnp.isfinite(cost), round_plan(matrix), 0.0)
    return Plan(rounded / (n * jnp.maximum(rounded.sum(1, keepdims=True), 1e-30)), marginal_error, k.astype(jnp.int32))


def round_plan(plan: Float[Array, "B B"]) -> Float[Array, "B B"]:
    """A plan near `plan` whose row and column sums are exactly 1 / B (Altschuler et al. 2017, algorithm 2).

    The L1 distance to `plan` is at most twice the L1 error of the marginals of `plan`.
    """
    n = plan.shape[0]
    plan = plan * jnp.minimum(1 / (n * jnp.maximum(plan.sum(1), 1e-30)), 1.0)[:, None]
    plan = plan * jnp.minimum(1 / (n * jnp.maximum(plan.sum(0), 1e-30)), 1.0)
    rows, columns = 1 / n - plan.sum(1), 1 / n - plan.sum(0)
    missing = jnp.maximum(rows.sum(), 0.0)
    return plan + jnp.where(missing > 0, rows[:, None] * columns / jnp.maximum(missing, 1e-30), 0.0)


def draw_rows(key: PRNGKey, plan: Float[Array, "B B"]) -> Int[Array, " B"]:
    """Samples one column per row, (B,), with probabilities proportional to the entries of the plan."""
    cumulative = jnp.cumsum(jnp.maximum(plan, 0.0), 1)
    u = jax.random.uniform(key, (plan.shape[0], 1)) * cumulative[:, -1:]
    return jnp.minimum((cumulative <= u).sum(1), plan.shape[0] - 1)
