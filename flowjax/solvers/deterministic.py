"""Deterministic samplers of the probability-flow ODE: Runge-Kutta, Adams-Bashforth, DDIM and EDM's Heun."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from flowjax.keys import RowKeys
from flowjax.paths.affine import AffinePath
from flowjax.predictions import well_conditioned
from flowjax.solvers import fixed_grid
from flowjax.solvers.fixed_grid import Tableau
from flowjax.solvers.samplers import BaseSampler, SamplerState, blend, standard_normal
from flowjax.spaces import EUCLIDEAN, Space
from flowjax.typing import Batched

__all__ = ["DDIM", "AdamsBashforth", "EDMHeun", "RungeKutta"]


def _space_of(path: AffinePath | None) -> Space:
    return EUCLIDEAN if path is None else path.space


@dataclass(frozen=True)
class RungeKutta(BaseSampler):
    """An explicit Runge-Kutta method in t.

    Order of convergence and evaluations a step (Hairer, Norsett & Wanner 1993, sec. II.1 and II.5): `euler` 1 and 1,
    `heun`, `midpoint` and `ralston` 2 and 2, `bosh3` 3 and 3, `rk4` 4 and 4, `tsit5` and `dopri5` 5 and 6, `dopri8` 8
    and 12 (without the stages that the solution does not use, `flowjax.solvers.fixed_grid`).

    Args:
        path: of the model; None for a model without one, on a grid that is even in t.
        tableau: the method.
    """

    path: AffinePath | None
    tableau: Tableau
    needs: ClassVar[tuple[str, ...]] = ("velocity",)

    @property
    def evaluations(self) -> int:
        return self.tableau.stages

    def step(self, state: SamplerState, t: Array, t_next: Array, model: Any, key: RowKeys | None) -> SamplerState:
        v = lambda t, x, cond: model.velocity(t, x)
        return SamplerState(fixed_grid.step(v, state.x, None, t, t_next, self.tableau, _space_of(self.path)))


@dataclass(frozen=True)
class AdamsBashforth(BaseSampler):
    """Two-step Adams-Bashforth with variable steps: order 2, one evaluation a step; the first step is Euler's.

    A step adds h (v + h / (2 h_last) (v - v_last)). Where h > 2 h_last it would assume more change of the velocity than
    the last step has seen, and is Euler's instead (Hairer, Norsett & Wanner 1993, sec. III.5).
    """

    path: AffinePath | None
    needs: ClassVar[tuple[str, ...]] = ("velocity",)

    def init(self, x: Batched, t: Array) -> SamplerState:
        return SamplerState(x, (jnp.zeros_like(x), jnp.asarray(jnp.inf, t.dtype)))

    def step(self, state: SamplerState, t: Array, t_next: Array, model: Any, key: RowKeys | None) -> SamplerState:
        last, h_last = state.history
        v = model.velocity(t, state.x)
        h = t_next - t
        weight = h / (2 * h_last)
        step = h * (v + jnp.where(weight <= 1, weight, 0.0) * (v - last))
        return SamplerState(_space_of(self.path).exp(state.x, step), (v, h))


@dataclass(frozen=True)
class DDIM(BaseSampler):
    """The ends held through a step (Song et al. 2021a, eq. 12): order 1, one evaluation a step.

    Exact where the posterior means do not move.

    It is Euler's method for x / alpha against sigma / alpha, whatever the schedule. With noise on the path, z is held
    too. The stochastic family with eta > 0 is `flowjax.solvers.stochastic.Ancestral`.
    """

    path: AffinePath
    grid: ClassVar[str] = "condot"
    denoise: ClassVar[bool] = True

    def step(self, state: SamplerState, t: Array, t_next: Array, model: Any, key: RowKeys | None) -> SamplerState:
        return SamplerState(blend(self.path, t_next, state.x, model.ends(t, state.x)))


@dataclass(frozen=True)
class EDMHeun(BaseSampler):
    """Heun's method for x / alpha against sigma / alpha, with churn (Karras et al. 2022, algorithm 2).

    Order 2 without churn, two evaluations a step.

    Each step first raises the noise level by a factor of up to 1 + churn (S_churn / N there, at most sqrt(2) - 1) where
    it lies in [noise_min, noise_max], adding the noise that takes. Churn needs a Gaussian path. N steps with
    the denoising take 2 N - 1 evaluations.

    Args:
        path: without noise of its own.
        churn: relative growth of the noise level a step; S_churn / N in the paper's terms.
        noise_min, noise_max: levels sigma / alpha between which to churn.
        noise_scale: S_noise, of the noise added.
    """

    path: AffinePath
    churn: float = 0.0
    noise_min: float = 0.0
    noise_max: float = math.inf
    noise_scale: float = 1.0
    denoise: ClassVar[bool] = True
    grid: ClassVar[str] = "edm"
    needs_noiseless: ClassVar[bool] = True

    @property
    def needs_alpha(self) -> bool:
        return True

    @property
    def evaluations(self) -> int:
        return 2

    def __post_init__(self):
        if not 0 <= self.churn <= math.sqrt(2) - 1 + 1e-9:
            raise ValueError(f"churn must be between 0 and sqrt(2) - 1 a step (S_churn / N), not {self.churn}")

    @property
    def stochastic(self) -> bool:
        return self.churn > 0

    def step(self, state: SamplerState, t: Array, t_next: Array, model: Any, key: RowKeys | None) -> SamplerState:
        r, to = self.path.rates(t, state.x), self.path.rates(t_next, state.x)
        level, level_next = r.sigma / r.alpha, to.sigma / to.alpha
        x = state.x / r.alpha
        if self.churn:
            assert key is not None
            first = self.path.rates(jnp.asarray(well_conditioned(self.path, alpha=True)[0], t.dtype), state.x)
            between = (level >= self.noise_min) & (level <= self.noise_max)
            raised = jnp.minimum(level * (1 + jnp.where(between, self.churn, 0.0)), first.sigma / first.alpha)
            raised = jnp.maximum(raised, level)
            extra = jnp.sqrt((raised - level) * (raised + level)) * self.noise_scale  # never negative
            x, level = x + extra * standard_normal(key, x), raised
            t = self.path.schedule.time_of_log_snr(-2 * jnp.log(raised)).astype(t.dtype)
        alpha = self.path.rates(t, x).alpha
        slope = (x - model.ends(t, alpha * x).x1) / level
        guess = x + (level_next - level) * slope
        slope_next = (guess - model.ends(t_next, to.alpha * guess).x1) / level_next
        return SamplerState(to.alpha * (x + (level_next - level) * 0.5 * (slope + slope_next)))
