"""What a pair costs: squared distance, and a penalty on conditions that differ."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.typing import Batched, Cond


def pairwise_cost(x0: Batched, x1: Batched) -> Float[Array, "B B"]:
    """|x1_i - x0_j|^2 in float32; rows are data, columns source."""
    return squared_distances(x1, x0)


def squared_distances(a: Float[Array, "N *event"], b: Float[Array, "M *event"]) -> Float[Array, "N M"]:
    """|a_i - b_j|^2 in float32.

    In up to four dimensions the differences are formed. In more dimensions |a|^2 + |b|^2 - 2 a.b needs less memory, and
    its rounding error is relative to the squared norms. The mean of all points is therefore subtracted first, in the
    dtype of the input, so that the error is relative to the spread of the points and not to their distance from the
    origin.
    """
    a, b = (x.reshape(x.shape[0], -1) for x in (a, b))
    a, b = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (a, b))
    if a.shape[1] <= 4:
        return ((a[:, None] - b) ** 2).sum(-1).astype(jnp.float32)
    centre = (a.mean(0) + b.mean(0)) / 2
    centre = jnp.where(jnp.isfinite(centre), centre, 0.0)  # one bad point must not spoil the other rows
    a, b = ((x - centre).astype(jnp.float32) for x in (a, b))
    # Full float32 products: by default a GPU multiplies with 10 bits of mantissa and a TPU with 7.
    cross = jnp.matmul(a, b.T, precision="highest")
    return jnp.maximum((a**2).sum(-1)[:, None] + (b**2).sum(-1) - 2 * cross, 0.0)


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
