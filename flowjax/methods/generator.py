"""A generator that maps the source to the data in one evaluation, alone or trained together with a second network.

The parameters of a method with two networks are {"network": generator, name: second network}, and its other variables
have the same keys. Each network has an optimizer of its own, which `Method.groups` defines.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from flowjax.methods.base import BoundNetwork, Context, Network
from flowjax.models.functional import Variables
from flowjax.precision import at_least_float32
from flowjax.typing import Batched, Cond, PRNGKey, Time

__all__ = ["GeneratorModel", "OneStep", "context_of", "init_networks"]


@dataclass(frozen=True)
class GeneratorModel:
    """A model of a generator, with the ability `to_data`. It has no path, as it is defined at the first time only.

    Attributes:
        generate: `generate(x0, cond)` maps samples of the source to the data. It must be hashable, so that solvers
            compile equal models once.
    """

    generate: Callable[[Batched, Cond], Batched]

    def to_data(self, t: Time, x: Batched, cond: Cond = None) -> Batched:
        """Maps samples of the source to the data.

        Args:
            t: not used, as the map is defined at the first time only.
            x: samples of the source, (B, *event).
            cond: the condition.
        """
        return self.generate(x, cond)


@dataclass(frozen=True)
class OneStep:
    """The map x0 + net(0, x0), one Euler step of the network as a velocity over times 0 to 1.

    Attributes:
        network: `network(t, x, cond)` with its parameters.
    """

    network: BoundNetwork

    def __call__(self, x0: Batched, cond: Cond = None) -> Batched:
        x0 = at_least_float32(x0)
        return x0 + at_least_float32(self.network(jnp.zeros(x0.shape[0], jnp.float32), x0, cond))


def init_networks(key: PRNGKey, networks: Mapping[str, Network]) -> Variables:
    """The initial variables of several networks, each with a key of its own.

    Args:
        key: the key from which those of the networks are derived.
        networks: the networks by name.

    Returns:
        Variables whose parameters and state are dictionaries with these names.
    """
    made = {name: network.init(jax.random.fold_in(key, i)) for i, (name, network) in enumerate(networks.items())}
    return Variables({k: v.params for k, v in made.items()}, {k: v.state for k, v in made.items()})


def context_of(context: Context, name: str) -> Context:
    """The same context with the state of one of several networks.

    Args:
        context: the context of the method, whose state is a dictionary by the names of the networks.
        name: the name of the network.

    Returns:
        The context for a call of this network. Its state is empty if the network has none.
    """
    return replace(context, state=context.state.get(name, {}))
