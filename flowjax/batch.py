"""A batch of training data."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

__all__ = ["AnyArray", "Batch"]

AnyArray: TypeAlias = Any
"""An array with a leading axis of rows: of NumPy on the host, of JAX on the devices."""


class Batch(NamedTuple):
    """Examples of the data with their conditions, on the host or on the devices.

    Attributes:
        x1: (B, *event) data.
        cond: arrays with leading axis B by name (`flowjax.conditions`), or None.
        x0: (B, *event) source samples that come in pairs with x1; None to draw them from the source. A coupling has
            nothing to do for given pairs.
        mask: (B, N) bool, true for the elements of a set or sequence x1 = (B, N, C) that exist; None where all do.
    """

    x1: AnyArray
    cond: Mapping[str, AnyArray] | None = None
    x0: AnyArray | None = None
    mask: AnyArray | None = None
