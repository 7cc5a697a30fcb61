"""Lower bounds on the probabilities of integers (pixels, counts, categories), for bits per dimension.

Models of flowjax have a density p on real numbers, and an integer k is the bin [k, k + 1), or its image in model space
(`bins`). The probability of an example x of integers is the integral of p over its box of bins. It is bounded from
below in two ways:

    dequantisation   noise u in the box, and the density at x + u (`dequantisation`)
    variational      the noise of the path at all times, and how well the model removes it: the chain of DDPM (`chain`)
                     or its limit in continuous time (`continuous`), each with a distribution of the integers at its end
                     (`decoders`)

Bits per dimension are -log P(x) / (D log 2) with the bound in place of log P(x), so they are at least the true ones.
"""

from flowjax.bits.bins import Bins
from flowjax.bits.chain import BoundTerms, chain_bound
from flowjax.bits.continuous import LogSnrDensity, continuous_bound
from flowjax.bits.decoders import log_mass_in_bin, log_posterior_of_bin
from flowjax.bits.dequantisation import (
    Dequantisation,
    Dequantised,
    TruncatedNormal,
    Uniform,
    time_of_truncated_normal,
)

__all__ = [
    "Bins",
    "BoundTerms",
    "Dequantisation",
    "Dequantised",
    "LogSnrDensity",
    "TruncatedNormal",
    "Uniform",
    "chain_bound",
    "continuous_bound",
    "log_mass_in_bin",
    "log_posterior_of_bin",
    "time_of_truncated_normal",
]
