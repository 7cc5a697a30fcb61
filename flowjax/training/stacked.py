"""Parameters of one shape side by side in one array: few large operations, not hundreds of small ones.

A network has hundreds of parameters and few shapes. On a GPU an operation on each is a kernel of its own, and those of
biases and norms take longer to start than to run.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from flowjax.typing import PyTree

__all__ = ["HELD", "PLATFORMS", "Stacks", "largest_within", "stacked"]

PLATFORMS = ("gpu",)
"""Where each operation is started on its own, so that stacks pay: in the loop, in sums over devices (`replicas`)."""

HELD = 2**26
"""Numbers that the loop holds in stacks, at most: they are in memory twice, for the memory of the state before is kept
for the state after it. The smallest parameters gain most."""


def largest_within(like: PyTree, numbers: int) -> int:
    """The largest size of a leaf such that all leaves up to it have at most so many numbers together."""
    sizes = [leaf.size for leaf in jax.tree.leaves(like)]
    return max((size for size in set(sizes) if sum(n for n in sizes if n <= size) <= numbers), default=0)


class Stacks:
    """How trees like one lie side by side: leaves of one shape and type on a new first axis, in a dictionary by shape.

    Args:
        like: parameters, or their shapes.
        largest: leaves of more numbers stay alone.
    """

    def __init__(self, like: PyTree, largest: int | None = None):
        leaves, self._tree = jax.tree.flatten(like)
        self._places: dict[str, list[int]] = {}
        for i, leaf in enumerate(leaves):
            alone = f"_{i}" if largest is not None and leaf.size > largest else ""
            name = "x".join(map(str, leaf.shape)) + f"_{leaf.dtype}{alone}"
            self._places.setdefault(name, []).append(i)
        self._stacked = jax.tree.structure(dict.fromkeys(self._places, 0))

    def stack(self, tree: PyTree) -> Any:
        """The tree with every part of it that is built like the parameters (their moments, averages) as stacks."""
        return self._in_parts(self._stack, self._tree, tree)

    def unstack(self, tree: PyTree) -> Any:
        """The tree that `stack` made these stacks of."""
        return self._in_parts(self._unstack, self._stacked, tree)

    def _in_parts(self, f: Callable[[PyTree], PyTree], structure: Any, tree: PyTree) -> Any:
        is_part = lambda part: jax.tree.structure(part) == structure
        return jax.tree.map(lambda part: f(part) if is_part(part) else part, tree, is_leaf=is_part)

    def _stack(self, tree: PyTree) -> dict[str, jax.Array]:
        leaves = jax.tree.leaves(tree)
        return {name: jnp.stack([leaves[i] for i in places]) for name, places in self._places.items()}

    def _unstack(self, stacks: dict[str, jax.Array]) -> PyTree:
        leaves: list[Any] = [None] * self._tree.num_leaves
        for name, places in self._places.items():
            rows = lax.split(stacks[name], [1] * len(places))
            for i, row in zip(places, rows, strict=True):
                leaves[i] = row[0]
        return jax.tree.unflatten(self._tree, leaves)


def stacked(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` on stacks.

    Exact for an optimizer that treats every number alike (Adam), and for one that is told that the first axis is a
    batch (Muon).
    """

    def init(params: PyTree) -> Any:
        return tx.init(Stacks(params).stack(params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        stacks = Stacks(updates)
        new: Any
        new, state = tx.update(stacks.stack(updates), state, None if params is None else stacks.stack(params))
        return stacks.unstack(new), state

    return optax.GradientTransformation(init, update)
