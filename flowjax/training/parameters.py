"""How the parameters in the training state become those that the loss takes, and its gradient that of the optimizer."""

from collections.abc import Callable
from dataclasses import dataclass

import jax

from flowjax.training.stacked import Stacks
from flowjax.typing import Params, PyTree

__all__ = ["ParameterLayout"]


@dataclass(frozen=True)
class ParameterLayout:
    """How parameters are stored in the training state, and how the network takes them.

    Attributes:
        like: shapes and types of the parameters.
        stored: shardings of the parameters in the state.
        whole: shardings of the parameters in the network, gathered over the mesh axis `fsdp`.
        stacks: in which the state holds the parameters, or None.
        dtypes: () -> the type in which each parameter is gathered, or None where nothing is gathered. A function, since
            the types are only needed once a step is traced.
    """

    like: Params
    stored: PyTree
    whole: PyTree
    stacks: Stacks | None = None
    dtypes: Callable[[], PyTree] | None = None

    def to_network(self, stored: Params) -> Params:
        """The parameters as the network takes them.

        Args:
            stored: parameters of the state, or a moving average of them; in stacks, if the state holds these.

        Returns:
            The parameters unstacked, whole on each device of `fsdp`, in the types in which they are gathered.
        """
        place = jax.lax.with_sharding_constraint
        params = stored if self.stacks is None else self.stacks.unstack(stored)
        if self.dtypes is not None:
            # The cast has a sharding of its own, or the compiler may gather first, in the wider type.
            narrow = jax.tree.map(lambda p, dtype: p.astype(dtype), params, self.dtypes())
            params = place(narrow, self.stored)
        return place(params, self.whole)

    def to_stored(self, grads: Params) -> Params:
        """The gradient as the optimizer takes it.

        Args:
            grads: gradient with respect to what `to_network` returned.

        Returns:
            The gradient in the types, shardings and stacks of the state.
        """
        cast = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, self.like)
        placed = jax.lax.with_sharding_constraint(cast, self.stored)
        return placed if self.stacks is None else self.stacks.stack(placed)
