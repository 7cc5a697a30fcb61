"""How much fresh noise a path carries between its ends: the gamma(t) of `x_t = alpha x1 + sigma x0 + gamma z`.

A gamma is any object with `gamma(t)` and the interval [t_min, t_max] on which gamma is positive and its derivative
finite; `x_t` has a score there whatever the source and the coupling, as E[z | x_t] = -gamma score.

    Constant   gamma = s                       I-CFM and OT-CFM with sigma > 0 (Tong et al. 2024)
    Bridge     gamma = s sqrt(t (1 - t))       Brownian bridge: SB-CFM and SF2M (Tong et al. 2024)
    Sine2      gamma = s sin^2(pi t)           smooth at both ends (Albergo et al. 2023, table 2)
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from flowjax.schedules.base import as_time

__all__ = ["Bridge", "Constant", "Gamma", "Sine2"]


@runtime_checkable
class Gamma(Protocol):
    """The standard deviation of a path's own noise. Times and values are arrays of any one shape."""

    @property
    def t_min(self) -> float: ...

    @property
    def t_max(self) -> float: ...

    def gamma(self, t: ArrayLike) -> Float[Array, "..."]: ...


def _check_scale(name: str, scale: float | int) -> None:
    if not scale > 0:
        raise ValueError(f"{name}: the scale must be positive, not {scale}; leave the noise out for none")


@jax.tree_util.register_static
@dataclass(frozen=True)
class Constant:
    """The same noise at all times: the ends themselves are blurred by it."""

    scale: float | int = 0.1
    t_min: ClassVar[float] = 0.0
    t_max: ClassVar[float] = 1.0

    def __post_init__(self):
        _check_scale("Constant", self.scale)

    def gamma(self, t: ArrayLike) -> Float[Array, "..."]:
        return jnp.full_like(as_time(t), self.scale)


@jax.tree_util.register_static
@dataclass(frozen=True)
class Bridge:
    """A Brownian bridge of diffusion `scale`: gamma^2 = scale^2 t (1 - t), the conditional path of Schroedinger
    bridges.

    gamma' is infinite at both ends, so times are kept in [1e-3, 1 - 1e-3].
    """

    scale: float | int = 1.0
    t_min: ClassVar[float] = 1e-3
    t_max: ClassVar[float] = 1.0 - 1e-3

    def __post_init__(self):
        _check_scale("Bridge", self.scale)

    def gamma(self, t: ArrayLike) -> Float[Array, "..."]:
        t = as_time(t)
        return self.scale * jnp.sqrt(t * (1 - t))


@jax.tree_util.register_static
@dataclass(frozen=True)
class Sine2:
    """gamma = scale sin^2(pi t). Below 1e-3 times the scale the score -E[z] / gamma is lost: times in [0.0101,
    0.9899]."""

    scale: float | int = 1.0
    t_min: ClassVar[float] = 0.0101
    t_max: ClassVar[float] = 1.0 - 0.0101

    def __post_init__(self):
        _check_scale("Sine2", self.scale)

    def gamma(self, t: ArrayLike) -> Float[Array, "..."]:
        return self.scale * jnp.sin(jnp.pi * as_time(t)) ** 2
