"""Predictions: what a network's output means, as a way to the ends of the path and back.

The pivot is `Ends`, the posterior means (E[x0 | x_t], E[x1 | x_t]). Each prediction says what to regress (`target`),
how its optimum reads as ends (`to_ends`) and how ends read as it (`from_ends`); conversions between any two go
through the ends, so there are none written by pairs. On an affine path x_t = alpha x1 + sigma x0, with primes for
time derivatives:

    velocity   v = alpha' x1 + sigma' x0        x1 = (sigma' x_t - sigma v) / d,   x0 = (alpha v - alpha' x_t) / d
                                                with d = alpha sigma' - sigma alpha'
    noise      x0                               x1 = (x_t - sigma x0) / alpha       singular where alpha = 0
    data       x1                               x0 = (x_t - alpha x1) / sigma       singular where sigma = 0
    score      -x0 / sigma                      as noise, with x0 = -sigma score    singular where either is 0

A singular prediction narrows the interval of training and solving to where the vanishing coefficient is at least a
thousandth of the other (`Prediction.interval`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flowjax.paths.affine import AffinePath
from flowjax.paths.base import PathSample
from flowjax.typing import Apply, Array, Batched, Cond, Field, Time

_SMALLEST_RATIO = 1e-3


class Ends(NamedTuple):
    """Posterior means of both ends of the path at (t, x): E[x0 | x_t = x], E[x1 | x_t = x], each (B, *event)."""

    x0: Batched
    x1: Batched


Denoiser = Callable[[Time, Batched, Cond], Ends]
"""`denoiser(t, x, cond) -> Ends`."""


@dataclass(frozen=True)
class Prediction:
    """One parametrisation of the network's output.

    Attributes:
        name: as in configs.
        target: (path, sample) -> what the network regresses, (B, *event).
        to_ends: (path, t, x, output) -> Ends.
        from_ends: (path, t, x, ends) -> output.
        needs_alpha, needs_sigma: whether the reading divides by alpha, by sigma.
        weight: (path, t) -> the weight of the squared error, shaped as t, that keeps the loss of order one.
        gaussian_only: whether it means anything only for a source N(0, I) independent of the data.
    """

    name: str
    target: Callable[[AffinePath, PathSample], Batched]
    to_ends: Callable[[AffinePath, Time, Batched, Batched], Ends]
    from_ends: Callable[[AffinePath, Time, Batched, Ends], Batched]
    needs_alpha: bool = False
    needs_sigma: bool = False
    gaussian_only: bool = False
    weight: Callable[[AffinePath, Time], Array] = lambda path, t: jnp.ones_like(jnp.asarray(t, jnp.float32))

    def interval(self, path: AffinePath) -> tuple[float, float]:
        """The path's own interval, narrowed to where this reading is well conditioned."""
        edge = 2 * math.log(_SMALLEST_RATIO)
        low, high = path.t_min, path.t_max
        with jax.ensure_compile_time_eval():
            if self.needs_alpha:
                low = max(low, float(path.schedule.time_of_log_snr(edge)))
            if self.needs_sigma:
                high = min(high, float(path.schedule.time_of_log_snr(-edge)))
        return low, high


def _velocity_to_ends(path: AffinePath, t: Time, x: Batched, v: Batched) -> Ends:
    a, s, da, ds = path.rates(t, x)
    d = a * ds - s * da
    return Ends((a * v - da * x) / d, (ds * x - s * v) / d)


def _velocity_from_ends(path: AffinePath, t: Time, x: Batched, ends: Ends) -> Batched:
    _, _, da, ds = path.rates(t, x)
    return da * ends.x1 + ds * ends.x0


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


velocity = Prediction(
    "velocity",
    target=lambda path, p: p.dx_t,
    to_ends=_velocity_to_ends,
    from_ends=_velocity_from_ends,
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


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def read(apply: Apply, path: AffinePath, prediction: Prediction) -> Denoiser:
    """What the network's output means: its reading as both ends of the path.

    Args:
        apply: the network with its parameters bound, `apply(t, x, cond)`; of any float dtype.
        path: the path it was trained on.
        prediction: what it predicts.

    Returns:
        A denoiser; its conversions are done in at least float32.
    """

    def denoiser(t: Time, x: Batched, cond: Cond = None) -> Ends:
        return prediction.to_ends(path, t, _wide(x), _wide(apply(t, x, cond)))

    return denoiser


def field(denoiser: Denoiser, path: AffinePath) -> Field:
    """The marginal velocity v(t, x, cond) = alpha' E[x1 | x] + sigma' E[x0 | x] of a denoiser."""

    def v(t: Time, x: Batched, cond: Cond = None) -> Batched:
        return velocity.from_ends(path, t, _wide(x), denoiser(t, x, cond))

    return v
