"""Exponential integrators in log-SNR: DPM-Solver++ and UniPC.

With l = log(alpha / sigma) and D(l) = E[x1 | x_l], the ODE and the SDE of a Gaussian path are solved exactly by

    (1)  ODE   x_t = sigma_t / sigma_s x_s + sigma_t  integral from l_s to l_t of e^l D dl
    (2)  SDE   x_t = sigma_t / sigma_s e^(-h) x_s + 2 sigma_t integral of e^(2 l - l_t) D dl
                     + sigma_t sqrt(1 - e^(-2h)) z

with h = l_t - l_s (Lu et al. 2022, "DPM-Solver++", eq. 8 and 13), and D is extrapolated from earlier evaluations. The
ODE holds for any source and coupling without noise on the path. Coefficients are written with alpha and sigma, so that
steps from alpha = 0 are exact in their first order; l is kept within 15 of 0.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from flowjax.paths.affine import AffinePath
from flowjax.schedules import Rates
from flowjax.solvers.samplers import Carry, Keys, Method, standard_normal
from flowjax.typing import Batched

_LARGEST = 15.0


def phi(q: Array) -> tuple[Array, Array, Array]:
    """phi_1 = (e^q - 1) / q, phi_2 = (phi_1 - 1) / q, phi_3 = (phi_2 - 1/2) / q; by their series where q is small."""
    small = jnp.abs(q) < 0.5
    near, far = jnp.where(small, q, 0.0), jnp.where(small, 1.0, q)
    series = lambda k: sum(near**i / math.factorial(i + k) for i in range(9))
    one = jnp.expm1(far) / far
    two = (one - 1) / far
    three = (two - 0.5) / far
    return jnp.where(small, series(1), one), jnp.where(small, series(2), two), jnp.where(small, series(3), three)


class _Edge(NamedTuple):
    """A step of the grid: half log-SNR where it starts, its length h, and x_t = decay x_s + gain D for a constant D."""

    here: Array
    h: Array
    decay: Array
    gain: Array


def _half_log_snr(r: Rates) -> Array:
    return jnp.clip(jnp.log(r.alpha) - jnp.log(r.sigma), -_LARGEST, _LARGEST)


def _edge(r: Rates, to: Rates) -> _Edge:
    here, decay = _half_log_snr(r), to.sigma / r.sigma
    return _Edge(here, _half_log_snr(to) - here, decay, to.alpha - decay * r.alpha)


def _start(x: Batched, t: Array, points: int) -> tuple[Array, Array]:
    """`points` earlier evaluations and their half log-SNR; infinitely far back, so that they weigh nothing."""
    return jnp.zeros((points, *x.shape), x.dtype), jnp.full((points,), -jnp.inf, t.dtype)


@dataclass(frozen=True)
class DPMSolverPP2M(Method):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): order 2, one evaluation a step; the first step is DDIM's.

    With `sde` SDE-DPM-Solver++(2M): equation (2), on a Gaussian path.
    """

    path: AffinePath
    sde: bool = False
    denoise: ClassVar[bool] = True
    needs_noiseless: ClassVar[bool] = True

    @property
    def stochastic(self) -> bool:
        return self.sde

    def init(self, x: Batched, t: Array) -> Carry:
        return Carry(x, _start(x, t, 1))

    def step(self, carry: Carry, t: Array, t_next: Array, denoiser: Any, key: Keys | None) -> Carry:
        x, (ds, ls) = carry.x, carry.history
        r, to = self.path.rates(t, x), self.path.rates(t_next, x)
        here, h, decay, gain = _edge(r, to)
        d = denoiser(t, x).x1
        ahead = d + 0.5 * h / (here - ls[0]) * (d - ds[0])
        if self.sde:
            assert key is not None
            fall = to.sigma * r.alpha / (r.sigma * to.alpha)  # e^-h
            decay = decay * fall
            gain = to.alpha - decay * r.alpha
            noise = to.sigma * jnp.sqrt(jnp.maximum(1 - fall**2, 0.0)) * standard_normal(key, x)
            x = decay * x + gain * ahead + noise
        else:
            x = decay * x + gain * ahead
        return Carry(x, (d[None], here[None]))


