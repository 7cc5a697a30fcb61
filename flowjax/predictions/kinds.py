"""Predictions: the quantities that a network can be trained to output, and the conversions between them.

All conversions go through `Ends`, the posterior means (E[x0 | x_t], E[x1 | x_t], and E[z | x_t] if the path has noise).
A prediction defines its regression target (`target`) and the conversions from its value to the ends (`to_ends`) and
back (`from_ends`). On an affine path x_t = alpha x1 + sigma x0, with primes for time derivatives:

    velocity   v = alpha' x1 + sigma' x0        x1 = (sigma' x_t - sigma v) / d,   x0 = (alpha v - alpha' x_t) / d
                                                with d = alpha sigma' - sigma alpha'
    noise      x0                               x1 = (x_t - sigma x0) / alpha       singular where alpha = 0
    data       x1                               x0 = (x_t - alpha x1) / sigma       singular where sigma = 0
    score      -x0 / sigma                      as noise, with x0 = -sigma score    singular where either is 0
    v          alpha x0 - sigma x1              x1 = (alpha x_t - sigma v) / m,     x0 = (sigma x_t + alpha v) / m
                                                with m = alpha^2 + sigma^2 (Salimans & Ho 2022)
    edm        F = (sigma x1 - s^2 alpha x0) / (s n)     x1 = (s^2 alpha x_t + sigma s n F) / n^2,
                                                x0 = (sigma x_t - s alpha n F) / n^2, with n^2 = sigma^2 + s^2 alpha^2:
                                                c_skip x + c_out F of Karras et al. 2022, table 1, for data of std s

Where a conversion is singular, training and solving are restricted to the times at which the vanishing coefficient is
at least a thousandth of the other one (`Prediction.interval`).

On a path with noise, x_t and v give two equations for the three unknown posterior means. A `velocity` network then
determines the probability-flow ODE but no score, and `to_ends` returns the ends of the noiseless path with the same
velocity. A `velocity_score` network has a second head for E[z | x_t] = -gamma score and determines all three means.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from flowjax.abilities import Ends
from flowjax.paths.affine import AffinePath
from flowjax.paths.base import PathSample
from flowjax.typing import Array, Batched, Cond, Output, Time

__all__ = [
    "Denoiser",
    "Prediction",
    "data",
    "edm",
    "noise",
    "noise_variance",
    "score",
    "v",
    "velocity",
    "velocity_score",
    "well_conditioned",
]

_SMALLEST_RATIO = 1e-3


Denoiser = Callable[[Time, Batched, Cond], Ends]
"""A function `denoiser(t, x, cond) -> Ends`, which `flowjax.predictions.model` turns into a model."""


def _unit_inputs(path: AffinePath, t: Time, x: Batched) -> Batched:
    """x divided by sqrt(alpha^2 + sigma^2) where that is above 1, as on the VE and EDM schedules."""
    r = path.rates(t, x)
    return x / jnp.sqrt(jnp.maximum(r.alpha**2 + r.sigma**2, 1.0))


@dataclass(frozen=True)
class Prediction:
    """One parametrisation of the network's output.

    Attributes:
        name: the name in configs.
        target: (path, sample) -> the regression target, (B, *event); with several heads, joined along the last axis.
        to_ends: (path, t, x, output) -> Ends.
        from_ends: (path, t, x, ends) -> output. Linear in (x, ends).
        to_velocity: (path, t, x, output) -> velocity, if the output contains the velocity. If None, the velocity is
            computed from the ends.
        inputs: (path, t, x) -> the rescaled x that is passed to the network.
        needs_alpha, needs_sigma: whether `to_ends` or `target` divides by alpha or by sigma.
        weight: (path, t) -> the weight of the squared error that keeps the loss of order one; same shape as t.
        gaussian_only: whether the prediction requires a source N(0, I) that is independent of the data.
        noise: whether noise on the path is "refused", "allowed" or "required".
        heads: the number of outputs of the event's shape, joined along the last axis.
        learns_variance: whether the ends have a `variance_fraction`, which only the variational bound trains.
        gain_needs_sigma: whether `gain` is infinite where sigma is 0.
    """

    name: str
    target: Callable[[AffinePath, PathSample], Output]
    to_ends: Callable[[AffinePath, Time, Batched, Output], Ends]
    from_ends: Callable[[AffinePath, Time, Batched, Ends], Output]
    to_velocity: Callable[[AffinePath, Time, Batched, Output], Batched] | None = None
    inputs: Callable[[AffinePath, Time, Batched], Batched] = _unit_inputs
    needs_alpha: bool = False
    needs_sigma: bool = False
    gaussian_only: bool = False
    noise: str = "refused"
    heads: int = 1
    weight: Callable[[AffinePath, Time], Array] = lambda path, t: jnp.ones_like(jnp.asarray(t, jnp.float32))
    learns_variance: bool = False
    gain_needs_sigma: bool = False

    def interval(self, path: AffinePath) -> tuple[float, float]:
        """The part of the path's time interval (t_min, t_max) on which `to_ends` is well conditioned."""
        return well_conditioned(path, self.needs_alpha, self.needs_sigma)

    def gain(self, path: AffinePath, t: Array) -> Array:
        """The change of this prediction when the ends change by (x0, x1) += (-alpha, sigma), which keeps x_t fixed.

        At equal (t, x), the errors of two predictions have the ratio of their gains. A loss weight for one prediction
        is therefore converted into a weight for another by the squared ratio of the gains.

        Args:
            path: the path.
            t: times, of any shape.

        Returns:
            The gains, with the shape of t.

        Raises:
            ValueError: if the prediction has several heads, whose errors have no common scale.
        """
        if self.heads > 1:
            raise ValueError(
                f"prediction {self.name!r} has {self.heads} heads, whose errors have different scales: only uniform "
                "weighting is possible"
            )
        column = t.reshape(-1, 1)
        a, s, _, _ = path.rates(column[:, 0], column)
        moved = self.from_ends(path, column[:, 0], jnp.zeros_like(column), Ends(-a, s))
        return moved[:, 0].reshape(t.shape)


