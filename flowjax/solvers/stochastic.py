"""Stochastic samplers: the SDE family with any g(t), DDPM's ancestral steps, predictor-corrector, annealed Langevin."""

from dataclasses import dataclass
from dataclasses import field as attribute
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowjax.keys import RowKeys, fold_rows
from flowjax.paths.affine import AffinePath
from flowjax.paths.transition import Variance, step_variance, transition
from flowjax.predictions import Ends, score_of, velocity
from flowjax.solvers.diffusions import Diffusion, Sigma
from flowjax.solvers.samplers import SamplerState, StochasticSampler, standard_normal
from flowjax.typing import Batched

__all__ = ["Ancestral", "AnnealedLangevin", "Driven", "EulerMaruyama", "PredictorCorrector", "StochasticHeun", "drift"]


def drift(path: AffinePath, g2: Array, t: Array, x: Batched, ends: Ends) -> Batched:
    """v + g^2 / 2 score."""
    return velocity.from_ends(path, t, x, ends) + 0.5 * g2 * score_of(path, t, x, ends)


class Driven(StochasticSampler):
    """A sampler of the SDE with a given g, which says itself whether it is infinite where there is no data yet."""

    g: Diffusion

    @property
    def needs_alpha(self) -> bool:
        return getattr(self.g, "needs_alpha", False)


@dataclass(frozen=True)
class EulerMaruyama(Driven):
    """Euler-Maruyama for dX = (v + g^2/2 score) dt + g dW: weak order 1, one evaluation a step.

    Strong order 1 as well, because the noise is additive (Kloeden & Platen 1992, sec. 10.2-10.3).
    """

    path: AffinePath
    g: Diffusion = attribute(default_factory=Sigma)

    def step(self, state: SamplerState, t: Array, t_next: Array, model: Any, key: RowKeys | None) -> SamplerState:
        assert key is not None
        x, h, g2 = state.x, t_next - t, self.g(self.path, t)
        f = drift(self.path, g2, t, x, model.ends(t, x))
        return SamplerState(x + h * f + jnp.sqrt(g2 * h) * standard_normal(key, x))


@dataclass(frozen=True)
class StochasticHeun(Driven):
    """Heun's method for the drift, one increment of noise for both stages: weak order 2, two evaluations a step.

    The order is that for additive noise, which this is: it depends on t alone (Kloeden & Platen 1992, sec. 15.1).
    """

    path: AffinePath
    g: Diffusion = attribute(default_factory=Sigma)

    @property
    def evaluations(self) -> int:
        return 2

    def step(self, state: SamplerState, t: Array, t_next: Array, model: Any, key: RowKeys | None) -> SamplerState:
        assert key is not None
        x, h = state.x, t_next - t
        g2, g2_next = self.g(self.path, t), self.g(self.path, t_next)
        noise = jnp.sqrt(0.5 * (g2 + g2_next) * h) * standard_normal(key, x)
        f = drift(self.path, g2, t, x, model.ends(t, x))
        guess = x + h * f + noise
        f_next = drift(self.path, g2_next, t_next, guess, model.ends(t_next, guess))
        return SamplerState(x + 0.5 * h * (f + f_next) + noise)


@dataclass(frozen=True)
class Ancestral(StochasticSampler):
    """DDPM's ancestral sampling, and DDIM with any eta (Ho et al. 2020, algorithm 2; Song et al. 2021a, eq. 12 and 16).

        x' = alpha' E[x1] + sqrt(sigma'^2 - eta^2 var) E[x0] + eta sqrt(var) z

    With eta = 1 and the small variance this is the posterior q(x' | x, x1 = E[x1 | x]); eta = 0 is DDIM. Weak
    order 1, one evaluation a step.

    Args:
        path: Gaussian.
        eta: between 0 and 1.
        variance: of the noise at eta = 1: "small" (the posterior's), "large" (the forward step's) or "learned", from a
            network that predicts `noise_variance`. The mean is the small one's.
    """

    path: AffinePath
    eta: float = 1.0
    variance: Variance = "small"
    needs_noiseless: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be between 0 (DDIM) and 1 (DDPM), not {self.eta}")

    def step(self, state: SamplerState, t: Array, t_next: Array, model: Any, key: RowKeys | None) -> SamplerState:
        assert key is not None
        x, ends = state.x, model.ends(t, state.x)
        q, to = transition(self.path, t, t_next, x), self.path.rates(t_next, x)
        var = step_variance(q, self.variance, ends.variance_fraction)
        kept = jnp.sqrt(jnp.maximum(to.sigma**2 - self.eta**2 * q.small, 0.0))
        mean = to.alpha * ends.x1 + kept * ends.x0
        return SamplerState(mean + self.eta * jnp.sqrt(var) * standard_normal(key, x))


