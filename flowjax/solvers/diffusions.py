"""How much noise an SDE carries: the g(t) of  dX = (v + g^2 / 2 score) dt + g dW,  the same marginals for every g >= 0.

    constant(c)    g = c
    sigma(c)       g^2 = 2 c sigma                the score's part of the drift is -c x0: finite at the data
    canonical(c)   g^2 = c sigma^2 d(log SNR)/dt  c = 1: the reverse of the noising SDE (Song et al. 2021; VP's beta)

A g that is infinite where alpha = 0 says so by `needs_alpha`, and the solve starts after it. A Schroedinger bridge's
own g is the constant scale of its noise.
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
"""(path, t) -> g(t)^2, shaped as t."""


def _check(name: str, c: float | int) -> None:
    if not c >= 0:
        raise ValueError(f"g: {name}({c}) is negative; g(t) >= 0 is needed")


@dataclass(frozen=True)
class Constant:
    c: float | int = 1.0

    def __post_init__(self):
        _check("constant", self.c)

    def __call__(self, path: AffinePath, t: Array) -> Array:
        return jnp.full_like(as_time(t), self.c**2)


@dataclass(frozen=True)
class Sigma:
    c: float | int = 1.0

    def __post_init__(self):
        _check("sigma", self.c)

    def __call__(self, path: AffinePath, t: Array) -> Array:
        return 2 * self.c * path.schedule.sigma(t)


@dataclass(frozen=True)
class Canonical:
    c: float | int = 1.0
    needs_alpha: ClassVar[bool] = True

    def __post_init__(self):
        _check("canonical", self.c)

    def __call__(self, path: AffinePath, t: Array) -> Array:
        return self.c * path.schedule.sigma(t) ** 2 * log_snr_slope(path.schedule, t)


DIFFUSIONS: dict[str, Callable[..., Diffusion]] = {"constant": Constant, "sigma": Sigma, "canonical": Canonical}


def default(path: AffinePath) -> Diffusion:
    """The bridge's own noise; the noising SDE's where alpha(0) > 0; sigma(1) elsewhere, constant(1)
    without a Gaussian.
    """
    if isinstance(path.noise, Bridge):
        return Constant(path.noise.scale)
    if not isinstance(path, GaussianPath):
        return Constant(1.0)
    with jax.ensure_compile_time_eval():
        return Canonical() if float(path.schedule.alpha(0.0)) > 0 else Sigma()
