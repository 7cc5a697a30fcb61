"""The cost of pairing a data point with a source point: squared distance, and a penalty on different conditions."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.spaces import EUCLIDEAN, Space
from flowjax.typing import Batched, Cond

__all__ = ["condition_penalty", "pairwise_cost"]


def pairwise_cost(x0: Batched, x1: Batched, space: Space = EUCLIDEAN) -> Float[Array, "B B"]:
    """The squared distances between data and source points in float32.

    Args:
        x0: source points, (B, *event).
        x1: data points, (B, *event).
        space: the space whose distance is used.

    Returns:
        (B, B); entry (i, j) belongs to the data point x1[i] and the source point x0[j].
    """
    return space.pairwise_distance_squared(x1, x0)


def condition_penalty(cond: Cond, weight: float) -> Float[Array, "B B"]:
    """The squared distances between conditions, times `weight`. Different integers (labels) are at distance 1.

    Each source row j is given the condition of data row j, of which it is independent before pairing. With an infinite
    weight only rows with equal conditions are paired, which preserves the distribution of x0 given the condition.

    Args:
        cond: a pytree of arrays (B, ...).
        weight: the weight, non-negative; may be inf.

    Returns:
        (B, B), to be added to the result of `pairwise_cost`.

    Raises:
        ValueError: if there is no condition.
    """
    leaves = jax.tree.leaves(cond)
    if not leaves:
        raise ValueError("a coupling with condition_weight needs conditions, and the batch has none")
    total = 0.0
    for leaf in leaves:
        c = jnp.asarray(leaf).reshape(leaf.shape[0], -1)
        if jnp.issubdtype(c.dtype, jnp.integer):
            total = total + (c[:, None] != c).any(-1).astype(jnp.float32)
        else:
            total = total + ((c[:, None] - c) ** 2).sum(-1).astype(jnp.float32)
    return jnp.where(total > 0, jnp.inf, 0.0) if math.isinf(weight) else weight * jnp.asarray(total)
