"""Dequantisation: noise that turns integers into real numbers, for the density of a model.

Let the model have the density p on model space, at one time of its path, and let the integers x be the box B(x) of
bins there, so that P(x) is the integral of p over B(x). For every density q(. | x) on the box, by Jensen's inequality,

    (1)  log P(x) = log E_q [p(z) / q(z | x)] >= E_q log [ (1 / K) sum_k p(z_k) / q(z_k | x) ],   z_1 ... z_K ~ q(. | x)

The gap for K = 1 is the KL divergence of q from p restricted to the box and normalised. The bound increases with K and
tends to log P(x) (Burda et al. 2016, arXiv:1509.00519; Ho et al. 2019, arXiv:1902.00275, for dequantisation).
`flowjax.inference.scoring` takes the mean over the draws.

`Uniform` noise is that of training (Theis et al. 2016, arXiv:1511.01844). `TruncatedNormal` noise is for a model whose
path leads to the centres of the bins themselves (`data.dequantisation='none'`). Close to the data, at a time t, the
path is z = alpha c + sigma e with the centre c of the bin and e ~ N(0, I). The box at this time is alpha times the box
of the data, and q is the distribution of z given c, truncated to that box (Zheng et al. 2023, arXiv:2305.03935). With
the width w of the bin, and the half-width tau = alpha w / (2 sigma) in units of the noise, in each coordinate

    (2)  log q(z | x) = -e^2 / 2 - log(sigma sqrt(2 pi)) - log(2 Phi(tau) - 1),   |e| <= tau

If the network is exact and the noise of neighbouring integers does not reach into the box, then p = P(x) N(z; alpha c,
sigma^2) there, and the bound is log P(x) + D log(2 Phi(tau) - 1): nothing is lost but the noise outside of the box.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.bits.bins import Bins
from flowjax.keys import RowKeys
from flowjax.paths.affine import AffinePath
from flowjax.schedules import clip_time
from flowjax.sources import sum_event
from flowjax.typing import Batched, Cond

__all__ = [
    "Dequantisation",
    "Dequantised",
    "TruncatedNormal",
    "Uniform",
    "time_of_truncated_normal",
]

_HALF_WIDTH = 4.0
"""Half of the smallest bin, in standard deviations of the noise at `time_of_truncated_normal`. Of the noise of a
coordinate, 6e-5 lies outside, which costs 9e-5 bits."""


class Dequantised(NamedTuple):
    """Noisy integers.

    Attributes:
        z: points of model space at the time of the dequantisation, (B, *event).
        log_q: log q(z | x) + sum over the coordinates of log w, in nats, (B,). With the widths w, it is the density of
            the noise in units of the bins.
    """

    z: Batched
    log_q: Float[Array, " B"]


@runtime_checkable
class Dequantisation(Protocol):
    """A distribution q(. | x) on the box of each example."""

    @property
    def time(self) -> float | None:
        """The time at which the density of the model is evaluated; None for the time of the data."""
        ...

    def __call__(self, keys: RowKeys, edges: Batched, cond: Cond = None) -> Dequantised:
        """Draws the noise of each row from its own key.

        Args:
            keys: (B,) keys.
            edges: the lower edges of the bins in model space, (B, *event).
            cond: the condition.
        """
        ...


@dataclass(frozen=True)
class Uniform:
    """Noise that is uniform on the box; q is 1 in units of the bins. Real numbers get no noise.

    Attributes:
        bins: the bins.
    """

    bins: Bins
    time = None

    def __call__(self, keys: RowKeys, edges: Batched, cond: Cond = None) -> Dequantised:
        u = jax.vmap(lambda key: jax.random.uniform(key, edges.shape[1:]))(keys)
        return Dequantised(edges + u * self.bins.width, jnp.zeros(edges.shape[0]))


@dataclass(frozen=True)
class TruncatedNormal:
    """The noise of a Gaussian path at a time near the data, truncated to the box: equation (2).

    Attributes:
        bins: the bins. All entries of the last axis are integers.
        path: the path.
        time: the time at which the density is evaluated.
    """

    bins: Bins
    path: AffinePath
    time: float

    def __call__(self, keys: RowKeys, edges: Batched, cond: Cond = None) -> Dequantised:
        r = self.path.rates(self.time, edges)
        tau = jnp.broadcast_to(r.alpha * self.bins.width / (2 * r.sigma), edges.shape[1:])
        e = jax.vmap(lambda key: jax.random.truncated_normal(key, -tau, tau))(keys)
        # 2 Phi(tau) - 1 = erf(tau / sqrt(2)), and log q in units of the bins of the data
        mass = jnp.log(jax.scipy.special.erf(tau / math.sqrt(2)))
        log_q = -0.5 * (e**2 + math.log(2 * math.pi)) - mass + jnp.log(self.bins.width / r.sigma)
        return Dequantised(r.alpha * self.bins.centres(edges) + r.sigma * e, sum_event(log_q))


def time_of_truncated_normal(path: AffinePath, bins: Bins, interval: tuple[float, float]) -> float:
    """The time at which the half of the smallest bin is four standard deviations of the noise.

    Earlier, the truncation costs more. Later, the density is harder to learn and takes more steps.

    Args:
        path: a Gaussian path.
        bins: the bins.
        interval: the times at which the model can be evaluated; the result lies in it.
    """
    ratio = 2 * _HALF_WIDTH / bins.smallest  # alpha / sigma
    with jax.ensure_compile_time_eval():
        time = float(clip_time(path.schedule, 2 * math.log(ratio)))
    return min(max(time, interval[0]), interval[1])