def well_conditioned(path: AffinePath, alpha: bool = False, sigma: bool = False) -> tuple[float, float]:
    """The path's time interval without the times at which a coefficient is too small to divide by.

    Args:
        path: the path.
        alpha: whether to leave out the times at which alpha is below a thousandth of sigma.
        sigma: whether to leave out the times at which sigma is below a thousandth of alpha.

    Returns:
        The first and the last time of the interval.
    """
    edge = 2 * math.log(_SMALLEST_RATIO)
    low, high = path.t_min, path.t_max
    with jax.ensure_compile_time_eval():
        if alpha:
            low = max(low, float(path.schedule.time_of_log_snr(edge)))
        if sigma:
            high = min(high, float(path.schedule.time_of_log_snr(-edge)))
    return low, high


def _velocity_to_ends(path: AffinePath, t: Time, x: Batched, v: Batched) -> Ends:
    a, s, da, ds = path.rates(t, x)
    d = a * ds - s * da
    return Ends((a * v - da * x) / d, (ds * x - s * v) / d)


def _velocity_from_ends(path: AffinePath, t: Time, x: Batched, ends: Ends) -> Batched:
    _, _, da, ds = path.rates(t, x)
    v = da * ends.x1 + ds * ends.x0
    return v if ends.z is None else v + path.noise_rates(t, x).dgamma * ends.z


def _noise_to_ends(path: AffinePath, t: Time, x: Batched, x0: Batched) -> Ends:
    a, s, _, _ = path.rates(t, x)
    return Ends(x0, (x - s * x0) / a)


def _data_to_ends(path: AffinePath, t: Time, x: Batched, x1: Batched) -> Ends:
    a, s, _, _ = path.rates(t, x)
    return Ends((x - a * x1) / s, x1)


def _score_to_ends(path: AffinePath, t: Time, x: Batched, score: Batched) -> Ends:
    return _noise_to_ends(path, t, x, -path.rates(t, x).sigma * score)


def _score_from_ends(path: AffinePath, t: Time, x: Batched, ends: Ends) -> Batched:
    return -ends.x0 / path.rates(t, x).sigma


def _v_to_ends(path: AffinePath, t: Time, x: Batched, v: Batched) -> Ends:
    a, s, _, _ = path.rates(t, x)
    m = a**2 + s**2
    return Ends((s * x + a * v) / m, (a * x - s * v) / m)


def _v_from_ends(path: AffinePath, t: Time, x: Batched, ends: Ends) -> Batched:
    a, s, _, _ = path.rates(t, x)
    return a * ends.x0 - s * ends.x1


def _velocity_score_to_ends(path: AffinePath, t: Time, x: Batched, output: Output) -> Ends:
    v, z = jnp.split(output, 2, -1)
    g, dg = path.noise_rates(t, x)
    return _velocity_to_ends(path, t, x - g * z, v - dg * z)._replace(z=z)


def _velocity_score_from_ends(path: AffinePath, t: Time, x: Batched, ends: Ends) -> Output:
    z = jnp.zeros_like(ends.x0) if ends.z is None else ends.z
    return jnp.concatenate([_velocity_from_ends(path, t, x, ends), z], -1)


velocity = Prediction(
    "velocity",
    target=lambda path, p: p.dx_t,
    to_ends=_velocity_to_ends,
    from_ends=_velocity_from_ends,
    to_velocity=lambda path, t, x, output: output,
    noise="allowed",
)
"""The velocity of the path, as in flow matching (Lipman et al. 2023, arXiv:2210.02747)."""

