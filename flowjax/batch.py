"""A batch of training data."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

__all__ = ["AnyArray", "Batch"]

AnyArray: TypeAlias = Any
"""An array with a leading batch axis: a NumPy array on the host, a JAX array on the devices."""


class Batch(NamedTuple):
    """Examples of the data with their conditions, on the host or on the devices.

    Attributes:
        x1: (B, *event) data.
        cond: conditions by name, arrays with a leading axis B (`flowjax.conditions`), or None.
        x0: (B, *event) source samples paired with x1, to which no coupling is applied; None to draw them from the
            source.
        mask: (B, N) bool, true for the elements of a set or sequence x1 = (B, N, C) that exist; None if all do.
    """

    x1: AnyArray
    cond: Mapping[str, AnyArray] | None = None
    x0: AnyArray | None = None
    mask: AnyArray | None = None
