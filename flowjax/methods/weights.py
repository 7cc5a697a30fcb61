"""Loss weights as functions of time, independent of the distribution of times and of what the network predicts.

At fixed (t, x_t) the errors of all predictions are proportional to each other, with the factors `Prediction.gain`. A
`Weighting` multiplies the squared error of one prediction by factor(t). For a network that predicts something else (its
native prediction), the weight of the network's squared error is  factor(t) (gain_of / gain_native)^2.

These are the weights of the squared errors, with SNR = alpha^2 / sigma^2:

    uniform(p)    1 on the error of p. `uniform(noise)` is SNR on the error of the data, and `uniform(edm(s))` is the
                  weight of EDM (Karras et al. 2022, arXiv:2206.00364)
    min_snr(g)    min(SNR, g) on the error of the data (Hang et al. 2023, arXiv:2303.09556)
    sigmoid(b)    sigmoid(b - log SNR) d(log SNR)/dt / 2 on the error of the noise (Kingma & Gao 2023, arXiv:2303.00848;
                  Hoogeboom et al. 2024, arXiv:2410.19324)
    likelihood    d(log SNR)/dt / 2 on the error of the noise, which gives the negative ELBO (Kingma et al. 2021,
                  arXiv:2107.00630; Song et al. 2021, arXiv:2101.09258)
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from flowjax.paths.affine import AffinePath
from flowjax.predictions import Prediction, data, noise, well_conditioned
from flowjax.schedules.base import log_snr_slope
from flowjax.typing import Array

__all__ = ["NATIVE", "Weighting", "likelihood", "min_snr", "sigmoid", "uniform"]


@dataclass(frozen=True)
class Weighting:
    """A factor on the squared error of one prediction.

    Attributes:
        of: the prediction; None for the prediction of the network with its default weight, `Prediction.weight`.
        factor: `factor(path, t) -> (B,)`; it is not used if `of` is None.
        needs_alpha, needs_sigma: whether the factor is infinite where alpha or sigma is 0. Training times exclude a
            neighbourhood of these times.
    """

    of: Prediction | None = None
    factor: Callable[[AffinePath, Array], Array] = lambda path, t: jnp.ones_like(t)
    needs_alpha: bool = False
    needs_sigma: bool = False

    def __call__(self, path: AffinePath, native: Prediction, t: Array) -> Array:
        """Returns the weight of the squared error of a network that predicts `native`, at times t, (B,)."""
        if self.of is None:
            return native.weight(path, t)
        if self.of is native:
            return self.factor(path, t)
        return self.factor(path, t) * (self.of.gain(path, t) / native.gain(path, t)) ** 2

    def interval(self, path: AffinePath, native: Prediction) -> tuple[float, float]:
        """Returns the interval of training times, on which both the prediction and the factor are well conditioned."""
        low, high = native.interval(path)
        smallest, largest = well_conditioned(path, self.needs_alpha, self.needs_sigma)
        return max(low, smallest), min(high, largest)


NATIVE = Weighting()
"""The default weight of the network's prediction: 1, except for the score."""


def uniform(of: Prediction) -> Weighting:
    """The squared error of the prediction `of`, whatever the network predicts."""
    return Weighting(of, needs_sigma=of.gain_needs_sigma)


def min_snr(gamma: float | int = 5.0) -> Weighting:
    """min(SNR, gamma) on the error of the data (Hang et al. 2023, arXiv:2303.09556).

    Raises:
        ValueError: if gamma is not positive.
    """
    if not gamma > 0:
        raise ValueError(f"min_snr: gamma must be positive, not {gamma}")
    cap = jnp.log(jnp.float32(gamma))
    return Weighting(data, lambda path, t: jnp.exp(jnp.minimum(path.schedule.log_snr(t), cap)))


def sigmoid(bias: float | int = 0.0) -> Weighting:
    """sigmoid(bias - log SNR) d(log SNR)/dt / 2 on the error of the noise.

    The loss is an integral over log SNR that does not depend on the schedule (Kingma & Gao 2023, arXiv:2303.00848).

    Hoogeboom et al. 2024 (SiD2, arXiv:2410.19324) use the weight exp(bias) sigmoid(log SNR - bias) d(log SNR)/dt / 2 on
    the error of the data. Because the squared error of the noise is SNR times the squared error of the data, and
    SNR sigmoid(bias - log SNR) = exp(bias) sigmoid(log SNR - bias), the two weights are the same, with the same bias.
    Their biases are negative, for example -3.

    Raises:
        TypeError: if the bias is a string.
    """
    if isinstance(bias, str):
        raise TypeError(f"sigmoid: the bias must be a number, not {bias!r}")

    def factor(path: AffinePath, t: Array) -> Array:
        return 0.5 * jax.nn.sigmoid(bias - path.schedule.log_snr(t)) * log_snr_slope(path.schedule, t)

    return Weighting(noise, factor, needs_alpha=True, needs_sigma=True)


def likelihood() -> Weighting:
    """d(log SNR)/dt / 2 on the error of the noise.

    The integral of the loss over t is the negative ELBO in nats, up to a constant. The same weight is g^2 / 2 on the
    error of the score, with g the diffusion coefficient of the noising SDE (Song et al. 2021, arXiv:2101.09258,
    theorem 1). The times `uniform_log_snr` have its density, and reduce its variance.
    """
    return Weighting(noise, lambda path, t: 0.5 * log_snr_slope(path.schedule, t), needs_alpha=True, needs_sigma=True)
