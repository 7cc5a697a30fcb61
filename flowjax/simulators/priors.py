"""Distributions of parameters that sources of flows do not need: normal with a given precision, and log-normal."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, ArrayLike, Float

from flowjax.sources import Normal
from flowjax.typing import Batched, PRNGKey

__all__ = ["LogNormal", "MultivariateNormal"]


@partial(jax.tree_util.register_dataclass, data_fields=["loc", "scale"], meta_fields=["shape"])
@dataclass(frozen=True)
class LogNormal:
    """Independent positive numbers whose logarithms have the distributions N(loc, scale^2).

    Attributes:
        shape: the shape of one sample.
        loc, scale: means and standard deviations of the logarithms: scalars, or arrays that broadcast to `shape`.
    """

    shape: tuple[int, ...]
    loc: ArrayLike = 0.0
    scale: ArrayLike = 1.0

    def sample(self, key: PRNGKey, n: int) -> Batched:
        return jnp.exp(self._logarithm.sample(key, n))

    def log_prob(self, x: Batched) -> Float[Array, " B"]:
        inside = x > 0
        log = jnp.log(jnp.where(inside, x, 1.0))
        density = self._logarithm.log_prob(log) - log.reshape(len(x), -1).sum(-1)
        return jnp.where(inside.reshape(len(x), -1).all(-1), density, -jnp.inf)

    @property
    def _logarithm(self) -> Normal:
        return Normal(self.shape, self.loc, self.scale)


@partial(jax.tree_util.register_dataclass, data_fields=["precision", "loc"], meta_fields=[])
@dataclass(frozen=True)
class MultivariateNormal:
    """The normal distribution with a precision matrix, the inverse of its covariance.

    With the Cholesky factor L of the precision, L L^T, samples are loc + L^-T z for standard normal z.

    Attributes:
        precision: (D, D), symmetric and positive definite.
        loc: the mean, a scalar or (D,).
    """

    precision: Float[ArrayLike, "D D"]
    loc: ArrayLike = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return (jnp.shape(self.precision)[0],)

    def sample(self, key: PRNGKey, n: int) -> Batched:
        z = jax.random.normal(key, (n, *self.shape))
        return jnp.asarray(self.loc) + solve_triangular(self._factor, z.T, lower=True, trans=1).T

    def log_prob(self, x: Batched) -> Float[Array, " B"]:
        z = (x - self.loc) @ self._factor
        return Normal(self.shape).log_prob(z) + jnp.log(jnp.diagonal(self._factor)).sum()

    @property
    def _factor(self) -> Float[Array, "D D"]:
        return jnp.linalg.cholesky(jnp.asarray(self.precision))
