"""Deterministic samplers of the probability-flow ODE: Runge-Kutta, Adams-Bashforth, DDIM and EDM's Heun."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from flowjax.abilities import space_of
from flowjax.keys import RowKeys
from flowjax.paths.affine import AffinePath
from flowjax.predictions import well_conditioned
from flowjax.solvers import fixed_grid
from flowjax.solvers.fixed_grid import Tableau
from flowjax.solvers.samplers import BaseSampler, SamplerState, blend, standard_normal
from flowjax.typing import Batched

__all__ = ["DDIM", "AdamsBashforth", "EDMHeun", "RungeKutta"]


@dataclass(frozen=True)
class RungeKutta(BaseSampler):
    """An explicit Runge-Kutta method for dx/dt = v(t, x).

    Order of convergence and evaluations per step (Hairer, Norsett & Wanner 1993, sec. II.1 and II.5): `euler` 1 and 1,
    `heun`, `midpoint` and `ralston` 2 and 2, `bosh3` 3 and 3, `rk4` 4 and 4, `tsit5` and `dopri5` 5 and 6, `dopri8` 8
    and 12. Stages that the solution does not use are not evaluated (`flowjax.solvers.fixed_grid`).

    Args:
        path: the path of the model; None for a model without a path, whose grid is uniform in t.
        tableau: the Butcher tableau of the method.
    """

    path: AffinePath | None
    tableau: Tableau
    needs: ClassVar[tuple[str, ...]] = ("velocity",)
    any_space: ClassVar[bool] = True

    @property
    def evaluations(self) -> int:
        return self.tableau.stages

    def step(self, state: SamplerState, t: Array, t_next: Array, model: Any, key: RowKeys | None) -> SamplerState:
        v = lambda t, x, cond: model.velocity(t, x)
        return SamplerState(fixed_grid.step(v, state.x, None, t, t_next, self.tableau, space_of(model)))


@dataclass(frozen=True)
class AdamsBashforth(BaseSampler):
    """The two-step Adams-Bashforth method with variable step sizes: order 2, one evaluation per step.

    A step adds h (v + h / (2 h_last) (v - v_last)) (Hairer, Norsett & Wanner 1993, sec. III.5). The first step is an
    Euler step. So is a step with h > 2 h_last, which would extrapolate a larger change of the velocity than was
    observed over the last step.

    Args:
        path: the path of the model; None for a model without a path, whose grid is uniform in t.
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
        return SamplerState(state.x + step, (v, h))


@dataclass(frozen=True)
class DDIM(BaseSampler):
    """DDIM (Song et al. 2021a, arXiv 2010.02502, eq. 12 with eta = 0): order 1, one evaluation per step.

    A step keeps the posterior means of the ends (and of z, on a path with noise) constant, so it is exact where they do
    not change. It is the Euler method for x / alpha as a function of sigma / alpha, for every schedule. For eta > 0 see
    `flowjax.solvers.stochastic.Ancestral`.

    Args:
        path: the path of the model.
    """

    path: AffinePath
    grid: ClassVar[str] = "condot"
    denoise: ClassVar[bool] = True

    def step(self, state: SamplerState, t: Array, t_next: Array, model: Any, key: RowKeys | None) -> SamplerState:
        return SamplerState(blend(self.path, t_next, state.x, model.ends(t, state.x)))


@dataclass(frozen=True)
class EDMHeun(BaseSampler):
    """The EDM sampler (Karras et al. 2022, arXiv 2206.00364, algorithm 2): two evaluations per step.

    The order is 2 without churn. It is Heun's method for x / alpha as a function of sigma / alpha. With churn, each
    step first adds noise, which raises the noise level sigma / alpha by a factor of up to 1 + churn where it lies in
    [noise_min, noise_max]. Churn needs a Gaussian path. N steps take 2 N - 1 evaluations, because the last one is the
    denoising.

    Args:
        path: a path without additional noise.
        churn: the relative increase of the noise level per step, at most sqrt(2) - 1; S_churn / N in the paper.
        noise_min, noise_max: the noise levels between which noise is added; S_tmin and S_tmax in the paper.
        noise_scale: the factor of the added noise; S_noise in the paper.

    Raises:
        ValueError: if churn is out of range.
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
            raise ValueError(f"churn must be between 0 and sqrt(2) - 1 per step (S_churn / N), not {self.churn}")

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
