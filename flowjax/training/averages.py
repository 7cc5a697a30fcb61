"""Moving averages of the parameters: one with exponential weights, and several with power-function profiles.

The power-function profile at time t weights the parameters of time s in [0, t] by (gamma + 1) s^gamma / t^(gamma + 1).
Its width grows in proportion to t. An average is named by sigma_rel, the standard deviation of its profile divided by
t. After training, averages of other widths can be reconstructed from snapshots of two tracked ones
(`training.snapshots`; Karras et al. 2024, arXiv 2312.02696, section 3 and appendix C).

The weights depend only on ratios of times, so time may be counted in optimizer steps or in samples. The tracked average
is exactly the integral of its profile over parameters that are constant between steps.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flowjax.typing import Params

__all__ = [
    "MAX_SIGMA_REL",
    "beta",
    "ema_decay",
    "gamma_of",
    "init_power",
    "rate",
    "sigma_rel",
    "update_ema",
    "update_power",
]

MAX_SIGMA_REL = 12**-0.5
"""The largest sigma_rel, reached at gamma = 0, where the average is the plain mean over the run."""

_RAMP = 0.05
"""The half-life in `ema_decay` is at most this fraction of the samples seen so far."""


def ema_decay(half_life: float, batch_size: int, step: Int[Array, ""]) -> Float[Array, ""]:
    """The factor that multiplies the old exponential average after optimizer step `step`.

    The half-life is at most 5% of the samples seen so far, so that the average forgets the initial parameters (Karras
    et al. 2022, arXiv 2206.00364, appendix F.2).

    Args:
        half_life: in samples, which makes it independent of the batch size; 0 switches the average off.
        batch_size: samples per step.
        step: number of steps taken, counted from 1.

    Returns:
        The decay, a float32 scalar in [0, 1).
    """
    seen = step * float(batch_size)
    ramped = jnp.minimum(half_life, _RAMP * seen)
    return jnp.where(ramped > 0, 0.5 ** (batch_size / jnp.maximum(ramped, 1e-9)), 0.0)


def update_ema(ema: Params, params: Params, factor: Float[Array, ""]) -> Params:
    """Returns factor * ema + (1 - factor) * params.

    It is computed as one product, unlike in `optax.incremental_update`, which adds two products: the last bit of the
    result differed for 49% of 100,000 normal numbers.
    """
    return jax.tree.map(lambda old, new: new + factor.astype(new.dtype) * (old - new), ema, params)


def sigma_rel(gamma: float) -> float:
    """The standard deviation of the profile over the length of the run, sqrt((g + 1) / ((g + 2)^2 (g + 3))).

    This is eq. 123 of Karras et al. 2024, with g = gamma.
    """
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_of(sigma_rel: float) -> float:
    """The exponent gamma of the profile with this width, the inverse of the function `sigma_rel`.

    It is the largest root g of (g + 2)^2 (g + 3) = (g + 1) / sigma_rel^2, in closed form.

    Args:
        sigma_rel: the width, in (0, 12^-1/2]. A wider profile would give the start of the run the most weight.

    Raises:
        ValueError: if the width is outside that interval.
    """
    if not 0 < sigma_rel <= MAX_SIGMA_REL * (1 + 1e-12):
        raise ValueError(f"sigma_rel must be in (0, {MAX_SIGMA_REL:.4f}], not {sigma_rel}")
    # With h = g + 2 and p = 1 / sigma_rel^2 the equation is h^3 + h^2 - p h + p = 0. The substitution h = y - 1/3
    # removes the quadratic term and leaves a cubic with three real roots, which has a trigonometric solution.
    p = sigma_rel**-2
    a, b = p + 1 / 3, 2 / 27 + 4 * p / 3
    angle = math.acos(max(-1.0, -b / 2 * (3 / a) ** 1.5)) / 3
    return max(0.0, 2 * math.sqrt(a / 3) * math.cos(angle) - 7 / 3)


def rate(gamma: float, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """The weight 1 - beta of the new parameters in the average after step `step`, counted from 1.

    It is computed without forming beta: float32 would round beta to a relative error of 3e-3 in 1 - beta after a
    million steps. The rate is 1 at the first step.
    """
    return -jnp.expm1((gamma + 1) * jnp.log1p(-1 / jnp.asarray(step, jnp.float32)))


def beta(gamma: float, step: Int[Array, ""] | int) -> Float[Array, ""]:
    """The factor (1 - 1 / step)^(gamma + 1) that multiplies the old average (Karras et al. 2024, eq. 127)."""
    return 1 - rate(gamma, step)


def init_power(params: Params, count: int) -> tuple[Params, ...]:
    """Returns `count` copies of the parameters, the averages at step 0."""
    return tuple(jax.tree.map(jnp.copy, params) for _ in range(count))


def update_power(
    averages: tuple[Params, ...], params: Params, gammas: tuple[float, ...], step: Int[Array, ""] | int
) -> tuple[Params, ...]:
    """Updates the power-function averages after an optimizer step.

    Args:
        averages: one tree of parameters for each entry of `gammas`.
        params: the parameters after the step.
        gammas: the exponents of the profiles, from `gamma_of`.
        step: number of steps taken, counted from 1. All batches must have the same size.

    Returns:
        The new averages, in the same order.
    """

    def one(average: Params, gamma: float) -> Params:
        # unlike beta * old + rate * new, this keeps all digits of a rate far below the spacing of float32 around beta
        weight = rate(gamma, step)
        return jax.tree.map(lambda old, new: old + weight.astype(old.dtype) * (new - old), average, params)

    return tuple(one(average, gamma) for average, gamma in zip(averages, gammas, strict=True))
