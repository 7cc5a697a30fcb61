"""Exponential integrators in log-SNR: DPM-Solver++ and UniPC.

With l = log(alpha / sigma) and D(l) = E[x1 | x_l], the ODE and the SDE of a Gaussian path are solved exactly by

    (1)  ODE   x_t = sigma_t / sigma_s x_s + sigma_t  integral from l_s to l_t of e^l D dl
    (2)  SDE   x_t = sigma_t / sigma_s e^(-h) x_s + 2 sigma_t integral of e^(2 l - l_t) D dl
                     + sigma_t sqrt(1 - e^(-2h)) z

with h = l_t - l_s (Lu et al. 2022, "DPM-Solver++", eq. 8 and 13), and D is extrapolated from earlier evaluations. The
ODE holds for any source and coupling without noise on the path. Coefficients are written with alpha and sigma, so that
steps from alpha = 0 are exact in their first order; l is kept within 15 of 0.

**Steps that are too long fall back to first order.** The second order replaces the D of a step by the extrapolation
D + c (D - D_prev) with c = h / (2 h_prev). It is used while two conditions hold (`_weight`):

- c <= 1, that is, h <= 2 h_prev. D is a mean of the data, which settles as the noise falls, so a step must not assume
  more change ahead than the last step has seen.
- h <= 1.594. Near normal data D = D_end - C e^(-2 l) up to higher orders. With a = 1 - e^(-h), holding this D over the
  step is wrong by a^2 C e^(-2 l), and extrapolating it along its exact tangent by a |a - h| C e^(-2 l). The tangent is
  better than holding only while h < 2 a, which is h < 1.594. The same comparison gives h < 1.797 for equation (2), and
  h - 1 + e^(-h) < a^2, which is h < 1.151, for the exactly integrated tangent of DPM-Solver++(3M).

The last step of a grid that is even in t on VP is an example: at 40 steps it has h = 4.5 and c = 3.6.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from flowjax.keys import RowKeys
from flowjax.paths.affine import AffinePath
from flowjax.schedules import Rates
from flowjax.solvers.samplers import BaseSampler, SamplerState, standard_normal
from flowjax.typing import Batched

__all__ = ["DPMSolverPP2M", "DPMSolverPP3M", "UniPC", "phi"]


_LARGEST = 15.0
_LONGEST_STEP, _LONGEST_STEP_3M = 1.594, 1.151
_LARGEST_WEIGHT = 1.0


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


def _weight(h: Array, h_prev: Array, longest: float = _LONGEST_STEP) -> Array:
    """The weight h / (2 h_prev) of the last difference of D in a second-order step; 0 where the step is too long.

    See the module's docstring for the two conditions. An infinite h_prev, where there is no earlier evaluation, gives
    0 as well.
    """
    weight = 0.5 * h / jnp.where(h_prev > 0, h_prev, jnp.inf)  # 0 at the limits of l, where points fall together
    return jnp.where((weight <= _LARGEST_WEIGHT) & (h <= longest), weight, 0.0)


def _start(x: Batched, t: Array, points: int) -> tuple[Array, Array]:
    """`points` earlier evaluations and their half log-SNR; infinitely far back, so that they weigh nothing."""
    return jnp.zeros((points, *x.shape), x.dtype), jnp.full((points,), -jnp.inf, t.dtype)


@dataclass(frozen=True)
class DPMSolverPP2M(BaseSampler):
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2): order 2, one evaluation a step.

    The first step and steps that are too long are DDIM's. With `sde` it is SDE-DPM-Solver++(2M), equation (2), on a
    Gaussian path; its steps that are too long are of first order too, and their noise is exact at any length.
    """

    path: AffinePath
    sde: bool = False
    grid: ClassVar[str] = "condot"
    denoise: ClassVar[bool] = True
    needs_noiseless: ClassVar[bool] = True

    @property
    def stochastic(self) -> bool:
        return self.sde

    def init(self, x: Batched, t: Array) -> SamplerState:
        return SamplerState(x, _start(x, t, 1))

    def step(self, state: SamplerState, t: Array, t_next: Array, model: Any, key: RowKeys | None) -> SamplerState:
        x, (ds, ls) = state.x, state.history
        r, to = self.path.rates(t, x), self.path.rates(t_next, x)
        here, h, decay, gain = _edge(r, to)
        d = model.ends(t, x).x1
        ahead = d + _weight(h, here - ls[0]) * (d - ds[0])
        if self.sde:
            assert key is not None
            fall = to.sigma * r.alpha / (r.sigma * to.alpha)  # e^-h
            decay = decay * fall
            gain = to.alpha - decay * r.alpha
            noise = to.sigma * jnp.sqrt(jnp.maximum(1 - fall**2, 0.0)) * standard_normal(key, x)
            x = decay * x + gain * ahead + noise
        else:
            x = decay * x + gain * ahead
        return SamplerState(x, (d[None], here[None]))


class _Multistep3M(NamedTuple):
    """The earlier evaluations of DPM-Solver++(3M), and the gain of the last step."""

    ds: Array
    ls: Array
    gain: Array


