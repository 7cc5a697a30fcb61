"""Noise levels gamma(t) of paths with noise, `x_t = alpha x1 + sigma x0 + gamma z` with z ~ N(0, I).

A noise level is any object with a method `gamma(t)` and an interval [t_min, t_max] on which gamma is positive and its
derivative is finite. There, x_t has the score -E[z | x_t] / gamma for every source and every coupling.

    Constant   gamma = s                       I-CFM and OT-CFM with sigma > 0 (Tong et al. 2024, arXiv:2302.00482)
    Bridge     gamma = s sqrt(t (1 - t))       Brownian bridge: SB-CFM and SF2M (Tong et al. 2024, arXiv:2307.03672)
    Sine2      gamma = s sin^2(pi t)           smooth at both ends (Albergo et al. 2023, arXiv:2303.08797, table 2)
    Fading     gamma = s (1 - t)               noise in given source samples (Albergo et al. 2023, arXiv:2310.03725)
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from flowjax.schedules.base import as_time

__all__ = ["Bridge", "Constant", "Fading", "Gamma", "Sine2"]


@runtime_checkable
class Gamma(Protocol):
    """The standard deviation of the noise on a path."""

    @property
    def t_min(self) -> float:
        """The first time at which gamma is positive and its derivative finite."""
        ...

    @property
    def t_max(self) -> float:
        """The last time at which gamma is positive and its derivative finite."""
        ...

    def gamma(self, t: ArrayLike) -> Float[Array, "..."]:
        """The standard deviation at each time; t may have any shape."""
        ...


def _check_scale(name: str, scale: float | int) -> None:
    if not scale > 0:
        raise ValueError(f"{name}: scale must be positive, not {scale}; for a path without noise use noise=None")


@jax.tree_util.register_static
@dataclass(frozen=True)
class Constant:
    """gamma = scale at all times. The ends are blurred too: x_t is x0 + scale z at t = 0 and x1 + scale z at t = 1.

    Attributes:
        scale: the standard deviation, positive.
    """

    scale: float | int = 0.1
    t_min = 0.0
    t_max = 1.0

    def __post_init__(self):
        _check_scale("Constant", self.scale)

    def gamma(self, t: ArrayLike) -> Float[Array, "..."]:
        return jnp.full_like(as_time(t), self.scale)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Bridge:
    """gamma^2 = scale^2 t (1 - t): the Brownian bridge, which is the conditional path of Schroedinger bridges.

    The derivative of gamma is infinite at t = 0 and t = 1, so times are restricted to [1e-3, 1 - 1e-3].

    Attributes:
        scale: the diffusion coefficient, positive.
    """

    scale: float | int = 1.0
    t_min = 1e-3
    t_max = 1.0 - 1e-3

    def __post_init__(self):
        _check_scale("Bridge", self.scale)

    def gamma(self, t: ArrayLike) -> Float[Array, "..."]:
        t = as_time(t)
        return self.scale * jnp.sqrt(t * (1 - t))


@jax.tree_util.register_static
@dataclass(frozen=True)
class Sine2:
    """gamma = scale sin^2(pi t).

    The score -E[z | x_t] / gamma is inaccurate where gamma is below 1e-3 of its scale, so times are restricted to
    [0.0101, 0.9899].

    Attributes:
        scale: the largest standard deviation, positive.
    """

    scale: float | int = 1.0
    t_min = 0.0101
    t_max = 1.0 - 0.0101

    def __post_init__(self):
        _check_scale("Sine2", self.scale)

    def gamma(self, t: ArrayLike) -> Float[Array, "..."]:
        return self.scale * jnp.sin(jnp.pi * as_time(t)) ** 2


@jax.tree_util.register_static
@dataclass(frozen=True)
class Fading:
    """gamma = scale (1 - t): noise of this standard deviation in the source samples, on a path with sigma = 1 - t.

    x_t = t x1 + (1 - t) (x0 + scale z), so the path starts at noisy source samples. A flow from pairs needs such noise
    if a source sample leaves x1 undetermined, because an ODE maps each start to a single end. The score -E[z | x_t] /
    gamma is infinite at t = 1, so times are restricted to [0, 1 - 1e-3].

    Attributes:
        scale: the standard deviation at t = 0, positive.
    """

    scale: float | int = 1.0
    t_min = 0.0
    t_max = 1.0 - 1e-3

    def __post_init__(self):
        _check_scale("Fading", self.scale)

    def gamma(self, t: ArrayLike) -> Float[Array, "..."]:
        return self.scale * (1 - as_time(t))
