"""Exponential moving average of the parameters, with its half-life in samples: the batch does not change it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flowjax.typing import Params

_RAMP = 0.05


def decay(half_life: float, batch_size: int, step: Int[Array, ""]) -> Float[Array, ""]:
    """The factor on the old average when step number `step` (the first is 1) is done.

    The half-life grows with the run, up to 5% of the samples seen, until it is `half_life`: the average forgets its
    start
    (Karras et al. 2022, appendix F.2). 0 switches the average off.
    """
    seen = step * float(batch_size)
    ramped = jnp.minimum(half_life, _RAMP * seen)
    return jnp.where(ramped > 0, 0.5 ** (batch_size / jnp.maximum(ramped, 1e-9)), 0.0)


def update(ema: Params, params: Params, factor: Float[Array, ""]) -> Params:
    """factor * ema + (1 - factor) * params."""
    return jax.tree.map(lambda old, new: new + factor.astype(new.dtype) * (old - new), ema, params)