@dataclass(frozen=True)
class DPMSolverPP3M(Method):
    """DPM-Solver++(3M): equation (1) for the quadratic through the last three evaluations; order 3.

    The first step would be of order 1 and leave its error in the end: it takes one evaluation more, at the point it
    reached, and is done again with the slope. The second has two points. N steps take N + 1 evaluations.
    """

    path: AffinePath
    denoise: ClassVar[bool] = True
    needs_noiseless: ClassVar[bool] = True
    extra_evaluations: ClassVar[int] = 1

    def init(self, x: Batched, t: Array) -> Carry:
        return Carry(x, _start(x, t, 2))

    def step(self, carry: Carry, t: Array, t_next: Array, denoiser: Any, key: Keys | None) -> Carry:
        x, (ds, ls) = carry.x, carry.history
        r, to = self.path.rates(t, x), self.path.rates(t_next, x)
        here, h, decay, gain = _edge(r, to)
        d = denoiser(t, x).x1
        held = decay * x + gain * d

        def started(_: None) -> tuple[Array, Array]:
            """D' and D'' / 2 at l by divided differences; a point infinitely far back weighs nothing."""
            slope = (d - ds[0]) / (here - ls[0])
            third = jnp.isfinite(ls[1])
            before = (ds[0] - ds[1]) / jnp.where(third, ls[0] - ls[1], 1.0)
            curve = jnp.where(third, (slope - before) / jnp.where(third, here - ls[1], 1.0), 0.0)
            return slope + (here - ls[0]) * curve, curve

        def starting(_: None) -> tuple[Array, Array]:
            return (denoiser(t_next, held).x1 - d) / h, jnp.zeros_like(d)

        slope, curve = lax.cond(jnp.isfinite(ls[0]), started, starting, None)
        _, phi2, phi3 = phi(-h)
        x = held + to.alpha * (h**2 * phi2 * slope + 2 * h**3 * phi3 * curve)
        return Carry(x, (jnp.stack([d, ds[0]]), jnp.stack([here, ls[0]])))


@dataclass(frozen=True)
class UniPC(Method):
    """UniPC-2 with B(h) = e^h - 1 (Zhao et al. 2023, algorithm 5-8, data prediction): order 3, one evaluation a step.

    Each evaluation first corrects the point it was made at (UniC), then predicts the next (UniP), so the corrector is
    free; the last point is not corrected.
    """

    path: AffinePath
    denoise: ClassVar[bool] = True
    needs_noiseless: ClassVar[bool] = True

    def init(self, x: Batched, t: Array) -> Carry:
        before = _start(x, t, 2)
        return Carry(x, (*before, x, t))  # earlier D and l, and the point and time of the last evaluation

    def step(self, carry: Carry, t: Array, t_next: Array, denoiser: Any, key: Keys | None) -> Carry:
        ds, ls, x_last, t_last = carry.history
        d = denoiser(t, carry.x).x1
        started = jnp.isfinite(ls[0])
        x = jnp.where(started, self._correct(x_last, t_last, t, d, ds, ls), carry.x)
        here, h, decay, gain = _edge(self.path.rates(t, x), self.path.rates(t_next, x))
        # UniP-2: weight 1/2 on the divided difference
        guess = decay * x + gain * (d + 0.5 * h * jnp.where(started, d - ds[0], 0.0) / (here - ls[0]))
        return Carry(guess, (jnp.stack([d, ds[0]]), jnp.stack([here, ls[0]]), x, t))

    def _correct(self, x: Batched, t: Array, t_next: Array, d_next: Batched, ds: Array, ls: Array) -> Batched:
        """The step from t to t_next again, with the evaluation at t_next: UniC-2, or UniC-1 where it was the first."""
        here, h, decay, gain = _edge(self.path.rates(t, x), self.path.rates(t_next, x))
        phi1, phi2, phi3 = phi(-h)
        b1, b2 = phi2 / phi1, 2 * phi3 / phi1
        second = jnp.isfinite(ls[1])
        ratio = jnp.where(second, (jnp.where(second, ls[1], 0.0) - here) / h, -1.0)
        # a_1 + a_2 = b1 and ratio a_1 + a_2 = b2
        a1 = jnp.where(second, (b1 - b2) / (1 - ratio), 0.0)
        a2 = jnp.where(second, b1 - a1, 0.5)
        return decay * x + gain * (ds[0] + a1 * (ds[1] - ds[0]) / ratio + a2 * (d_next - ds[0]))
