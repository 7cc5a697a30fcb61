"""Nearly exact assignment on the device: Bertsekas' auction, all bidders at once.

Data rows bid for source rows: a free row i offers for its best column j the price at which it would be indifferent to
the second best, plus eps. When all are assigned, each row is within eps of its best column at the final prices
(epsilon-complementary slackness), so the total cost is within B eps of the optimum (Bertsekas 1988). Prices start at
entropic potentials, which leaves few rounds.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from flowjax.transport.assignment import entropic_potentials, finite_mean

__all__ = ["auction"]

_LEVELS = 64
_MAX_ROUNDS = 20_000

_State = tuple[Array, Array, Array, Array]
"""Prices and owner (-1: none) of each column; column (-1: none) of each row; rounds."""


def auction(
    cost: Float[Array, "B B"], tolerance: float = 0.01, max_rounds: int = _MAX_ROUNDS
) -> tuple[Int[Array, " B"], Float[Array, ""]]:
    """An assignment whose cost is at most (1 + tolerance) times the least, to float32 precision. Pure, jit-able.

    Args:
        cost: (B, B), non-negative; inf forbids a pair, if a full assignment without it exists.
        tolerance: relative to a lower bound of the least cost, from the dual.
        max_rounds: after which the rest is paired as it comes.

    Returns:
        The column of each row, and the share of rows that were left when the rounds were over: 0 unless cut short.
    """
    n = cost.shape[0]
    _, v = entropic_potentials(cost, _LEVELS)
    dual = jnp.mean(jnp.min(cost - v, axis=1)) + jnp.mean(v)
    eps = tolerance * jnp.where(dual > 0, dual, 1e-2 * finite_mean(cost))
    eps = jnp.maximum(eps, 1e-6 * jnp.max(jnp.where(jnp.isfinite(cost), cost, 0.0)))
    rows = jnp.arange(n)
    far = 2 * jnp.max(jnp.where(jnp.isfinite(cost), cost, 0.0)) + 1.0  # more than any row could save

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
    # the k-th free row takes the k-th free column
    spare = jnp.argsort(owner >= 0, stable=True)
    return jnp.where(free, spare[jnp.cumsum(free) - 1], column), free.mean()
