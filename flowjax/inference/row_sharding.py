"""Rows shared among the processes, and sharded over the devices of each; every device solves its own.

The function is mapped by `shard_map`: what a device computes depends on its rows alone, so the compiled program has no
collective, an adaptive solve stops on each device when its own rows have arrived, and none waits for another's.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flowjax.errors import ConfigError
from flowjax.training import processes
from flowjax.typing import PyTree

__all__ = ["everywhere", "over_rows", "rows_of_a_block", "rows_of_this_process"]


@cache
def _mesh() -> Mesh | None:
    """All devices of this process in a row; None for one."""
    devices = jax.local_devices()
    return Mesh(np.array(devices), ("rows",), axis_types=(AxisType.Auto,)) if len(devices) > 1 else None


def rows_of_a_block(size: int) -> int:
    """The least number that is no less than `size` and divides among the devices."""
    n = 1 if (mesh := _mesh()) is None else mesh.size
    return -(-size // n) * n


def rows_of_this_process(num: int) -> slice:
    """The share of this process in `num` rows.

    Raises:
        ConfigError: if there are fewer rows than processes.
    """
    if processes.process_count() > 1 and num < processes.process_count():
        raise ConfigError(f"{num} rows are fewer than the {processes.process_count()} processes that share them")
    return processes.share(num)


def everywhere(tree: PyTree) -> PyTree:
    """Arrays that every device needs, placed on all; keys too."""
    mesh = _mesh()
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, P()))


def over_rows(f: Callable[..., Any]) -> Callable[..., Any]:
    """`f(shared, *rows)`, compiled, whose rows and results have the same leading axis.

    Args:
        f: of what every device needs and of arrays with a leading axis, or dictionaries of them; what it returns has
            that axis too, and depends row by row on the arrays.

    Returns:
        The same function. Its first argument is from `everywhere`; a block has `rows_of_a_block` rows.
    """
    mesh = _mesh()
    if mesh is None:
        return jax.jit(f)

    def mapped(shared: PyTree, *rows: Any) -> Any:
        specs = (P(), *(P("rows") for _ in rows))
        return jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=P("rows"), check_vma=False)(shared, *rows)

    return jax.jit(mapped)
