"""Type aliases that are shared by all signatures.

The batch axis comes first, channels last. `B` is the batch size and `*event` the shape of one example, such as `(D,)`
for points and `(H, W, C)` for images.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, Key, Num, PyTree

PRNGKey = Key[Array, ""]
Batched = Float[Array, "B *event"]
Output = Float[Array, "B *output"]
"""The output of a network: one event, or several concatenated along the last axis."""

Time = float | int | Num[Array, ""] | Num[Array, " B"]
"""A time in [0, 1]: one for the whole batch, or one per row."""

Cond = PyTree[Any]
"""A condition: a pytree whose leaves have a leading batch axis, or None."""

Params = PyTree[Any]
Apply = Callable[[Any, Any, Any], jax.Array]
"""A network with its parameters bound: `apply(t, x, cond) -> output`, shaped like `x`."""

Field = Callable[[Any, Any, Any], Any]
"""A velocity field `v(t, x, cond) -> dx/dt`, which solvers and likelihoods integrate."""

__all__ = ["Apply", "Array", "Batched", "Cond", "Field", "Float", "Output", "PRNGKey", "Params", "PyTree", "Time"]