@dataclass(frozen=True)
class PredictorCorrector(Driven):
    """An Euler-Maruyama step, then Langevin steps at the new time (Song et al. 2021, algorithms 2-5).

    The predictor is of weak order 1; a step takes 1 + `corrections` evaluations.

    Langevin's step is eps = 2 (snr sigma)^2: the paper's 2 (snr |z| / |score|)^2 for |score| = |z| / sigma, so that a
    sample does not depend on its neighbours. The score has about that norm for data near a set of low dimension, such
    as images, where it is -x0 / sigma up to a few directions. For data that fill the space the paper's step is longer:
    for N(0, s^2 I) at alpha = 1 the score's norm is |z| / sqrt(s^2 + sigma^2), so the steps differ by the factor
    1 + (s / sigma)^2, which is 2,501 at sigma = s / 50.

    Args:
        path: with a score; the corrector's step is in units of sigma, or of gamma on a path with noise.
        g: diffusion of the predictor.
        snr: 0.16 in the paper.
        corrections: Langevin steps after each predictor step.
    """

    path: AffinePath
    g: Diffusion = attribute(default_factory=Sigma)
    snr: float = 0.16
    corrections: int = 1

    @property
    def evaluations(self) -> int:
        return 1 + self.corrections

    def step(self, state: SamplerState, t: Array, t_next: Array, model: Any, key: RowKeys | None) -> SamplerState:
        assert key is not None
        x = EulerMaruyama(self.path, self.g).step(state, t, t_next, model, fold_rows(key, 0)).x
        size = self.path.rates(t_next, x).sigma
        if self.path.noise is not None:
            size = self.path.noise_rates(t_next, x).gamma
        for i in range(self.corrections):
            x = _langevin(self.path, t_next, x, model, 2 * (self.snr * size) ** 2, fold_rows(key, i + 1))
        return SamplerState(x)


@dataclass(frozen=True)
class AnnealedLangevin(StochasticSampler):
    """On to the next noise level, and Langevin steps there (NCSN; Song & Ermon 2019, algorithm 1).

    The first level is the prior's own, where Langevin steps change nothing. A step takes `each` evaluations. It has no
    order in the number of levels: each level is sampled anew, and the error is the bias of Langevin's steps of fixed
    size, which is of order 1 in `size`.

    A step is x + a/2 score + sqrt(a) z with a = step sigma^2 (their eps sigma_i^2 / sigma_L^2: 0.2 with eps = 2e-5 and
    sigma_L = 0.01).

    Args:
        path: a Gaussian path with alpha = 1, VE for NCSN.
        each: steps a level; 100 in the paper.
        size: of a step, relative to sigma^2.
    """

    path: AffinePath
    each: int = 5
    size: float = 0.2
    needs_noiseless: ClassVar[bool] = True
    needs_constant_alpha: ClassVar[bool] = True

    @property
    def needs_alpha(self) -> bool:
        return True

    @property
    def evaluations(self) -> int:
        return self.each

    def step(self, state: SamplerState, t: Array, t_next: Array, model: Any, key: RowKeys | None) -> SamplerState:
        assert key is not None
        r, to = self.path.rates(t, state.x), self.path.rates(t_next, state.x)

        def go(i: Array, x: Batched) -> Batched:
            return _langevin(self.path, t_next, x, model, 0.5 * self.size * to.sigma**2, fold_rows(key, i))

        return SamplerState(jax.lax.fori_loop(0, self.each, go, state.x * (to.alpha / r.alpha)))


def _langevin(path: AffinePath, t: Array, x: Batched, model: Any, eps: Array, key: RowKeys) -> Batched:
    """x + eps score + sqrt(2 eps) z."""
    return x + eps * score_of(path, t, x, model.ends(t, x)) + jnp.sqrt(2 * eps) * standard_normal(key, x)
