"""Magnitude-preserving encoders of conditions, whose outputs have mean square 1 (`models.magnitude`).

Values should have mean square 1, as standardised data have. `MPVectorEncoder` encodes whether a row is given in one
additional number. For a row that is given, the n values are multiplied by sqrt((n + 1) / n) and the number is 0. For a
row that is not given, the values are 0 and the number is sqrt(n + 1). The mean square of the n + 1 numbers is 1 in both
cases.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from flowjax.conditions import Field, Kind
from flowjax.models.encoders import Encoder, given
from flowjax.models.magnitude import MPEmbedding, MPLinear, mp_silu, normalise

__all__ = ["MP_ENCODERS", "MPGainedVector", "MPSetEncoder", "MPVectorEncoder"]


def flagged(mask: Bool[Array, "*B"], value: Float[Array, "*B n"]) -> Float[Array, "*B m"]:
    """Appends to the n values the number that encodes whether they are given, with mean square 1 in total."""
    n = value.shape[-1]
    values = jnp.where(mask[..., None], value * math.sqrt((n + 1) / n), 0.0)
    return jnp.concatenate([values, jnp.where(mask, 0.0, math.sqrt(n + 1))[..., None]], -1)


class MPVectorEncoder(nnx.Module):
    """`MPLinear` of the values and of the number that encodes whether they are given."""

    def __init__(self, field: Field, width: int, *, rngs: nnx.Rngs):
        self.field = field
        self.linear = MPLinear(field.shape[0] + 1, width, rngs=rngs)

    def __call__(self, value: Float[Array, "B n"] | None, rows: int) -> Float[Array, "B width"]:
        if value is None:
            value = jnp.full((rows, *self.field.shape), jnp.nan)
        return self.linear(flagged(given(self.field, value, 1), value))


class MPGainedVector(nnx.Module):
    """`MPLinear` times a gain that is initialised to zero, for vectors whose null value is 0.

    Zeros are encoded as zeros, so this encoder does not preserve magnitudes.
    """

    def __init__(self, field: Field, width: int, *, rngs: nnx.Rngs):
        self.linear = MPLinear(field.shape[0], width, rngs=rngs)
        self.gain = nnx.Param(jnp.zeros(()))

    def __call__(self, value: Float[Array, "B n"], rows: int) -> Float[Array, "B width"]:
        return self.linear(value, gain=self.gain[...])


class MPSetEncoder(nnx.Module):
    """The normalised mean over the present elements of linear(mp_silu(linear(element))), or a learned vector for an
    empty set.

    The mean is normalised to mean square 1, because averaging different elements reduces the magnitude.
    """

    def __init__(self, field: Field, width: int, *, rngs: nnx.Rngs):
        self.field, self.width = field, width
        self.linear1 = MPLinear(field.shape[1], width, rngs=rngs)
        self.linear2 = MPLinear(width, width, rngs=rngs)
        self.empty = nnx.Param(jax.random.normal(rngs.params(), (width,)))

    def __call__(self, value: Float[Array, "B N C"] | None, rows: int) -> Float[Array, "B width"]:
        empty = normalise(self.empty[...])
        if value is None:
            return jnp.broadcast_to(empty, (rows, self.width))
        mask = given(self.field, value, 2)
        h = self.linear2(mp_silu(self.linear1(jnp.where(mask[..., None], value, 0.0))))
        count = mask.sum(1)[:, None]
        mean = jnp.where(mask[..., None], h, 0.0).sum(1) / jnp.maximum(count, 1)
        return jnp.where(count > 0, normalise(mean), empty)


def _vector(field: Field, width: int, init: nnx.Initializer | None, *, rngs: nnx.Rngs) -> nnx.Module:
    return (MPGainedVector if field.zero_is_null else MPVectorEncoder)(field, width, rngs=rngs)


MP_ENCODERS: dict[Kind, Encoder] = {
    "label": lambda field, width, init, *, rngs: MPEmbedding(field.num_classes, width, rngs=rngs),
    "vector": _vector,
    "set": lambda field, width, init, *, rngs: MPSetEncoder(field, width, rngs=rngs),
}
"""The magnitude-preserving encoder of each kind, in place of `encoders.ENCODERS`."""
