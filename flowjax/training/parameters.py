"""Conversions between the parameters in the training state and the parameters that the network takes.

`ParameterLayout` converts parameters for the network, and gradients back for the optimizer. `Stacks` puts small
parameters of the same shape into one array, and `network_over_rows` is data parallelism with `jax.shard_map`. Both
reduce the number of kernels on GPUs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from flowjax.keys import row_keys
from flowjax.training.sharding import BATCH
from flowjax.trees import is_key
from flowjax.typing import Params, PyTree

__all__ = ["HELD", "LARGEST", "PLATFORMS", "ParameterLayout", "Stacks", "largest_within", "network_over_rows"]

PLATFORMS = ("gpu",)
"""Platforms that start a kernel for each operation, where `Stacks` and `network_over_rows` make training faster."""

HELD = 2**26
"""The training loop stacks at most this many numbers. They are in memory twice, because the memory of the old state is
kept for the new one. Small parameters gain most from stacking and are stacked first."""

LARGEST = 2**21
"""The gradient of a parameter with more numbers than this is not stacked before it is summed over devices."""


@dataclass(frozen=True)
class ParameterLayout:
    """How parameters are stored in the training state, and how the network takes them.

    Attributes:
        like: shapes and types of the parameters.
        stored: shardings of the parameters in the state.
        whole: shardings of the parameters in the network, gathered over the mesh axis `fsdp`.
        stacks: the stacks in which the state holds the parameters, or None.
        types: the type in which each parameter is gathered, or None if nothing is gathered.
    """

    like: Params
    stored: PyTree
    whole: PyTree
    stacks: "Stacks | None" = None
    types: PyTree = None

    def to_network(self, stored: Params) -> Params:
        """Converts parameters of the state to parameters of the network.

        Args:
            stored: parameters of the state, or a moving average of them; in stacks if the state holds stacks.

        Returns:
            The parameters unstacked, gathered over `fsdp`, in the types in which they are gathered.
        """
        constrain = lax.with_sharding_constraint
        params = stored if self.stacks is None else self.stacks.unstack(stored)
        if self.types is not None:
            # Without a sharding constraint on the cast, the compiler may gather first, in the wider type.
            params = constrain(_cast(params, self.types), self.stored)
        return constrain(params, self.whole)

    def to_stored(self, grads: Params) -> Params:
        """Converts a gradient of the network's parameters to the types, shardings and stacks of the state."""
        cast = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, self.like)
        placed = lax.with_sharding_constraint(cast, self.stored)
        return placed if self.stacks is None else self.stacks.stack(placed)


def _cast(params: Params, types: PyTree) -> Params:
    return jax.tree.map(lambda p, dtype: p.astype(dtype), params, types)


def largest_within(like: PyTree, numbers: int) -> int:
    """The largest leaf size such that all leaves up to that size have at most `numbers` numbers together; 0 if none."""
    sizes = [leaf.size for leaf in jax.tree.leaves(like)]
    return max((size for size in set(sizes) if sum(n for n in sizes if n <= size) <= numbers), default=0)


