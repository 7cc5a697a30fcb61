"""Diffusion coefficients g(t) of the SDE dX = (v + g^2 / 2 score) dt + g dW, whose marginals do not depend on g >= 0.

    constant(c)    g = c
    sigma(c)       g^2 = 2 c sigma                the score term of the drift is -c x0, which is finite at the data
    canonical(c)   g^2 = c sigma^2 d(log SNR)/dt  c = 1 is the reverse of the noising SDE (Song et al. 2021, arXiv
                                                  2011.13456), where g^2 is the beta of a VP schedule

A g that is infinite at alpha = 0 has `needs_alpha = True`, and the solve then starts after that time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowjax.paths.affine import AffinePath, GaussianPath
from flowjax.paths.noise import Bridge
from flowjax.schedules.base import as_time, log_snr_slope

__all__ = ["DIFFUSIONS", "Canonical", "Constant", "Diffusion", "Sigma", "default"]

Diffusion = Callable[[AffinePath, Array], Array]
"""(path, t) -> g(t)^2, with the shape of t."""


def _check(name: str, c: float | int) -> None:
    if not c >= 0:
        raise ValueError(f"g: {name}({c}) is negative, and g(t) must be at least 0")


@dataclass(frozen=True)
class Constant:
    """g(t) = c.

    Attributes:
        c: the diffusion coefficient, at least 0.
    """

    c: float | int = 1.0

    def __post_init__(self):
        _check("constant", self.c)

    def __call__(self, path: AffinePath, t: Array) -> Array:
        return jnp.full_like(as_time(t), self.c**2)


@dataclass(frozen=True)
class Sigma:
    """g(t)^2 = 2 c sigma(t).

    Attributes:
        c: the factor, at least 0.
    """

    c: float | int = 1.0

    def __post_init__(self):
        _check("sigma", self.c)

    def __call__(self, path: AffinePath, t: Array) -> Array:
        return 2 * self.c * path.schedule.sigma(t)


@dataclass(frozen=True)
class Canonical:
    """g(t)^2 = c sigma(t)^2 d(log SNR)/dt, which is infinite at alpha = 0.

    Attributes:
        c: the factor, at least 0; 1 is the reverse of the noising SDE.
    """

    c: float | int = 1.0
    needs_alpha: ClassVar[bool] = True

    def __post_init__(self):
        _check("canonical", self.c)

    def __call__(self, path: AffinePath, t: Array) -> Array:
        return self.c * path.schedule.sigma(t) ** 2 * log_snr_slope(path.schedule, t)


DIFFUSIONS: dict[str, Callable[..., Diffusion]] = {"constant": Constant, "sigma": Sigma, "canonical": Canonical}
"""The diffusions by name."""


def default(path: AffinePath) -> Diffusion:
    """The default diffusion of a path.

    A Schroedinger bridge uses the constant scale of its noise. A Gaussian path uses canonical(1) if alpha(0) > 0 and
    sigma(1) otherwise. Every other path uses constant(1).
    """
    if isinstance(path.noise, Bridge):
        return Constant(path.noise.scale)
    if not isinstance(path, GaussianPath):
        return Constant(1.0)
    with jax.ensure_compile_time_eval():
        return Canonical() if float(path.schedule.alpha(0.0)) > 0 else Sigma()
