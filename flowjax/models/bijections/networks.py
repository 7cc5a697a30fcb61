"""The networks of couplings. They map (x, cond) to several arrays of the shape of x, concatenated along the last axis.

Their last layers are initialised to zero, so that couplings start at the identity. Conditions are labels, vectors, sets
and sequences, which are encoded as vectors (`flowjax.models.encoders`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from flowjax.conditions import Field, check
from flowjax.models.encoders import VECTOR_ENCODERS, encode, encoders_of
from flowjax.models.layers import Conv
from flowjax.models.mlp import MLP
from flowjax.typing import Cond

__all__ = ["ConvNetwork", "VectorNetwork", "add_encoded"]


class VectorNetwork(nnx.Module):
    """A multilayer perceptron of (x, encoded conditions) for vectors (D,).

    Args:
        size: the number D of coordinates.
        outputs: number of output arrays.
        fields: the conditions.
        width: width of the hidden layers.
        depth: number of hidden layers.
        rngs: random number generators of the initialisation.
    """

    def __init__(self, size: int, outputs: int, *, fields: tuple[Field, ...], width: int, depth: int, rngs: nnx.Rngs):
        self.mlp = MLP((size,), width=width, depth=depth, features=0, fields=fields, outputs=outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "B D"], cond: Cond = None) -> Float[Array, "B P"]:
        return self.mlp(0.0, x, cond)


class ConvNetwork(nnx.Module):
    """The convolutional network of Glow's couplings (Kingma & Dhariwal 2018, arXiv:1807.03039).

    A convolution of 3 x 3 pixels, convolutions of 1 x 1 pixels, and a convolution of 3 x 3 pixels that is initialised
    to zero, with rectifiers between them. Encoded conditions are added to the first hidden layer.

    Args:
        size: number of channels.
        outputs: number of output arrays.
        fields: the conditions.
        width: number of channels of the hidden layers.
        depth: number of hidden layers.
        rngs: random number generators of the initialisation.
    """

    def __init__(self, size: int, outputs: int, *, fields: tuple[Field, ...], width: int, depth: int, rngs: nnx.Rngs):
        self.fields = fields
        self.encoders = nnx.data(encoders_of(fields, width, table=VECTOR_ENCODERS, rngs=rngs))
        init = nnx.initializers.he_normal()
        self.first = Conv(size, width, init=init, rngs=rngs)
        self.hidden = nnx.List([Conv(width, width, 1, init=init, rngs=rngs) for _ in range(depth - 1)])
        self.out = Conv(width, outputs * size, init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, x: Float[Array, "B H W C"], cond: Cond = None) -> Float[Array, "B H W P"]:
        h = add_encoded(self.first(x), self.encoders, self.fields, cond)
        for layer in self.hidden:
            h = layer(jax.nn.relu(h))
        return self.out(jax.nn.relu(h))


def add_encoded(
    h: Float[Array, "B *space W"], encoders: Mapping[str, Any], fields: Sequence[Field], cond: Cond
) -> Float[Array, "B *space W"]:
    """Adds the encoded conditions to a hidden layer, the same numbers at all positions.

    Raises:
        ValueError: if a condition is not one of the fields, or has another shape.
    """
    for encoded in encode(encoders, fields, check(cond, fields), h.shape[0]):
        h = h + encoded.reshape(h.shape[0], *(1,) * (h.ndim - 2), h.shape[-1])
    return h
