"""The cost of pairing a data point with a source point: squared distance, and a penalty on different conditions."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

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
    """The squared distances between conditions, times `weight`.

    Different integers (labels) are at distance 1. Of two numbers of which one is NaN (not given, see
    `flowjax.conditions`) the squared distance is 1, the expected squared distance of a standardised number from its
    mean; two NaN are at distance 0. Each source row j is given the condition of data row j, of which it is independent
    before pairing. With an infinite weight only rows with equal labels are paired, where "no label" is a label of its
    own; this preserves the distribution of x0 given the label. Other conditions do not count then, because no two rows
    have equal ones.

    Args:
        cond: a pytree of arrays (B, ...).
        weight: the weight, non-negative; may be inf.

    Returns:
        (B, B), to be added to the result of `pairwise_cost`.

    Raises:
        ValueError: if there is no condition, or no label if the weight is infinite.
    """
    flat = [jnp.asarray(leaf).reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(cond)]
    if math.isinf(weight):
        flat = [c for c in flat if jnp.issubdtype(c.dtype, jnp.integer)]
    if not flat:
        needs = "labels" if math.isinf(weight) else "conditions"
        raise ValueError(f"a coupling with condition_weight {weight:g} needs {needs}, and the batch has none")
    total = jnp.asarray(sum(map(_distance_squared, flat)))
    return jnp.where(total > 0, jnp.inf, 0.0) if math.isinf(weight) else weight * total


def _distance_squared(c: Shaped[Array, "B D"]) -> Float[Array, "B B"]:
    """Returns the squared distances between the rows of one condition, as `condition_penalty` defines them."""
    a, b = c[:, None], c
    if jnp.issubdtype(c.dtype, jnp.integer):
        return (a != b).any(-1).astype(jnp.float32)
    missing = jnp.isnan(a).astype(c.dtype) + jnp.isnan(b)
    return jnp.where(missing > 0, missing % 2, (a - b) ** 2).sum(-1).astype(jnp.float32)
