"""Masked autoregressive flows (Papamakarios et al. 2017, arXiv:1705.07057).

Each coordinate is transformed by a function of those before it:

    (1)  z_i = T(x_i; network_i(x_1, ..., x_{i-1}))

The Jacobian is triangular, so that log |det dz / dx| = sum_i log T'(x_i). One evaluation of a network with masked
weights gives the parameters of all coordinates (MADE, Germain et al. 2015, arXiv:1502.03509): every hidden unit has a
degree m and sees only coordinates i <= m, and the parameters of coordinate i see only units of degree m < i.

The direction from the data to the source takes one evaluation of the network. The inverse is sequential: coordinate i
needs all those before it, so that it takes D evaluations.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flowjax.conditions import Field
from flowjax.models.bijections.networks import add_encoded
from flowjax.models.bijections.transforms import Transform
from flowjax.models.encoders import VECTOR_ENCODERS, encoders_of
from flowjax.typing import Cond

__all__ = ["MADE", "Autoregressive", "degrees"]


def degrees(size: int, width: int) -> np.ndarray:
    """The degrees of the units of a hidden layer, evenly from 1 to D - 1; zeros if D is 1."""
    return np.round(np.linspace(min(1, size - 1), size - 1, width)).astype(int)


class MADE(nnx.Module):
    """A multilayer perceptron whose outputs for coordinate i depend only on the coordinates before i.

    The last layer is initialised to zero. Conditions are added to the first hidden layer without a mask. The masks are
    constants of the program.

    Args:
        size: the number D of coordinates.
        outputs: number of output arrays.
        fields: the conditions.
        width: width of the hidden layers.
        depth: number of hidden layers.
        rngs: random number generators of the initialisation.
    """

    def __init__(self, size: int, outputs: int, *, fields: tuple[Field, ...], width: int, depth: int, rngs: nnx.Rngs):
        self.size, self.outputs, self.width, self.depth = size, outputs, width, depth
        self.fields = fields
        self.encoders = nnx.data(encoders_of(fields, width, table=VECTOR_ENCODERS, rngs=rngs))
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in pairwise([size, *[width] * depth])])
        zeros = nnx.initializers.zeros_init()
        self.out = nnx.Linear(width, outputs * size, kernel_init=zeros, rngs=rngs)

    def __call__(self, x: Float[Array, "B D"], cond: Cond = None) -> Float[Array, "B P"]:
        own, hidden = np.arange(1, self.size + 1), degrees(self.size, self.width)
        before = own
        for i, layer in enumerate(self.layers):
            x = _masked(layer, x, before[:, None] <= hidden)
            x = jax.nn.silu(x if i else add_encoded(x, self.encoders, self.fields, cond))
            before = hidden
        return _masked(self.out, x, hidden[:, None] < np.tile(own, self.outputs))


def _masked(layer: nnx.Linear, x: Float[Array, "B D"], mask: np.ndarray) -> Float[Array, "B W"]:
    """Applies a linear layer with the weights of the mask."""
    assert layer.bias is not None  # all layers of MADE have one
    return x @ jnp.where(mask, layer.kernel[...], 0) + layer.bias[...]


class Autoregressive(nnx.Module):
    """A masked autoregressive layer of vectors (D,).

    Args:
        transform: the transform of each coordinate.
        network: a network like `MADE`, with `transform.parameters` outputs.
    """

    def __init__(self, transform: Transform, network: MADE):
        self.transform, self.network = transform, network

    def forward(self, x: Float[Array, "B D"], cond: Cond = None) -> tuple[Float[Array, "B D"], Float[Array, " B"]]:
        z, log_derivative = self.transform.forward(x, self._raw(x, cond))
        return z, log_derivative.sum(-1)

    def inverse(self, z: Float[Array, "B D"], cond: Cond = None) -> tuple[Float[Array, "B D"], Float[Array, " B"]]:
        """Maps the source towards the data with D evaluations of the network, one after the other."""

        def find(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            x, log_det = state  # the coordinates before i are found, and the others are zero
            found, log_derivative = self.transform.inverse(z, self._raw(x, cond))
            return x.at[:, i].set(found[:, i]), log_det + log_derivative[:, i]

        return jax.lax.fori_loop(0, z.shape[1], find, (jnp.zeros_like(z), jnp.zeros(z.shape[0], z.dtype)))

    def _raw(self, x: Float[Array, "B D"], cond: Cond) -> Float[Array, "B P D"]:
        return self.network(x, cond).reshape(x.shape[0], self.transform.parameters, x.shape[1])
