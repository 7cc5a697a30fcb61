"""Exponential integrators in log-SNR: DPM-Solver++ and UniPC.

With l = log(alpha / sigma) and D(l) = E[x1 | x_l], the exact solutions of the ODE and the SDE of a Gaussian path are

    (1)  ODE   x_t = sigma_t / sigma_s x_s + sigma_t  integral from l_s to l_t of e^l D dl
    (2)  SDE   x_t = sigma_t / sigma_s e^(-h) x_s + 2 sigma_t integral of e^(2 l - l_t) D dl
                     + sigma_t sqrt(1 - e^(-2h)) z

with h = l_t - l_s (Lu et al. 2022, "DPM-Solver++", arXiv 2211.01095, eq. 8 and 13). The solvers extrapolate D from
earlier evaluations. Equation (1) holds for any source and coupling on a path without additional noise. The coefficients
are computed from alpha and sigma, so that first-order steps from alpha = 0 are exact; l is clipped to [-15, 15].

**Steps that are too long are of first order.** A second-order step replaces D by the extrapolation
D + c (D - D_prev) with c = h / (2 h_prev). It is used only if two conditions hold (`_weight`):

- c <= 1, that is, h <= 2 h_prev. D changes more slowly as the noise decreases, so a step must not extrapolate a larger
  change of D than was observed over the last step.
- h <= 1.594. Near normal data D = D_end - C e^(-2 l) up to higher orders. Let a = 1 - e^(-h). A step with constant D
  has the error a^2 C e^(-2 l), and a step along the exact tangent of D has the error a |a - h| C e^(-2 l). The tangent
  is better only if h < 2 a, which is h < 1.594. The same comparison gives h < 1.797 for equation (2), and
  h - 1 + e^(-h) < a^2, which is h < 1.151, for the exactly integrated tangent of DPM-Solver++(3M).

For example, the last step of a uniform grid of 40 steps on a VP schedule has h = 4.5 and c = 3.6.
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
    """The functions phi_1 = (e^q - 1) / q, phi_2 = (phi_1 - 1) / q and phi_3 = (phi_2 - 1/2) / q.

    They are computed from their power series where |q| < 1/2.
    """
    small = jnp.abs(q) < 0.5
    near, far = jnp.where(small, q, 0.0), jnp.where(small, 1.0, q)
    series = lambda k: sum(near**i / math.factorial(i + k) for i in range(9))
    one = jnp.expm1(far) / far
    two = (one - 1) / far
    three = (two - 0.5) / far
    return jnp.where(small, series(1), one), jnp.where(small, series(2), two), jnp.where(small, series(3), three)


class _Edge(NamedTuple):
    """A step of the grid: l at its start, its length h in l, and x_t = decay x_s + gain D for a constant D."""

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
    """The weight c = h / (2 h_prev) of the last difference of D in a second-order step; 0 if the step is too long.

    The module's docstring explains when a step is too long. Without an earlier evaluation h_prev is infinite and the
    weight is 0.
    """
    weight = 0.5 * h / jnp.where(h_prev > 0, h_prev, jnp.inf)  # 0 where l is clipped and two points coincide
    return jnp.where((weight <= _LARGEST_WEIGHT) & (h <= longest), weight, 0.0)


def _start(x: Batched, t: Array, points: int) -> tuple[Array, Array]:
    """The initial history: `points` evaluations at l = -infinity, which have weight 0."""
    return jnp.zeros((points, *x.shape), x.dtype), jnp.full((points,), -jnp.inf, t.dtype)


@dataclass(frozen=True)
class DPMSolverPP2M(BaseSampler):
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): order 2 for the ODE, one evaluation per step.

    The first step and steps that are too long (see the module's docstring) are of first order: DDIM steps, if `sde` is
    False. With `sde` the noise has the exact variance for steps of any length.

    Args:
        path: a path without additional noise; a Gaussian path if `sde` is True.
        sde: whether to solve equation (2), which is SDE-DPM-Solver++(2M), instead of equation (1).
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
    """The last two evaluations of DPM-Solver++(3M) with their l, and the gain of the last step."""

    ds: Array
    ls: Array
    gain: Array


@dataclass(frozen=True)
class DPMSolverPP3M(BaseSampler):
    """DPM-Solver++(3M): order 2 if damped, order 3 otherwise, one evaluation per step.

    A step integrates equation (1) for the quadratic through the last three evaluations. Let s be the slope of the
    quadratic at l and k half its second derivative. The step adds alpha_t (h^2 phi_2(-h) s + w h^3 phi_3(-h) k) to a
    DDIM step. w = 2 integrates the quadratic exactly. The damped w = 1, which k-diffusion uses too, is the default,
    because extrapolating the curvature over a long step overshoots: on the default grid its error was 0.4 to 0.9 times
    the error of w = 2 at 20 to 320 steps (`experiments/samplers_defaults`).

    The first step is a DDIM step, which the second evaluation corrects by the mean of the two (UniC-1 of Zhao et al.
    2023, arXiv 2302.04867). The second step uses two evaluations. Steps that are too long (see the module's docstring)
    are DDIM steps.

    Args:
        path: a path without additional noise.
        damped: whether w is 1 instead of 2. w = 2 is better from about 40 steps on a grid that is uniform in log-SNR.
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
        # Newton's divided differences. Without an earlier evaluation they are not used, but must be finite, because
        # derivatives with respect to the times would otherwise be NaN.
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
    """UniPC-2 (Zhao et al. 2023, arXiv 2302.04867, algorithms 5-8): order 3, one evaluation per step.

    This is the variant with B(h) = e^h - 1 and data prediction. Each evaluation first corrects the point at which it
    was made (UniC) and then predicts the next point (UniP), so the corrector needs no evaluations of its own. The last
    point is not corrected. A step that is too long (see the module's docstring) is predicted by DDIM and corrected by
    UniC-1, which uses the mean of the evaluations at the two ends of the step.

    Args:
        path: a path without additional noise.
    """

    path: AffinePath
    grid: ClassVar[str] = "condot"
    denoise: ClassVar[bool] = True
    needs_noiseless: ClassVar[bool] = True

    def init(self, x: Batched, t: Array) -> SamplerState:
        before = _start(x, t, 2)
        return SamplerState(x, (*before, x, t))  # earlier D and l, and the sample and time of the last evaluation

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
        """Repeats the step from t to t_next with the evaluation at t_next: UniC-2, or UniC-1 if the step was the first
        one or too long.
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