@dataclass(frozen=True)
class DPMSolverPP3M(BaseSampler):
    """DPM-Solver++(3M): equation (1) for the quadratic through the last three evaluations, one evaluation a step.

    With s the slope and k half the second derivative of the quadratic at l, a step adds
    alpha_t (h^2 phi_2(-h) s + w h^3 phi_3(-h) k) to DDIM's. Integrating the quadratic exactly takes w = 2, which is of
    order 3. The damped w = 1, which k-diffusion takes too, is of order 2. It is the default, because extrapolating the
    curvature over a long step overshoots: on the default grid its error was 0.4 to 0.9 times that of w = 2 at 20 to 320
    steps (`experiments/samplers_defaults`).

    The first step takes one evaluation and is corrected when the second is there, with the mean of both (the UniC-1 of
    Zhao et al. 2023); the second step has two points. Steps that are too long are DDIM's.

    Args:
        path: without noise of its own.
        damped: whether w = 1. w = 2 pays with many steps that are even in log-SNR, from about 40.
    """

    path: AffinePath
    damped: bool = True
    grid: ClassVar[str] = "condot"
    denoise: ClassVar[bool] = True
    needs_noiseless: ClassVar[bool] = True

    def init(self, x: Batched, t: Array) -> SamplerState:
        return SamplerState(x, _Multistep3M(*_start(x, t, 2), jnp.zeros((), x.dtype)))

    def step(self, state: SamplerState, t: Array, t_next: Array, model: Any, key: RowKeys | None) -> SamplerState:
        x, (ds, ls, last_gain) = state.x, state.history
        r, to = self.path.rates(t, x), self.path.rates(t_next, x)
        here, h, decay, gain = _edge(r, to)
        d = model.ends(t, x).x1
        second, third = jnp.isfinite(ls[0]) & ~jnp.isfinite(ls[1]), jnp.isfinite(ls[1]) & (ls[0] > ls[1])
        x = x + jnp.where(second, 0.5 * last_gain, 0.0) * (d - ds[0])
        # Newton's divided differences. Where there is no earlier point they are not used, and kept finite, because a
        # derivative by the times would be NaN otherwise
        h_prev = jnp.where(jnp.isfinite(ls[0]) & (here > ls[0]), here - ls[0], 1.0)
        slope = (d - ds[0]) / h_prev
        before = (ds[0] - ds[1]) / jnp.where(third, ls[0] - ls[1], 1.0)
        curve = jnp.where(third, (slope - before) / jnp.where(third, here - ls[1], 1.0), 0.0)
        slope = slope + h_prev * curve
        _, phi2, phi3 = phi(-h)
        higher = h**2 * phi2 * slope + (1 if self.damped else 2) * h**3 * phi3 * curve
        x = decay * x + gain * d + to.alpha * jnp.where(_weight(h, here - ls[0], _LONGEST_STEP_3M) > 0, higher, 0.0)
        return SamplerState(x, _Multistep3M(jnp.stack([d, ds[0]]), jnp.stack([here, ls[0]]), gain.astype(x.dtype)))


@dataclass(frozen=True)
class UniPC(BaseSampler):
    """UniPC-2 with B(h) = e^h - 1 (Zhao et al. 2023, algorithm 5-8, data prediction): order 3, one evaluation a step.

    Each evaluation first corrects the point it was made at (UniC), then predicts the next (UniP), so the corrector is
    free; the last point is not corrected. A step that is too long is predicted by DDIM and corrected by UniC-1, which
    takes the mean of the evaluations at its ends.
    """

    path: AffinePath
    grid: ClassVar[str] = "condot"
    denoise: ClassVar[bool] = True
    needs_noiseless: ClassVar[bool] = True

    def init(self, x: Batched, t: Array) -> SamplerState:
        before = _start(x, t, 2)
        return SamplerState(x, (*before, x, t))  # earlier D and l, and the point and time of the last evaluation

    def step(self, state: SamplerState, t: Array, t_next: Array, model: Any, key: RowKeys | None) -> SamplerState:
        ds, ls, x_last, t_last = state.history
        d = model.ends(t, state.x).x1
        started = jnp.isfinite(ls[0])
        x = jnp.where(started, self._correct(x_last, t_last, t, d, ds, ls), state.x)
        here, h, decay, gain = _edge(self.path.rates(t, x), self.path.rates(t_next, x))
        # UniP-2: weight 1/2 on the divided difference
        guess = decay * x + gain * (d + _weight(h, here - ls[0]) * (d - ds[0]))
        return SamplerState(guess, (jnp.stack([d, ds[0]]), jnp.stack([here, ls[0]]), x, t))

    def _correct(self, x: Batched, t: Array, t_next: Array, d_next: Batched, ds: Array, ls: Array) -> Batched:
        """The step from t to t_next again, with the evaluation at t_next: UniC-2, or UniC-1 where it was the first or
        too long.
        """
        here, h, decay, gain = _edge(self.path.rates(t, x), self.path.rates(t_next, x))
        phi1, phi2, phi3 = phi(-h)
        b1, b2 = phi2 / phi1, 2 * phi3 / phi1
        second = _weight(h, here - ls[1]) > 0
        ratio = jnp.where(second, (jnp.where(second, ls[1], 0.0) - here) / h, -1.0)
        # a_1 + a_2 = b1 and ratio a_1 + a_2 = b2
        a1 = jnp.where(second, (b1 - b2) / (1 - ratio), 0.0)
        a2 = jnp.where(second, b1 - a1, 0.5)
        return decay * x + gain * (ds[0] + a1 * (ds[1] - ds[0]) / ratio + a2 * (d_next - ds[0]))
