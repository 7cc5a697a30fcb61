"""Activation normalisation with data-dependent initialisation (Kingma & Dhariwal 2018, arXiv:1807.03039).

Each entry of the last axis is standardised by its mean m and deviation d over the first batch of training, and then
scaled and shifted by trained parameters:

    (1)  z = (x - m) / d e^s + c

m and d are variables that are not parameters. They are set by the first call in training mode, and later calls leave
them unchanged, so that the layer is the same map in training and afterwards. s and c start at zero. They are separate
from m and d, so that moving averages of parameters do not contain values from before the initialisation.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowjax.models.bijections.base import constant_log_det
from flowjax.typing import Batched, Cond

__all__ = ["ActivationNorm"]

_SMALLEST_DEVIATION = 1e-3
"""A smaller deviation of the first batch counts as this one, so that a constant entry is not scaled without bound."""


class ActivationNorm(nnx.Module):
    """Activation normalisation.

    Before the first batch it is the identity. A first batch that is computed in parts (`train.accumulate`) initialises
    it with the first part.

    Args:
        size: length of the last axis.
    """

    def __init__(self, size: int):
        self.mean, self.deviation = nnx.Variable(jnp.zeros(size)), nnx.Variable(jnp.ones(size))
        self.initialised = nnx.Variable(jnp.zeros((), bool))
        self.log_scale, self.shift = nnx.Param(jnp.zeros(size)), nnx.Param(jnp.zeros(size))
        self.use_running_average = True  # nnx.Module.train sets it to False

    def forward(self, x: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        if not self.use_running_average:
            self._initialise(x)
        scale, log_scale = self._scale()
        z = (x - self.mean[...]) * scale + self.shift[...]
        return z, constant_log_det(x, log_scale.sum())

    def inverse(self, z: Batched, cond: Cond = None) -> tuple[Batched, Float[Array, " B"]]:
        scale, log_scale = self._scale()
        return (z - self.shift[...]) / scale + self.mean[...], constant_log_det(z, -log_scale.sum())

    def _initialise(self, x: Batched) -> None:
        """Takes the mean and the deviation of x, unless an earlier batch has set them."""
        old, axes = self.initialised[...], tuple(range(x.ndim - 1))
        x = jax.lax.stop_gradient(x)
        deviation = jnp.maximum(x.std(axes), _SMALLEST_DEVIATION)
        self.mean[...] = jnp.where(old, self.mean[...], x.mean(axes))
        self.deviation[...] = jnp.where(old, self.deviation[...], deviation)
        self.initialised[...] = jnp.ones((), bool)

    def _scale(self) -> tuple[Float[Array, " C"], Float[Array, " C"]]:
        """e^s / d, and its logarithm."""
        log_scale, deviation = self.log_scale[...], self.deviation[...]
        return jnp.exp(log_scale) / deviation, log_scale - jnp.log(deviation)
