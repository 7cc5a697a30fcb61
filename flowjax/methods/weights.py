"""Loss weights: how much an error counts at each time, apart from where times are drawn and what a network predicts.

An error at (t, x_t) moves the ends along one direction, so the errors of all predictions there are proportional, by
their `Prediction.gain`. A `Weighting` is a factor on the squared error *of one prediction*; on the error of what
the network predicts (its native prediction) it is  factor(t) (gain_of / gain_native)^2. With SNR = alpha^2 / sigma^2:

    uniform(p)      1 on the error of p (SNR on the data's error is `uniform(noise)`; EDM's weight is `uniform(edm(s))`)
    min_snr(g)      min(SNR, g) on the data's error                                 Hang et al. 2023
    sigmoid(b)      sigmoid(b - log SNR) on the noise's error                       Kingma & Gao 2023; Hoogeboom et
    al. 2024
    likelihood      d(log SNR)/dt / 2 on the noise's error: the negative ELBO       Kingma et al. 2021; Song et al.
    2021b
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
        of: the prediction; None for the native prediction of the network, with that prediction's weight.
        factor: (path, t) -> (B,).
        needs_alpha, needs_sigma: whether the factor is infinite where they vanish; times are kept away from there.
    """

    of: Prediction | None = None
    factor: Callable[[AffinePath, Array], Array] = lambda path, t: jnp.ones_like(t)
    needs_alpha: bool = False
    needs_sigma: bool = False

    def __call__(self, path: AffinePath, native: Prediction, t: Array) -> Array:
        """The weight of the squared error of `native` at t, (B,)."""
        if self.of is None:
            return native.weight(path, t)
        if self.of is native:
            return self.factor(path, t)
        return self.factor(path, t) * (self.of.gain(path, t) / native.gain(path, t)) ** 2

    def interval(self, path: AffinePath, native: Prediction) -> tuple[float, float]:
        """The times of training: where both the network's reading and the factor are well conditioned."""
        low, high = native.interval(path)
        ours = well_conditioned(path, self.needs_alpha, self.needs_sigma)
        return max(low, ours[0]), min(high, ours[1])


NATIVE = Weighting()
"""The squared error of what the network predicts, with that prediction's own weight (1, but for the score)."""


def uniform(of: Prediction) -> Weighting:
    """The squared error of `of`, whatever the network predicts."""
    if of.name == "score":
        return Weighting(of, needs_sigma=True)
    return Weighting(of)


def min_snr(gamma: float | int = 5.0) -> Weighting:
    """min(SNR, gamma) on the data's error (Hang et al. 2023)."""
    if not gamma > 0:
        raise ValueError(f"min_snr: gamma must be positive, not {gamma}")
    cap = jnp.log(jnp.float32(gamma))
    return Weighting(data, lambda path, t: jnp.exp(jnp.minimum(path.schedule.log_snr(t), cap)))


def sigmoid(bias: float | int = 0.0) -> Weighting:
    """sigmoid(bias - log SNR) d(log SNR)/dt / 2 on the noise's error: an integral over log-SNR, the same for every
    schedule (Kingma & Gao 2023).

    Hoogeboom et al. 2024 (SiD2) weight the data's error with exp(bias) sigmoid(log SNR - bias) d(log SNR)/dt / 2. The
    data's error is the noise's divided by SNR, and SNR sigmoid(bias - log SNR) = exp(bias) sigmoid(log SNR - bias), so
    that is the same weight with the same sign of the bias; theirs are negative, -3 for example.
    """
    if isinstance(bias, str):
        raise TypeError("sigmoid: the bias must be a number")

    def factor(path: AffinePath, t: Array) -> Array:
        return 0.5 * jax.nn.sigmoid(bias - path.schedule.log_snr(t)) * log_snr_slope(path.schedule, t)

    return Weighting(noise, factor, needs_alpha=True, needs_sigma=True)


def likelihood() -> Weighting:
    """d(log SNR)/dt / 2 on the noise's error: its integral is the negative ELBO in nats, up to a constant.

    The same as g^2 / 2 on the score's error, with g the diffusion of the noising SDE (Song et al. 2021b, theorem 1).
    """
    return Weighting(noise, lambda path, t: 0.5 * log_snr_slope(path.schedule, t), needs_alpha=True, needs_sigma=True)
