"""A batch of training data, and the check of its dtypes."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp

from flowjax.typing import Batched

__all__ = ["AnyArray", "Batch", "check_floating"]

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


def check_floating(**arrays: Batched) -> None:
    """Checks that the arrays, passed as name=array, hold floats, because the points that a loss
    computes from integers would be truncated.

    Raises:
        ValueError: if an array does not hold floats; the message contains its name.
    """
    for name, x in arrays.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"{name} holds integers ({x.dtype}): convert them to floats, for example by {name}.astype(jnp.float32)"
            )
