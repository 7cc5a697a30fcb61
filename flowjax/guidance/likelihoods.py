"""Guides that move the score by the gradient of a log-likelihood: classifier guidance and posterior sampling.

With x0 and x1 the posterior means of the ends on a Gaussian path, adding k to the score adds -sigma k to x0 and
sigma^2 / alpha k to x1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from flowjax.abilities import Ends, HasEnds
from flowjax.guidance.guide import Guide
from flowjax.paths.affine import AffinePath
from flowjax.typing import Array, Batched, Cond, Float, Time

__all__ = ["Classifier", "LogLikelihood", "Measurement", "Posterior"]

LogLikelihood = Callable[[Time, Batched, Cond], Float[Array, " B"]]
"""`log_prob(t, x, cond)`: log p(y | x_t = x) for each sample, (B,)."""


@dataclass(frozen=True)
class Classifier(Guide):
    """Classifier guidance (Dhariwal & Nichol 2021, arXiv 2105.05233): score + scale grad log p(y | x_t).

    Args:
        model: a model on a Gaussian path, conditional or unconditional.
        log_prob: log p(y | x_t), differentiable in x.
        scale: 1 for Bayes' rule.

    Raises:
        ValueError: if the model's path is not Gaussian.
    """

    model: HasEnds
    log_prob: LogLikelihood
    scale: float = 1.0

    def __post_init__(self):
        _check_gaussian(self.path)

    def ends(self, t: Time, x: Batched, cond: Cond = None) -> Ends:
        slope = jax.grad(lambda x: self.log_prob(t, x, cond).sum())(x)
        return _moved(self.path, t, x, self.model.ends(t, x, cond), self.scale * slope)


Measurement = Callable[[Batched, Float[Array, "..."]], Float[Array, " B"]]
"""`log_likelihood(x1, variance)`: log p(y | x_t) for each sample, (B,), where x1 | x_t has mean `x1` and approximately
this variance in each coordinate. The variance is one number, or has one entry per sample and as many axes as x1.

Solvers that solve each sample separately (the adaptive ones and diffrax's SDE solvers) call it with one sample. A
measurement that stores data with one row per sample therefore needs `rows` and `with_rows` (`flowjax.solvers.rows`)."""


@dataclass(frozen=True)
class Posterior(Guide):
    """Samples from p(x1 | y) given the likelihood of a measurement y, without training (Chung et al. 2023, arXiv
    2209.14687; Song et al. 2023).

    p(y | x_t) is approximated by the likelihood of y at E[x1 | x_t], widened by the variance that x1 has given x_t for
    normal data with standard deviation `data_std`. This is exact for such data and a linear measurement. On other data
    the samples fit y too loosely, and an SDE sampler corrects part of the error: on digits the misfit is 1.2 times the
    noise with Euler-Maruyama and 1.9 times with Heun (`experiments/posterior_digits`).

    A `data_std` far below the true value makes the ODE stiff, and too few steps diverge. Small measurement noise makes
    it stiff near the data; a fixed number of steps of `unipc` or `euler_maruyama` then needs far fewer evaluations than
    an adaptive solver.

    Args:
        model: a model on a Gaussian path, conditional or unconditional.
        measurement: the log-likelihood of y, such as `linear_measurement`.
        data_std: the standard deviation of the data in each coordinate.
        scale: 1 for Bayes' rule.

    Raises:
        ValueError: if the model's path is not Gaussian, or data_std is not positive.
    """

    model: HasEnds
    measurement: Measurement
    data_std: float = 1.0
    scale: float = 1.0

    def __post_init__(self):
        _check_gaussian(self.path)
        if not self.data_std > 0:
            raise ValueError(f"data_std must be positive, not {self.data_std}")

    def ends(self, t: Time, x: Batched, cond: Cond = None) -> Ends:
        r = self.path.rates(t, x)
        # The variance of x1 | x_t for normal data: see equation (3) of `flowjax.oracles`.
        variance = self.data_std**2 * r.sigma**2 / (r.sigma**2 + (self.data_std * r.alpha) ** 2)

        def mean(x: Batched) -> tuple[Batched, Ends]:
            ends = self.model.ends(t, x, cond)
            return ends.x1, ends

        x1, pull_back, ends = jax.vjp(mean, x, has_aux=True)
        toward = self.scale * jax.grad(lambda x1: self.measurement(x1, variance).sum())(x1)
        return _moved(self.path, t, x, ends, pull_back(toward)[0], self.data_std**2 * toward)


def _check_gaussian(path: AffinePath) -> None:
    if not path.has_score or path.noise is not None:
        raise ValueError(
            "guidance by a likelihood needs a model on the path 'gaussian', with an independent source N(0, I)"
        )


def _moved(path: AffinePath, t: Time, x: Batched, ends: Ends, slope: Batched, at_start: Batched | float = 0.0) -> Ends:
    """The ends after the score has moved by `slope`: x0 moves by -sigma slope and x1 by sigma^2 / alpha slope.

    At alpha = 0, x_t does not depend on the data, so the slope of an exact likelihood is zero and its ratio to alpha
    has a limit: x1 moves by `at_start` there. For a likelihood of E[x1 | x_t] the limit is the variance of the data
    times the gradient of the log-likelihood in x1, because d E[x1 | x_t] / dx = alpha / sigma^2 Cov(x1 | x_t).
    """
    r = path.rates(t, x)
    no_data = r.alpha == 0
    x0 = ends.x0 - jnp.where(no_data, 0.0, r.sigma * slope)
    moved = jnp.where(no_data, at_start, r.sigma**2 / jnp.where(no_data, 1.0, r.alpha) * slope)
    return ends._replace(x0=x0, x1=ends.x1 + moved)
