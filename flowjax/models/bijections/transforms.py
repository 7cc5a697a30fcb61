"""Invertible functions of one number with parameters that a network computes: shifts, and scales with shifts.

A transform maps each coordinate of x (*batch, D) to a coordinate of z, with its own row of `raw` (*batch, P, D), the
unconstrained parameters. It is the identity where all its parameters are zero, so that a flow whose networks end in
layers that are initialised to zero starts at the identity. The rational-quadratic spline is in
`flowjax.models.bijections.spline`.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["Additive", "Affine", "Transform"]

Numbers = Float[Array, "*batch D"]
Raw = Float[Array, "*batch P D"]

_LARGEST_LOG_SCALE = 3.0


@runtime_checkable
class Transform(Protocol):
    """An invertible, increasing function of each coordinate."""

    @property
    def parameters(self) -> int:
        """The number P of parameters for each coordinate."""
        ...

    def forward(self, x: Numbers, raw: Raw) -> tuple[Numbers, Numbers]:
        """Returns z and log dz/dx for each coordinate."""
        ...

    def inverse(self, z: Numbers, raw: Raw) -> tuple[Numbers, Numbers]:
        """Returns x and log dx/dz for each coordinate."""
        ...


class Additive(NamedTuple):
    """z = x + m, the transform of NICE (Dinh et al. 2014, arXiv:1410.8516). It preserves volume."""

    @property
    def parameters(self) -> int:
        return 1

    def forward(self, x: Numbers, raw: Raw) -> tuple[Numbers, Numbers]:
        return x + raw[..., 0, :], jnp.zeros_like(x)

    def inverse(self, z: Numbers, raw: Raw) -> tuple[Numbers, Numbers]:
        return z - raw[..., 0, :], jnp.zeros_like(z)


class Affine(NamedTuple):
    """z = x e^s + m, the transform of RealNVP (Dinh et al. 2017, arXiv:1605.08803).

    The log scale is s = a tanh(s' / a) with a = 3 and the parameter s', so that the inverse is accurate in float32.
    """

    @property
    def parameters(self) -> int:
        return 2

    def forward(self, x: Numbers, raw: Raw) -> tuple[Numbers, Numbers]:
        scale = _bounded(raw[..., 0, :])
        return x * jnp.exp(scale) + raw[..., 1, :], scale

    def inverse(self, z: Numbers, raw: Raw) -> tuple[Numbers, Numbers]:
        scale = _bounded(raw[..., 0, :])
        return (z - raw[..., 1, :]) * jnp.exp(-scale), -scale


def _bounded(scale: Numbers) -> Numbers:
    return _LARGEST_LOG_SCALE * jnp.tanh(scale / _LARGEST_LOG_SCALE)