class Stacks:
    """Stacks leaves of the same shape and type on a new first axis.

    A network has hundreds of parameters but few shapes. On a GPU an operation on each parameter is a kernel, and the
    kernels of small parameters take longer to start than to run. A few operations on stacks replace them.

    Args:
        like: the parameters, or their shapes.
        largest: leaves with more numbers than this get a stack to themselves; None for no limit.
    """

    def __init__(self, like: PyTree, largest: int | None = None):
        leaves, self._tree = jax.tree.flatten(like)
        self._members: dict[str, list[int]] = {}  # indices of the leaves in each stack
        for i, leaf in enumerate(leaves):
            suffix = f"_{i}" if largest is not None and leaf.size > largest else ""
            name = "x".join(map(str, leaf.shape)) + f"_{leaf.dtype}{suffix}"
            self._members.setdefault(name, []).append(i)
        self._stacked = jax.tree.structure(dict.fromkeys(self._members, 0))

    def stack(self, tree: PyTree) -> Any:
        """Replaces each subtree that has the structure of the parameters by a dictionary of stacks.

        In a training state these are the parameters, the moments of the optimizer and the averages.
        """
        return self._in_subtrees(self._stack, self._tree, tree)

    def unstack(self, tree: PyTree) -> Any:
        """The inverse of `stack`."""
        return self._in_subtrees(self._unstack, self._stacked, tree)

    def _in_subtrees(self, f: Callable[[PyTree], PyTree], structure: Any, tree: PyTree) -> Any:
        matches = lambda subtree: jax.tree.structure(subtree) == structure
        return jax.tree.map(lambda subtree: f(subtree) if matches(subtree) else subtree, tree, is_leaf=matches)

    def _stack(self, tree: PyTree) -> dict[str, jax.Array]:
        leaves = jax.tree.leaves(tree)
        return {name: jnp.stack([leaves[i] for i in members]) for name, members in self._members.items()}

    def _unstack(self, stacks: dict[str, jax.Array]) -> PyTree:
        leaves: list[Any] = [None] * self._tree.num_leaves
        for name, members in self._members.items():
            rows = lax.split(stacks[name], [1] * len(members))
            for i, row in zip(members, rows, strict=True):
                leaves[i] = row[0]
        return jax.tree.unflatten(self._tree, leaves)


def network_over_rows(
    network: Callable[..., Any], mesh: Mesh, types: Callable[[Params], PyTree] | None = None
) -> Callable[..., Any]:
    """Data parallelism for GPUs with `jax.shard_map`: each device calls the network on its rows of the batch.

    With automatic sharding, XLA sums each gradient over devices where it is computed, packs hundreds of these sums into
    one buffer, and unpacks each with a kernel: torchcfm's CIFAR-10 network has 1,682 kernels per step on one device and
    496 more on two. Here the gradients are stacked by shape before they are summed. The result is the same except for
    the order of sums. Gradients of parameters for which `types` finds a narrower type are rounded to it on each device.
    The rest of the loss (couplings, stratified times) is computed from the whole batch.

    Args:
        network: `network(params, *arguments, **inputs) -> output`, whose output depends on its inputs row by row. The
            arguments and inputs are arrays with a leading axis of rows (x, conditions, `mask`, keys), scalars (t, `s`),
            one PRNG key for all rows (`key`), dictionaries of these, None, and plain Python values such as
            `forward_mode` or the name of a method. The output is an array, or a tree of arrays, with a leading axis of
            rows.
        mesh: a mesh whose axes `fsdp` and `tensor` have size 1.
        types: finds the type to which each parameter is cast before the call (`Traits.types`); None for no casts.

    Returns:
        The same function of the whole batch, with the number of rows of the first array that has an axis of rows.
    """

    def whole(params: Params, *arguments: Any, **inputs: Any) -> Any:
        is_static = lambda leaf: isinstance(leaf, bool | str)
        leaves, tree = jax.tree.flatten((arguments, inputs))
        rows = next(a.shape[0] for a in leaves if getattr(a, "ndim", 0) and not is_key(a))
        arrays = [_by_row(a, rows) for a in leaves if not is_static(a)]
        params = params if types is None else _cast(params, types(params))
        stacks = Stacks(params, LARGEST)

        def call(stacked: Any, arrays: list[Any]) -> Any:
            given = iter(arrays)
            arguments, inputs = tree.unflatten(a if is_static(a) else next(given) for a in leaves)
            return network(stacks.unstack(stacked), *arguments, **inputs)

        mapped = jax.shard_map(call, mesh=mesh, in_specs=(P(), P(BATCH)), out_specs=P(BATCH), check_vma=False)
        return mapped(stacks.stack(params), arrays)

    return whole


def _by_row(a: Any, rows: int) -> Any:
    """An array with a leading axis of rows: a scalar is broadcast, and a single key is split into one key per row."""
    if is_key(a):
        return row_keys(a, rows)
    return a if jnp.ndim(a) else jnp.broadcast_to(a, (rows,))
