"""Names for the shapes that every signature shares: the batch axis comes first, channels last.

`B` is the batch, `*event` the shape of one example: `(D,)` for points, `(H, W, C)` for images.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, Key, Num, PyTree

PRNGKey = Key[Array, ""]
Batched = Float[Array, "B *event"]
Output = Float[Array, "B *output"]
"""What a network returns: one event, or several side by side in the last axis."""

Time = float | int | Num[Array, ""] | Num[Array, " B"]
"""A time in [0, 1]: one for the whole batch or one a row."""

Cond = PyTree[Any]
"""A condition: a pytree whose leaves lead with the batch axis, or None."""

Params = PyTree[Any]
Apply = Callable[[Any, Any, Any], jax.Array]
"""A network with its parameters bound: `apply(t, x, cond) -> output`, shaped like `x`."""

Field = Callable[[Any, Any, Any], Any]
"""A velocity field `v(t, x, cond) -> dx/dt`: the only thing solvers and likelihood see."""

__all__ = ["Apply", "Array", "Batched", "Cond", "Field", "Float", "Output", "PRNGKey", "Params", "PyTree", "Time"]
