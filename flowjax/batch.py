"""A batch of training data."""

from typing import NamedTuple

from jaxtyping import Array, Bool

from flowjax.typing import Batched, Cond

__all__ = ["Batch"]


class Batch(NamedTuple):
    """Examples of the data with their conditions.

    Attributes:
        x1: (B, *event) data.
        cond: arrays with leading axis B by name (`flowjax.conditions`), or None.
        x0: (B, *event) source samples that come in pairs with x1; None to draw them from the source. A coupling has
            nothing to do for given pairs.
        mask: (B, N), true for the elements of a set or sequence x1 = (B, N, C) that exist; None where all do.
    """

    x1: Batched
    cond: Cond = None
    x0: Batched | None = None
    mask: Bool[Array, "B N"] | None = None
