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
"""network(params, t, x, cond, **key) -> output, row by row; with `key` for a network with dropout."""


def network_over_rows(network: Network, mesh: Mesh) -> Network:
    """The same function of the whole batch, each device of the mesh with its rows of it and all parameters.

    Args:
        network: of what its docstring says; a key for each row may be given.
        mesh: whose `fsdp` and `tensor` are 1.
    """

    def whole(params: Params, t: Any, x: Any, cond: Any, **key: Any) -> Any:
        rows = x.shape[0]
        arguments = {"t": jnp.broadcast_to(t, (rows,)), "x": x, "cond": cond}
        static = {name: value for name, value in key.items() if isinstance(value, bool | str)}
        arguments |= {name: row_keys(value, rows) for name, value in key.items() if name not in static}
        call = lambda params, arguments: network(params, **arguments, **static)
        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (params, arguments))
        narrow = jax.tree.map(lambda p, dtype: p.astype(dtype), params, travelling(call, *like))
        stacks = Stacks(narrow, LARGEST)
        each = lambda stacked, arguments: call(stacks.unstack(stacked), arguments)
        mapped = jax.shard_map(each, mesh=mesh, in_specs=(P(), P(BATCH)), out_specs=P(BATCH), check_vma=False)
        return mapped(stacks.stack(narrow), arguments)

    return whole
