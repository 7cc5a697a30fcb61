"""Data parallel on GPUs, by hand: each device runs the network on its rows, and gradients are summed once, in few sums.

(Of `train.accumulate` parts: once for each part.) Left to itself XLA sums each parameter's gradient where it is made,
puts the sums of hundreds of arrays together in one buffer, and takes each of them out of it again by a kernel of its
own: torchcfm's CIFAR-10 network has 496 kernels more in a step of two devices than in a step of one, of 1,682. Here
what travels lies in stacks of equal shape before it is summed. What a network does with a row depends on that row
alone, so the numbers are the same but for the order of sums, and that a gradient which travels in bfloat16 is rounded
to it on each device; the rest of the loss (couplings, stratified times) goes on to see the whole batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from flowjax.keys import row_keys
from flowjax.training.narrow import travelling
from flowjax.training.sharding import BATCH
from flowjax.training.stacked import Stacks
from flowjax.typing import Params

__all__ = ["LARGEST", "Network", "network_over_rows"]

LARGEST = 2**21
"""Numbers: what is larger is summed by itself."""

Network = Callable[..., Any]
"""`network(params, *arguments, **inputs) -> output`, whose output depends row by row on the inputs."""


def network_over_rows(network: Network, mesh: Mesh) -> Network:
    """The same function of the whole batch, each device of the mesh with its rows of it and all parameters.

    Args:
        network: called with arrays whose leading axis is the rows (x, conditions, `mask`, keys), scalars (t, `s`), keys
            of random numbers for all rows (`key`), dictionaries of these, None, and plain Python values such as
            `forward_mode` or the name of a method. Its output is an array, or a tree of arrays, with that axis too.
        mesh: whose `fsdp` and `tensor` are 1.

    Returns:
        The function. The number of rows is that of the first array with axes.
    """

    def whole(params: Params, *arguments: Any, **inputs: Any) -> Any:
        is_static = lambda leaf: isinstance(leaf, bool | str)
        leaves, tree = jax.tree.flatten((arguments, inputs))
        rows = next(a.shape[0] for a in leaves if getattr(a, "ndim", 0) and not _is_key(a))
        arrays = [_by_row(a, rows) for a in leaves if not is_static(a)]

        def call(params: Params, arrays: list[Any]) -> Any:
            given = iter(arrays)
            arguments, inputs = tree.unflatten(a if is_static(a) else next(given) for a in leaves)
            return network(params, *arguments, **inputs)

        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (params, arrays))
        narrow = jax.tree.map(lambda p, dtype: p.astype(dtype), params, travelling(call, *like))
        stacks = Stacks(narrow, LARGEST)
        each = lambda stacked, arrays: call(stacks.unstack(stacked), arrays)
        mapped = jax.shard_map(each, mesh=mesh, in_specs=(P(), P(BATCH)), out_specs=P(BATCH), check_vma=False)
        return mapped(stacks.stack(narrow), arrays)

    return whole


def _is_key(a: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(a), jax.dtypes.prng_key)


def _by_row(a: Any, rows: int) -> Any:
    """An array with a leading axis of rows: a scalar repeated, and one key split into a key for each row."""
    if _is_key(a):
        return row_keys(a, rows)
    return a if jnp.ndim(a) else jnp.broadcast_to(a, (rows,))
