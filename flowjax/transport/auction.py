"""Nearly optimal assignment on the device by Bertsekas' auction algorithm, with simultaneous bids.

Rows (data points) bid for columns (source points). An unassigned row bids for its best column the price at which it
would be indifferent between that column and its second best one, plus eps. Once all rows are assigned, each has a value
within eps of that of its best column at the final prices (epsilon-complementary slackness), so the total cost is within
B eps of the optimum (Bertsekas 1988). The prices start from entropic potentials, which reduces the number of rounds.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from flowjax.transport.assignment import entropic_potentials, finite_mean

__all__ = ["auction"]

_LEVELS = 64
_MAX_ROUNDS = 20_000

_State = tuple[Array, Array, Array, Array]
"""The price and the owner (-1 if none) of each column, the column of each row (-1 if none), and the round."""


def auction(
    cost: Float[Array, "B B"], tolerance: float = 0.01, max_rounds: int = _MAX_ROUNDS
) -> tuple[Int[Array, " B"], Float[Array, ""]]:
    """An assignment whose cost is at most (1 + tolerance) times the optimal cost. Pure, jit-able, float32.

    Args:
        cost: (B, B), non-negative; inf forbids a pair, provided that an assignment without forbidden pairs exists.
        tolerance: the relative error, measured against a lower bound on the optimal cost from the dual problem.
        max_rounds: the number of rounds after which the remaining rows are assigned to the free columns in order.

    Returns:
        The column of each row, (B,), and the fraction of rows assigned after `max_rounds`, which is 0 on convergence.
    """
    n = cost.shape[0]
    _, v = entropic_potentials(cost, _LEVELS)
    dual = jnp.mean(jnp.min(cost - v, axis=1)) + jnp.mean(v)
    eps = tolerance * jnp.where(dual > 0, dual, 1e-2 * finite_mean(cost))
    eps = jnp.maximum(eps, 1e-6 * jnp.max(jnp.where(jnp.isfinite(cost), cost, 0.0)))
    rows = jnp.arange(n)
    far = 2 * jnp.max(jnp.where(jnp.isfinite(cost), cost, 0.0)) + 1.0  # above all differences of costs

    def bid(state: _State) -> _State:
        prices, owner, column, rounds = state
        value = -cost - prices
        best = value.argmax(1)
        top = jnp.take_along_axis(value, best[:, None], 1)[:, 0]
        second = jnp.where(rows == best[:, None], -jnp.inf, value).max(1)
        second = jnp.maximum(second, top - far)
        free = column < 0
        offer = jnp.where(free, prices[best] + top - second + eps, -jnp.inf)
        highest = jnp.full(n, -jnp.inf).at[best].max(offer)
        wins = free & (offer == highest[best])
        winner = jnp.full(n, -1).at[jnp.where(wins, best, n)].max(rows, mode="drop")
        sold = winner >= 0
        column = column.at[jnp.where(sold & (owner >= 0), owner, n)].set(-1, mode="drop")
        column = column.at[jnp.where(sold, winner, n)].set(rows, mode="drop")
        return jnp.where(sold, highest, prices), jnp.where(sold, winner, owner), column, rounds + 1

    def unfinished(state: _State) -> Array:
        return (state[2] < 0).any() & (state[3] < max_rounds)

    nobody = jnp.full(n, -1)
    _, owner, column, _ = lax.while_loop(unfinished, bid, (-v, nobody, nobody, jnp.zeros((), jnp.int32)))
    free = column < 0
    # the k-th free row is assigned to the k-th free column
    spare = jnp.argsort(owner >= 0, stable=True)
    return jnp.where(free, spare[jnp.cumsum(free) - 1], column), free.mean()
