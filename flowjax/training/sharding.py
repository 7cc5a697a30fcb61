"""One mesh for a laptop and for many devices: the batch is split along `data`, everything else is replicated."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flowjax.config import ConfigError
from flowjax.typing import PyTree


def make_mesh(batch_size: int) -> Mesh:
    """All devices along one axis `data`, said aloud to be `Auto` (diffrax fails under explicit axes).

    Raises:
        ConfigError: if the batch does not divide among the devices.
    """
    devices = jax.devices()
    if batch_size % len(devices):
        raise ConfigError(f"train.batch_size {batch_size} does not divide among {len(devices)} devices")
    return Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, P())


def shard_batch(tree: PyTree, mesh: Mesh) -> PyTree:
    """Inside jit: split the leading axis of every leaf over the mesh."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P("data")))
