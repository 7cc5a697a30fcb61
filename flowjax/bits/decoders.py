"""The distributions of integers given the last sample of a diffusion: the last terms of variational bounds.

Each coordinate has the bins of `flowjax.bits.Bins` with centres c_k and width w. Where the number of integers is known,
as of pixels, the bins of the smallest and of the largest integer extend to infinity.

    (1)  p(k | x) = Phi((c_k + w/2 - m) / s) - Phi((c_k - w/2 - m) / s)          the mass of N(m, s^2) in the bin
    (2)  p(k | z) proportional to exp(-(z - c_k)^2 / (2 s^2))                    given z = c_k + s e

(1) is the discretised last step of DDPM, with the mean m that the network predicts (Ho et al. 2020, arXiv:2006.11239,
eq. 13). (2) is the posterior of an integer given z, if all integers have the same probability; the network is not used
(Kingma et al. 2021, arXiv:2107.00630, sec. 3.2).
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.special import log_ndtr
from jaxtyping import Array, Float

from flowjax.bits.bins import Bins
from flowjax.sources import sum_event
from flowjax.typing import Batched

__all__ = ["log_mass_in_bin", "log_posterior_of_bin"]

_FAR = 12.0
"""The distance in standard deviations from which on terms of a sum over bins are left out: exp(-72) of the largest."""


def log_mass_in_bin(mean: Batched, std: Float[Array, "..."], edges: Batched, bins: Bins) -> Float[Array, " B"]:
    """The logarithm of (1), summed over the coordinates, in nats.

    Args:
        mean: m, (B, *event).
        std: s, which broadcasts against the mean.
        edges: the lower edges of the bins of the integers, (B, *event).
        bins: the bins.
    """
    low, high = (edges - mean) / std, (edges + bins.width - mean) / std
    if bins.levels:
        index = bins.index(bins.centres(edges))
        low = jnp.where(index <= 0, -jnp.inf, low)
        high = jnp.where(index >= bins.levels - 1, jnp.inf, high)
    # Phi(high) - Phi(low) is the same for (-high, -low): the differences are taken where both are small
    flipped = low > -high
    low, high = jnp.where(flipped, -high, low), jnp.where(flipped, -low, high)
    upper, lower = log_ndtr(high), log_ndtr(low)
    return sum_event(upper + jnp.log(-jnp.expm1(jnp.minimum(lower - upper, -1e-37))))


def log_posterior_of_bin(
    z: Batched, std: float | Float[Array, ""], edges: Batched, bins: Bins, largest: float | None = None
) -> Float[Array, " B"]:
    """The logarithm of (2), summed over the coordinates, in nats.

    The sum over the integers takes those within 12 standard deviations of the nearest one.

    Args:
        z: the last sample, in the units of the data, (B, *event).
        std: s, a plain number, or an array with `largest`.
        edges: the lower edges of the bins of the integers, (B, *event).
        bins: the bins; all entries are integers.
        largest: a number that s does not exceed; None for s itself.
    """
    reach = math.ceil(_FAR * (float(std) if largest is None else largest) / bins.smallest) + 1
    centres = bins.centres(edges)
    # Integers are numbered from that of the row itself, whose centre is known, and which has the number 0
    position, scale = (z - centres) / bins.width, std / bins.width
    nearest, first, last = jnp.round(position), -jnp.inf, jnp.inf
    if bins.levels:
        reach = min(reach, bins.levels - 1)
        first = -bins.index(centres)
        last = first + bins.levels - 1
        nearest = jnp.clip(nearest, first, last)
    exponent = lambda number: -0.5 * ((position - number) / scale) ** 2

    def add(total: Batched, offset: Array) -> tuple[Batched, None]:
        number = nearest + offset
        term = jnp.where((number >= first) & (number <= last), exponent(number), -jnp.inf)
        return jnp.logaddexp(total, term), None

    total, _ = jax.lax.scan(add, jnp.full_like(z, -jnp.inf), jnp.arange(-reach, reach + 1, dtype=z.dtype))
    return sum_event(exponent(0.0) - total)
