"""How parameters are stored in the training state, and how they reach the network and its gradient comes back.

`ParameterLayout` has the two directions. `Stacks` puts small parameters of one shape into one array, and
`network_over_rows` is data parallelism written by hand; both make fewer kernels on GPUs.
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
from flowjax.typing import Params, PyTree

__all__ = ["HELD", "LARGEST", "PLATFORMS", "ParameterLayout", "Stacks", "largest_within", "network_over_rows"]

PLATFORMS = ("gpu",)
"""Platforms that start a kernel for each operation, so that stacks and data parallelism by hand pay."""

HELD = 2**26
"""How many numbers the training loop holds in stacks at most. They are in memory twice, because the memory of the old
state is kept for the new one. The smallest parameters gain most, so they are stacked first."""

LARGEST = 2**21
"""The gradient of a parameter with more numbers than this is summed over devices by itself."""


@dataclass(frozen=True)
class ParameterLayout:
    """How parameters are stored in the training state, and how the network takes them.

    Attributes:
        like: shapes and types of the parameters.
        stored: shardings of the parameters in the state.
        whole: shardings of the parameters in the network, gathered over the mesh axis `fsdp`.
        stacks: the stacks in which the state holds the parameters, or None.
        types: the type in which each parameter is gathered, or None where nothing is gathered.
    """

    like: Params
    stored: PyTree
    whole: PyTree
    stacks: "Stacks | None" = None
    types: PyTree = None

    def to_network(self, stored: Params) -> Params:
        """The parameters as the network takes them.

        Args:
            stored: parameters of the state, or a moving average of them; in stacks, if the state holds these.

        Returns:
            The parameters unstacked, whole on each device of `fsdp`, in the types in which they are gathered.
        """
        place = lax.with_sharding_constraint
        params = stored if self.stacks is None else self.stacks.unstack(stored)
        if self.types is not None:
            # The cast has a sharding of its own, or the compiler may gather first, in the wider type.
            params = place(_cast(params, self.types), self.stored)
        return place(params, self.whole)

    def to_stored(self, grads: Params) -> Params:
        """The gradient as the optimizer takes it.

        Args:
            grads: gradient with respect to what `to_network` returned.

        Returns:
            The gradient in the types, shardings and stacks of the state.
        """
        cast = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, self.like)
        placed = lax.with_sharding_constraint(cast, self.stored)
        return placed if self.stacks is None else self.stacks.stack(placed)


def _cast(params: Params, types: PyTree) -> Params:
    return jax.tree.map(lambda p, dtype: p.astype(dtype), params, types)


def largest_within(like: PyTree, numbers: int) -> int:
    """The largest size of a leaf such that all leaves up to that size have at most so many numbers together."""
    sizes = [leaf.size for leaf in jax.tree.leaves(like)]
    return max((size for size in set(sizes) if sum(n for n in sizes if n <= size) <= numbers), default=0)


class Stacks:
    """Leaves of one shape and type, stacked on a new first axis.

    A network has hundreds of parameters and few shapes. On a GPU an operation on each parameter is a kernel, and the
    kernels of biases and norms take longer to start than to run. A few operations on stacks replace them.

    Args:
        like: parameters, or their shapes.
        largest: leaves with more numbers than this are not stacked with others.
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
        """The tree with stacks in place of each subtree that has the structure of the parameters.

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
        return {name: jnp.stack([leaves[i] for i in places]) for name, places in self._places.items()}

    def _unstack(self, stacks: dict[str, jax.Array]) -> PyTree:
        leaves: list[Any] = [None] * self._tree.num_leaves
        for name, places in self._places.items():
            rows = lax.split(stacks[name], [1] * len(places))
            for i, row in zip(places, rows, strict=True):
                leaves[i] = row[0]
        return jax.tree.unflatten(self._tree, leaves)


def network_over_rows(network: Callable[..., Any], mesh: Mesh, types: PyTree = None) -> Callable[..., Any]:
    """Data parallelism by hand for GPUs: each device calls the network on its rows of the batch.

    Left to itself, XLA sums the gradient of each parameter where it is made, packs hundreds of these sums into one
    buffer, and unpacks each by a kernel: torchcfm's CIFAR-10 network has 496 more kernels in a step on two devices than
    in a step on one, which has 1,682. Here the gradients are stacked by shape before they are summed. The result is the
    same except for the order of sums, and gradients of parameters in `types` narrower than their own are rounded to
    those types on each device. The rest of the loss (couplings, stratified times) sees the whole batch.

    Args:
        network: `network(params, *arguments, **inputs) -> output`, whose output depends on its inputs row by row. The
            arguments and inputs are arrays with a leading axis of rows (x, conditions, `mask`, keys), scalars (t, `s`),
            keys of random numbers for all rows (`key`), dictionaries of these, None, and plain Python values such as
            `forward_mode` or the name of a method. The output is an array, or a tree of arrays, with the axis of rows.
        mesh: a mesh whose axes `fsdp` and `tensor` have size 1.
        types: the type in which each parameter reaches the network; None for its own.

    Returns:
        The same function of the whole batch. The number of rows is that of the first array that is not a scalar or key.
    """

    def whole(params: Params, *arguments: Any, **inputs: Any) -> Any:
        is_static = lambda leaf: isinstance(leaf, bool | str)
        leaves, tree = jax.tree.flatten((arguments, inputs))
        rows = next(a.shape[0] for a in leaves if getattr(a, "ndim", 0) and not _is_key(a))
        arrays = [_by_row(a, rows) for a in leaves if not is_static(a)]
        params = params if types is None else _cast(params, types)
        stacks = Stacks(params, LARGEST)

        def call(stacked: Any, arrays: list[Any]) -> Any:
            given = iter(arrays)
            arguments, inputs = tree.unflatten(a if is_static(a) else next(given) for a in leaves)
            return network(stacks.unstack(stacked), *arguments, **inputs)

        mapped = jax.shard_map(call, mesh=mesh, in_specs=(P(), P(BATCH)), out_specs=P(BATCH), check_vma=False)
        return mapped(stacks.stack(params), arrays)

    return whole


def _is_key(a: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key)


def _by_row(a: Any, rows: int) -> Any:
    """An array with a leading axis of rows: a scalar repeated, and one key split into a key for each row."""
    if _is_key(a):
        return row_keys(a, rows)
    return a if jnp.ndim(a) else jnp.broadcast_to(a, (rows,))
