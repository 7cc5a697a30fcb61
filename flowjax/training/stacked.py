"""An optimizer that sees all parameters of one shape as one array: few large operations, not hundreds of small ones."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from flowjax.typing import PyTree


def stacked(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """`tx` on stacks: leaves of one shape side by side on a new first axis, in a dictionary by shape.

    Exact for an optimizer that treats every number alike (Adam), and for one that is told that the first axis is a
    batch (Muon).
    """

    def init(params: PyTree) -> Any:
        return tx.init(_stack(params))

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, Any]:
        new: Any
        new, state = tx.update(_stack(updates), state, None if params is None else _stack(params))
        return _unstack(new, updates), state

    return optax.GradientTransformation(init, update)


def _groups(tree: PyTree) -> dict[str, list[int]]:
    """The places of the leaves of each shape and type, by name."""
    groups: dict[str, list[int]] = {}
    for i, leaf in enumerate(jax.tree.leaves(tree)):
        groups.setdefault("x".join(map(str, leaf.shape)) + f"_{leaf.dtype}", []).append(i)
    return groups


def _stack(tree: PyTree) -> dict[str, jax.Array]:
    leaves = jax.tree.leaves(tree)
    return {name: jnp.stack([leaves[i] for i in places]) for name, places in _groups(tree).items()}


def _unstack(stacks: dict[str, jax.Array], like: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(like)
    for name, places in _groups(like).items():
        for row, i in enumerate(places):
            leaves[i] = stacks[name][row]
    return jax.tree.unflatten(structure, leaves)
