"""The interface of an invertible layer, and the composition of layers.

A normalizing flow maps the data x to the source z by a composition of layers z = f_n(... f_1(x)), each of which is
invertible and knows the determinant of its Jacobian, so that

    (1)  log p(x) = log p_source(z) + sum_i log |det df_i|

Every layer maps examples to examples of the same shape. The models of `flowjax.abilities` with the ability `bijection`
point the other way: their `forward` maps the source to the data.
"""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowjax.typing import Batched, Cond

__all__ = ["Bijector", "Chain", "constant_log_det"]


@runtime_checkable
class Bijector(Protocol):
    """An invertible map of x (B, *event) to z (B, *event), given a condition."""

    def forward(self, x: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        """Maps the data towards the source. Returns (z, log |det dz/dx|)."""
        ...

    def inverse(self, z: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        """Maps the source towards the data. Returns (x, log |det dx/dz|)."""
        ...


class Chain(nnx.Module):
    """A composition of layers, the first of which is the next to the data.

    Args:
        layers: the layers, each a `Bijector`.
    """

    def __init__(self, layers: Iterable[Bijector]):
        self.layers = nnx.List(list(layers))

    def forward(self, x: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        log_det = jnp.zeros(x.shape[0], x.dtype)
        for layer in self.layers:
            x, more = layer.forward(x, cond)
            log_det = log_det + more
        return x, log_det

    def inverse(self, z: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        log_det = jnp.zeros(z.shape[0], z.dtype)
        for layer in reversed(list(self.layers)):
            z, more = layer.inverse(z, cond)
            log_det = log_det + more
        return z, log_det


def constant_log_det(x: Batched, of_a_position: Float[Array, ""]) -> Float[Array, " B"]:
    """The log-determinant of an affine map of the last axis that is the same at all positions and for all rows.

    Args:
        x: the examples, (B, *positions, D).
        of_a_position: the log-determinant of the map of a vector (D,).
    """
    positions = x[0].size // x.shape[-1]
    return jnp.broadcast_to((positions * of_a_position).astype(x.dtype), x.shape[:1])
