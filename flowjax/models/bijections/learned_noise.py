"""A learned distribution of the noise that dequantises integers, beside the flow of the dequantised data.

The noise u in the unit cube, given the centres c of the bins of the integers, is (Ho et al. 2019, arXiv:1902.00275)

    (1)  u = Phi(h),   h = f(e; c),   e ~ N(0, I)
    (2)  log q(u | c) = log N(e) - log |det dh/de| - log phi(h)

with the distribution function Phi and the density phi of N(0, 1) in each coordinate, and a flow f with the condition c.
At the start of training f is the identity, so that the noise is uniform.
"""

import math

import jax
from flax import nnx
from jaxtyping import Array, Float

from flowjax.conditions import Field
from flowjax.models.bijections.base import Bijector
from flowjax.models.bijections.flows import Sizes, real_nvp
from flowjax.sources import sum_event
from flowjax.typing import Batched, Cond

__all__ = ["WithLearnedNoise"]

_CENTRES = "centres"


class WithLearnedNoise(nnx.Module):
    """A flow of data of integers, together with the distribution of their noise.

    Args:
        shape: shape of one example.
        flow: the flow of the dequantised data.
        sizes: the sizes of the couplings of the noise.
        rngs: random number generators of the initialisation.

    Raises:
        ValueError: if an example is a single number.
    """

    def __init__(self, shape: tuple[int, ...], flow: Bijector, sizes: Sizes, rngs: nnx.Rngs):
        self.flow, self.size = flow, math.prod(shape)
        self.couplings = real_nvp((self.size,), (Field(_CENTRES, "vector", (self.size,)),), sizes, rngs)
        if getattr(flow, "slow_in_cpu_loops", False):
            self.slow_in_cpu_loops = True

    def forward(self, x: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        return self.flow.forward(x, cond)

    def inverse(self, z: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        return self.flow.inverse(z, cond)

    def noise(self, e: Batched, centres: Batched) -> tuple[Batched, Float[Array, " B"]]:
        """Maps numbers e ~ N(0, I) to the noise u of each row, and returns it with log q(u | c).

        Args:
            e: (B, *event).
            centres: the centres of the bins in model space, (B, *event).
        """
        rows = e.shape[0]
        h, log_det = self.couplings.inverse(e.reshape(rows, -1), {_CENTRES: centres.reshape(rows, -1)})
        h = h.reshape(e.shape)
        return jax.scipy.special.ndtr(h), 0.5 * sum_event(h**2 - e**2) - log_det
