"""Coupling layers: some coordinates are kept, and the others are transformed by functions of the kept ones.

With a binary mask b and a transform T of single numbers (`flowjax.models.bijections.transforms`),

    (1)  z = b x + (1 - b) T(x; network(b x))
    (2)  log |det dz / dx| = sum of (1 - b) log T'(x)

The Jacobian is triangular in an order that begins with the kept coordinates. Both directions take one evaluation of the
network, which may be any function. Additive couplings are those of NICE (Dinh et al. 2014, arXiv:1410.8516), affine
couplings those of RealNVP (Dinh et al. 2017, arXiv:1605.08803), and spline couplings those of Durkan et al. 2019
(arXiv:1906.04032).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from flowjax.models.bijections.transforms import Transform
from flowjax.sources import sum_event
from flowjax.typing import Batched, Cond

__all__ = ["Coupling"]


class Coupling(nnx.Module):
    """A coupling layer.

    The mask is a variable that is not a parameter: checkpoints contain it, and training leaves it unchanged.

    Args:
        mask: which coordinates of an example are kept.
        transform: the transform of the others.
        network: `network(x, cond)`, which returns `transform.parameters` arrays of the shape of x, concatenated along
            the last axis.

    Raises:
        ValueError: if the mask keeps all coordinates or none.
    """

    def __init__(self, mask: np.ndarray, transform: Transform, network: Callable[[Any, Any], Array]):
        if mask.all() or not mask.any():
            raise ValueError(
                f"a coupling keeps some numbers of an example and transforms others, so it needs examples of at least "
                f"2 numbers with a mask that keeps some; the mask of shape {mask.shape} keeps {mask.sum()} of "
                f"{mask.size}"
            )
        self.mask = nnx.Variable(jnp.asarray(mask))
        self.transform, self.network = transform, network

    def forward(self, x: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        return self._apply(self.transform.forward, x, cond)

    def inverse(self, z: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        return self._apply(self.transform.inverse, z, cond)

    def _apply(self, change: Callable[..., Any], x: Batched, cond: Cond) -> tuple[Batched, Float[Array, " B"]]:
        kept = self.mask[...]
        raw = self.network(jnp.where(kept, x, 0), cond)
        y, log_derivative = change(x, raw.reshape(*x.shape[:-1], self.transform.parameters, x.shape[-1]))
        return jnp.where(kept, x, y), sum_event(jnp.where(kept, 0, log_derivative))
