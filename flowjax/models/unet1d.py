"""A U-Net for sequences and signals of any length: the network of `models.unet` with convolutions along one axis.

A condition that is a sequence is concatenated to the input: along the channels if it has the length of the input, and
in front of it along the axis if it has another length, as the past of a series whose future is the input.
"""

from dataclasses import replace
from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flowjax.conditions import Field, Kind, check
from flowjax.keys import RowKeys
from flowjax.models.signals import as_sequence, as_signal, channels_of
from flowjax.models.unet import UNet
from flowjax.typing import Cond, PRNGKey

__all__ = ["UNet1D"]


class UNet1D(UNet):
    """A U-Net of residual blocks at several resolutions, with attention at the lowest one and skip connections.

    Args:
        shape: (L, C) of a sequence, or (L,) of a signal, which is treated as (L, 1). Levels of odd length are padded by
            their last element before pooling, so that L can be any number.
        channels: number of channels at full resolution.
        multipliers: number of channels of each level divided by `channels`. Each level after the first halves the
            resolution.
        blocks: number of residual blocks per level.
        heads: number of attention heads.
        fields: the conditions, whose kinds must be in `encoders.TAKES`. The channels of a sequence of length L are
            concatenated to those of the input. A sequence of another length is put in front of the input: the network
            then runs on both, with channels of their own, and returns its output for the input.
        two_times: whether the network takes the time s of x beside t.
        outputs: number of output arrays of the example's shape, concatenated along the last axis.
        rngs: random number generators of the initialisation.

    Raises:
        ValueError: if sizes do not divide each other, or a condition is not supported.
    """

    _name: ClassVar[str] = "unet1d"
    _beside: ClassVar[Kind] = "sequence"

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        channels: int = 64,
        multipliers: tuple[int, ...] = (1, 2, 2),
        blocks: int = 2,
        heads: int = 4,
        fields: tuple[Field, ...] = (),
        two_times: bool = False,
        outputs: int = 1,
        rngs: nnx.Rngs,
    ):
        self.ahead = sum(f.shape[0] for f in fields if _is_ahead(f, shape[0]))
        whole = self.ahead + shape[0]
        self.given = fields
        fields = tuple(replace(f, shape=(whole, f.shape[1])) if f.kind == self._beside else f for f in fields)
        super().__init__(
            (whole, channels_of(shape)),
            channels=channels,
            multipliers=multipliers,
            blocks=blocks,
            heads=heads,
            fields=fields,
            two_times=two_times,
            outputs=outputs,
            rngs=rngs,
        )

    def __call__(
        self,
        t: Array | float,
        x: Float[Array, "B *event"],
        cond: Cond = None,
        *,
        s: Array | float | None = None,
        mask: Array | None = None,
        key: PRNGKey | RowKeys | None = None,
        forward_mode: bool = False,
    ) -> Float[Array, "B *output"]:
        """Returns the network's output, which has the shape of x with a last axis `outputs` times as long.

        Args:
            t: time, () or (B,), in [0, 1].
            x: (B, L, C), or (B, L).
            cond: conditions by name, or None. A field that is absent counts as not given.
            s: the time of x, () or (B,), if `two_times` is True; None otherwise.
            mask: must be None, because this network takes no mask.
            key: ignored, because there is no dropout.
            forward_mode: ignored, because JAX differentiates all operations of this network in forward mode.

        Raises:
            ValueError: if a condition is not one of `fields`, if a mask is given, or if `s` does not fit `two_times`.
        """
        sequence = as_sequence(x)
        cond = self._along_the_axis(check(cond, self.given), sequence.shape[1])
        sequence = jnp.pad(sequence, ((0, 0), (self.ahead, 0), (0, 0)))
        y = super().__call__(t, sequence, cond, s=s, mask=mask, key=key, forward_mode=forward_mode)
        return as_signal(y[:, self.ahead :], x)

    def _along_the_axis(self, cond: dict[str, Array], length: int) -> dict[str, Array]:
        """Places each sequence on the axis of the network, where it has the null value at all other positions."""
        placed, begin = dict(cond), 0
        for field in self.given:
            if field.kind != self._beside:
                continue
            start = begin if _is_ahead(field, length) else self.ahead
            begin += field.shape[0] if _is_ahead(field, length) else 0
            if field.name in cond and self.ahead:
                after = self.ahead + length - start - field.shape[0]
                around = ((0, 0), (start, after), (0, 0))
                placed[field.name] = jnp.pad(cond[field.name], around, constant_values=field.null)
        return placed


def _is_ahead(field: Field, length: int) -> bool:
    """Whether a condition is a sequence that is put in front of an input of this length."""
    return field.kind == "sequence" and field.shape[0] != length
