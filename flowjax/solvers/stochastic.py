"""Stochastic samplers: SDEs with any g(t), ancestral sampling, predictor-corrector and annealed Langevin dynamics."""

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
    """The drift v + g^2 / 2 score of the SDE at (t, x), where `g2` is g^2 and `ends` are the posterior means there."""
    return velocity.from_ends(path, t, x, ends) + 0.5 * g2 * score_of(path, t, x, ends)


class Driven(StochasticSampler):
    """A sampler of the SDE with diffusion g.

    Attributes:
        g: the diffusion. If it has `needs_alpha = True`, the solve starts where alpha > 0.
    """

    g: Diffusion

    @property
    def needs_alpha(self) -> bool:
        return getattr(self.g, "needs_alpha", False)


@dataclass(frozen=True)
class EulerMaruyama(Driven):
    """The Euler-Maruyama method for dX = (v + g^2/2 score) dt + g dW: weak and strong order 1, one evaluation per step.

    The strong order is 1 because the noise is additive (Kloeden & Platen 1992, sec. 10.2-10.3).

    Args:
        path: a path with a score.
        g: the diffusion.
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
    """Heun's method for the drift with one noise increment for both stages: weak order 2, two evaluations per step.

    This order holds for additive noise (Kloeden & Platen 1992, sec. 15.1), and here g depends only on t.

    Args:
        path: a path with a score.
        g: the diffusion.
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
    """Ancestral sampling of DDPM, and DDIM with any eta: weak order 1, one evaluation per step.

        x' = alpha' E[x1] + sqrt(sigma'^2 - eta^2 small) E[x0] + eta sqrt(var) z

    (Ho et al. 2020, arXiv 2006.11239, algorithm 2; Song et al. 2021a, arXiv 2010.02502, eq. 12 and 16). With eta = 1
    and var = small this is a sample of the posterior q(x' | x, x1 = E[x1 | x]); eta = 0 is DDIM.

    Args:
        path: a Gaussian path.
        eta: the noise relative to DDPM, between 0 and 1.
        variance: var is "small" (the variance of the posterior), "large" (the variance of the forward step) or
            "learned", for a network with the prediction `noise_variance`.

    Raises:
        ValueError: if eta is not between 0 and 1.
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
    """Predictor-corrector sampling (Song et al. 2021, arXiv 2011.13456, algorithms 2-5).

    A step takes 1 + `corrections` evaluations. The predictor is an Euler-Maruyama step, of weak order 1. The corrector
    takes Langevin steps at the new time, with the step size eps = 2 (snr sigma)^2. This is the paper's 2 (snr |z| /
    |score|)^2 with |score| = |z| / sigma, which makes each sample independent of the rest of the batch. The norm of the
    score is close to |z| / sigma for data near a set of low dimension, such as images, where the score is -x0 / sigma
    up to a few directions. For data that fill the space the paper's step is longer: for N(0, s^2 I) at alpha = 1 the
    norm of the score is |z| / sqrt(s^2 + sigma^2), so the step sizes differ by the factor 1 + (s / sigma)^2, which is
    2,501 at sigma = s / 50.

    Args:
        path: a path with a score. On a path with noise, gamma replaces sigma in the step size.
        g: the diffusion of the predictor.
        snr: the signal-to-noise ratio of the corrector; 0.16 in the paper.
        corrections: the number of Langevin steps after each predictor step.
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
    """Annealed Langevin dynamics (NCSN; Song & Ermon 2019, arXiv 1907.05600, algorithm 1): `each` evaluations per step.

    Each step goes to the next noise level and takes Langevin steps x + a/2 score + sqrt(a) z there, with a = size
    sigma^2. In the paper a = eps sigma_i^2 / sigma_L^2 with eps = 2e-5 and sigma_L = 0.01, so size is 0.2. No steps are
    taken at the first level, where x already has the distribution of the prior. The method has no order in the number
    of levels: every level is sampled anew, and the error is the bias of Langevin steps of fixed size, which is of order
    1 in `size`.

    Args:
        path: a Gaussian path with alpha = 1; VE for NCSN.
        each: the number of Langevin steps per level; 100 in the paper.
        size: the step size a relative to sigma^2.
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
    """A Langevin step x + eps score + sqrt(2 eps) z."""
    return x + eps * score_of(path, t, x, model.ends(t, x)) + jnp.sqrt(2 * eps) * standard_normal(key, x)
