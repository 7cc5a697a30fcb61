"""Predictions: what a network's output means, as a way to the ends of the path and back.

The pivot is `Ends`, the posterior means (E[x0 | x_t], E[x1 | x_t], and E[z | x_t] where the path has noise). Each
prediction says what to regress (`target`), how its optimum reads as ends (`to_ends`) and how ends read as it
(`from_ends`); conversions between any two go through the ends, so there are none written by pairs. On an affine path
x_t = alpha x1 + sigma x0, with primes for time derivatives:

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

A singular prediction narrows the interval of training and solving to where the vanishing coefficient is at least a
thousandth of the other (`Prediction.interval`).

On a path with noise, (x_t, v) are two equations for three unknowns. A `velocity` network alone gives the velocity,
hence the ODE; its ends are those of the noiseless path with the same velocity, and there is no score.
`velocity_score` has a second head for E[z | x_t] = -gamma score, and determines all.
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
"""`denoiser(t, x, cond) -> Ends`: a plain function, which `flowjax.predictions.model` makes a model."""


def _unit_inputs(path: AffinePath, t: Time, x: Batched) -> Batched:
    """x, brought back to order one where the schedule makes it larger (VE, EDM)."""
    r = path.rates(t, x)
    return x / jnp.sqrt(jnp.maximum(r.alpha**2 + r.sigma**2, 1.0))


@dataclass(frozen=True)
class Prediction:
    """One parametrisation of the network's output.

    Attributes:
        name: as in configs.
        target: (path, sample) -> what the network regresses, (B, *event).
        to_ends: (path, t, x, output) -> Ends.
        from_ends: (path, t, x, ends) -> output. Linear in (x, ends).
        to_velocity: (path, t, x, output) -> the velocity, where the output holds it; None: it follows from the ends.
        inputs: (path, t, x) -> what the network sees of x.
        needs_alpha, needs_sigma: whether the reading divides by alpha, by sigma.
        weight: (path, t) -> the weight of the squared error, shaped as t, that keeps the loss of order one.
        gaussian_only: whether it means anything only for a source N(0, I) independent of the data.
        noise: whether the path's own noise is "refused", "allowed" or "required".
        heads: outputs of the event's shape, side by side in the last axis.
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

    def interval(self, path: AffinePath) -> tuple[float, float]:
        """The path's own interval, narrowed to where this reading is well conditioned."""
        return well_conditioned(path, self.needs_alpha, self.needs_sigma)

    def gain(self, path: AffinePath, t: Array) -> Array:
        """How this prediction moves when the ends move at fixed x_t by (x0, x1) += (-alpha, sigma); shaped as t.

        Errors of two predictions at one (t, x) stand in the ratio of their gains: what turns a weight on one into a
        weight on another.
        """
        if self.heads > 1:
            raise ValueError(f"{self.name} has {self.heads} heads, so its error has no one scale: weight it uniformly")
        column = t.reshape(-1, 1)
        a, s, _, _ = path.rates(column[:, 0], column)
        moved = self.from_ends(path, column[:, 0], jnp.zeros_like(column), Ends(-a, s))
        return moved[:, 0].reshape(t.shape)


def well_conditioned(path: AffinePath, alpha: bool = False, sigma: bool = False) -> tuple[float, float]:
    """The path's interval without the times at which alpha (sigma) is below a thousandth of the other."""
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
"""The velocity of the path: flow matching proper (Lipman et al. 2023)."""

noise = Prediction(
    "noise",
    target=lambda path, p: p.x0,
    to_ends=_noise_to_ends,
    from_ends=lambda path, t, x, ends: ends.x0,
    needs_alpha=True,
    gaussian_only=True,
)
"""The noise, as in DDPM (Ho et al. 2020)."""

data = Prediction(
    "data",
    target=lambda path, p: p.x1,
    to_ends=_data_to_ends,
    from_ends=lambda path, t, x, ends: ends.x1,
    needs_sigma=True,
)
"""The clean data: a denoiser in the plain sense."""

score = Prediction(
    "score",
    target=lambda path, p: -p.x0 / path.rates(p.t, p.x0).sigma,
    to_ends=_score_to_ends,
    from_ends=_score_from_ends,
    needs_alpha=True,
    needs_sigma=True,
    gaussian_only=True,
    weight=lambda path, t: path.schedule.sigma(t) ** 2,
)
"""The score of p_t, weighted by sigma^2: denoising score matching (Vincent 2011; Song et al. 2021)."""

v = Prediction(
    "v",
    target=lambda path, p: _v_from_ends(path, p.t, p.x_t, Ends(p.x0, p.x1)),
    to_ends=_v_to_ends,
    from_ends=_v_from_ends,
)
"""alpha x0 - sigma x1 (Salimans & Ho 2022): the velocity of the cosine schedule up to -pi / 2, well conditioned on
all."""

velocity_score = Prediction(
    "velocity_score",
    target=lambda path, p: jnp.concatenate([p.dx_t, p.x0 if p.z is None else p.z], -1),
    to_ends=_velocity_score_to_ends,
    from_ends=_velocity_score_from_ends,
    to_velocity=lambda path, t, x, output: jnp.split(output, 2, -1)[0],
    noise="required",
    heads=2,
)
"""The velocity, and E[z | x_t] = -gamma score, side by side: SF2M (Tong et al. 2024), stochastic interpolants."""


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
)
"""The noise and, side by side, the variance of an ancestral step between its bounds -1 and 1 (Nichol & Dhariwal 2021,
eq. 15); trained by `flowjax.methods.variational`."""


def edm(sigma_data: float | int = 0.5) -> Prediction:
    """EDM's preconditioned F for data of standard deviation `sigma_data` (Karras et al. 2022, table 1).

    The network sees x / n (c_in in the paper's scale); F has unit variance for such data. Defined at all t.
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
