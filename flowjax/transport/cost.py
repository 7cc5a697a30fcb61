"""What a pair costs: squared distance, and a penalty on conditions that differ."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.spaces import EUCLIDEAN, Space
from flowjax.typing import Batched, Cond

__all__ = ["condition_penalty", "pairwise_cost"]


def pairwise_cost(x0: Batched, x1: Batched, space: Space = EUCLIDEAN) -> Float[Array, "B B"]:
    """The squared distance of each x1_i to each x0_j in float32; rows are data, columns source."""
    return space.pairwise_distance_squared(x1, x0)


def condition_penalty(cond: Cond, weight: float) -> Float[Array, "B B"]:
    """weight times the squared distance of conditions; integers (labels) are at distance 0 or 1.

    Row j of the source takes the condition of row j of the data, so a source row and a condition are independent before
    any transport. With weight inf only equal conditions may be paired, and x0 given the condition stays as drawn.

    Raises:
        ValueError: if there is no condition.
    """
    leaves = jax.tree.leaves(cond)
    if not leaves:
        raise ValueError("this coupling pairs within conditions, and the batch has none")
    total = 0.0
    for leaf in leaves:
        c = jnp.asarray(leaf).reshape(leaf.shape[0], -1)
        if jnp.issubdtype(c.dtype, jnp.integer):
            total = total + (c[:, None] != c).any(-1).astype(jnp.float32)
        else:
            total = total + ((c[:, None] - c) ** 2).sum(-1).astype(jnp.float32)
    return jnp.where(total > 0, jnp.inf, 0.0) if math.isinf(weight) else weight * jnp.asarray(total)