noise = Prediction(
    "noise",
    target=lambda path, p: p.x0,
    to_ends=_noise_to_ends,
    from_ends=lambda path, t, x, ends: ends.x0,
    needs_alpha=True,
    gaussian_only=True,
)
"""The noise x0, as in DDPM (Ho et al. 2020, arXiv:2006.11239)."""

data = Prediction(
    "data",
    target=lambda path, p: p.x1,
    to_ends=_data_to_ends,
    from_ends=lambda path, t, x, ends: ends.x1,
    needs_sigma=True,
)
"""The clean data x1; the network is a denoiser."""

score = Prediction(
    "score",
    target=lambda path, p: -p.x0 / path.rates(p.t, p.x0).sigma,
    to_ends=_score_to_ends,
    from_ends=_score_from_ends,
    needs_alpha=True,
    needs_sigma=True,
    gaussian_only=True,
    weight=lambda path, t: path.schedule.sigma(t) ** 2,
    gain_needs_sigma=True,
)
"""The score of p_t with loss weight sigma^2: denoising score matching (Vincent 2011; Song et al. 2021,
arXiv:2011.13456)."""

v = Prediction(
    "v",
    target=lambda path, p: _v_from_ends(path, p.t, p.x_t, Ends(p.x0, p.x1)),
    to_ends=_v_to_ends,
    from_ends=_v_from_ends,
)
"""v = alpha x0 - sigma x1 (Salimans & Ho 2022, arXiv:2202.00512), which is well conditioned at all times of every
schedule. On the cosine schedule the velocity is -pi / 2 times v."""

velocity_score = Prediction(
    "velocity_score",
    target=lambda path, p: jnp.concatenate([p.dx_t, p.x0 if p.z is None else p.z], -1),
    to_ends=_velocity_score_to_ends,
    from_ends=_velocity_score_from_ends,
    to_velocity=lambda path, t, x, output: jnp.split(output, 2, -1)[0],
    noise="required",
    heads=2,
)
"""The velocity and E[z | x_t] = -gamma score, joined along the last axis, as in SF2M (Tong et al. 2024,
arXiv:2307.03672) and stochastic interpolants (Albergo et al. 2023, arXiv:2303.08797)."""


def _noise_variance_to_ends(path: AffinePath, t: Time, x: Batched, output: Output) -> Ends:
    eps, raw = jnp.split(output, 2, -1)
    return _noise_to_ends(path, t, x, eps)._replace(variance_fraction=(raw + 1) / 2)


def _noise_variance_from_ends(path: AffinePath, t: Time, x: Batched, ends: Ends) -> Output:
    variance_fraction = jnp.zeros_like(ends.x0) if ends.variance_fraction is None else ends.variance_fraction
    return jnp.concatenate([ends.x0, 2 * variance_fraction - 1], -1)


noise_variance = Prediction(
    "noise_variance",
    target=lambda path, p: jnp.concatenate([p.x0, -jnp.ones_like(p.x0)], -1),
    to_ends=_noise_variance_to_ends,
    from_ends=_noise_variance_from_ends,
    needs_alpha=True,
    gaussian_only=True,
    heads=2,
    learns_variance=True,
)
"""The noise and, joined along the last axis, the log-variance of an ancestral step, scaled so that its lower bound is
-1 and its upper bound is 1 (Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15). `flowjax.methods.variational` trains the
variance head."""


def edm(sigma_data: float | int = 0.5) -> Prediction:
    """EDM's preconditioned network output F (Karras et al. 2022, arXiv:2206.00364, table 1), well conditioned at all t.

    Args:
        sigma_data: the standard deviation of the data, positive. For such data F has unit variance.

    Returns:
        The prediction. Its network receives x / n with n^2 = sigma^2 + sigma_data^2 alpha^2, which is c_in x in EDM.

    Raises:
        ValueError: if sigma_data is not positive.
    """
    if not sigma_data > 0:
        raise ValueError(f"edm: sigma_data must be positive, not {sigma_data}")

    def scales(path: AffinePath, t: Time, x: Batched) -> tuple[Array, Array, Array]:
        a, s, _, _ = path.rates(t, x)
        return a, s, jnp.sqrt(s**2 + (sigma_data * a) ** 2)

    def to_ends(path: AffinePath, t: Time, x: Batched, f: Batched) -> Ends:
        a, s, n = scales(path, t, x)
        x1 = (sigma_data**2 * a * x + s * sigma_data * n * f) / n**2
        return Ends((s * x - sigma_data * a * n * f) / n**2, x1)

    def from_ends(path: AffinePath, t: Time, x: Batched, ends: Ends) -> Batched:
        a, s, n = scales(path, t, x)
        return (s * ends.x1 - sigma_data**2 * a * ends.x0) / (sigma_data * n)

    return Prediction(
        "edm",
        target=lambda path, p: from_ends(path, p.t, p.x_t, Ends(p.x0, p.x1)),
        to_ends=to_ends,
        from_ends=from_ends,
        inputs=lambda path, t, x: x / scales(path, t, x)[2],
    )
