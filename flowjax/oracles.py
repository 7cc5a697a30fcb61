"""Oracles: closed-form ends, velocities, scores and densities, for sources and data whose p_t is known.

Let (x0, x1) be a mixture over components c of weight w_c in which, coordinate by coordinate, x0 ~ N(n, r^2) and
x1 ~ N(m, s^2) with correlation q. The path x_t = alpha x1 + sigma x0 + gamma z then has

    (1)  p_t       = sum_c w_c N(mu_c, V_c I),   mu = alpha m + sigma n,
                                                 V  = alpha^2 s^2 + sigma^2 r^2 + 2 alpha sigma q s r + gamma^2
    (2)  R_c(x)    = w_c N(x; mu_c, V_c I) / p_t(x)                                    (responsibilities)
    (3)  E[x1 | x] = sum_c R_c (m + (alpha s^2 + sigma q s r) / V (x - mu))
    (4)  E[x0 | x] = sum_c R_c (n + (sigma r^2 + alpha q s r) / V (x - mu))
    (5)  E[z  | x] = sum_c R_c gamma / V (x - mu)
    (6)  score     = -sum_c R_c (x - mu) / V

Independent coupling of a mixture of J and one of K components is J K components with q = 0; a finite data set is s =
0, one component a point. Between two normals q = 1 is optimal transport, and the Schroedinger bridge lies between
(`bridge_correlation`). They are the root of the tests and what notebooks draw beside what was learned.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, ArrayLike, Float

from flowjax.paths.affine import AffinePath, expand
from flowjax.predictions import Ends, PathModel
from flowjax.schedules import rates
from flowjax.sources import GaussianMixture
from flowjax.typing import Batched, Cond, Time

__all__ = ["Oracle", "bridge_correlation", "dataset", "gaussian", "mixture"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["path", "means", "scales", "log_weights", "source_means", "source_scales", "correlation"],
    meta_fields=[],
)
@dataclass(frozen=True, eq=False)
class Oracle(PathModel):
    """The exact answers for a mixture of isotropic normals on both ends of an affine path.

    A model with ends, velocity and score. Every method takes t, () or (B,), and x, (B, *event); a condition is
    ignored. Where all scales (and gamma) are zero the density is singular at t = 1: stay below it. Memory is B x C x D
    unless compiled, when the distances fuse into their sum.

    Attributes:
        path: an affine path.
        means: of the data, (C, *event), or (C,) for the same mean in every coordinate.
        scales: (C,) standard deviations of the data.
        log_weights: (C,), normalised.
        source_means, source_scales, correlation: of the source, shaped alike; N(0, I), independent, by default.
    """

    path: AffinePath
    means: Float[Array, "C *mean"]
    scales: Float[Array, " C"]
    log_weights: Float[Array, " C"]
    source_means: Float[Array, "C *mean"] | float = 0.0
    source_scales: Float[Array, " C"] | float = 1.0
    correlation: Float[Array, " C"] | float = 0.0

    def _coefficients(self, t: Time, x: Batched) -> "_Coefficients":
        """alpha, sigma, gamma as (B, 1), and V as (B, C)."""
        r = rates(self.path.schedule, t)
        rows = x[:, :1].reshape(x.shape[0], -1)[:, :1]
        column = lambda a: jnp.broadcast_to(a, x.shape[:1])[:, None]
        alpha, sigma = column(r.alpha), column(r.sigma)
        gamma = jnp.broadcast_to(self.path.noise_rates(t, rows).gamma, (x.shape[0], 1))
        cross = self.correlation * self.scales * self.source_scales
        variance = (alpha * self.scales) ** 2 + (sigma * self.source_scales) ** 2
        return _Coefficients(alpha, sigma, gamma, cross, variance + 2 * alpha * sigma * cross + gamma**2)

    def _full(self, means: Array | float, x: Batched) -> Float[Array, "C *event"]:
        """Means in the event's full shape, also where they were given as scalars.

        The barrier hides that they may be zero: XLA's CPU compiler (jaxlib 0.10.2) drops a product with a constant zero
        inside a fused sum and leaves what was in memory.
        """
        given: Array = jax.lax.optimization_barrier(jnp.asarray(means, x.dtype))
        given = given.reshape(given.shape + (1,) * (x.ndim - given.ndim))
        return jnp.broadcast_to(given, (self.scales.shape[0], *x.shape[1:]))

    def _mu(self, c: "_Coefficients", x: Batched) -> tuple[Array, Array]:
        """(alpha, sigma) weights against the two stacks of means, flattened: mu = alpha m + sigma n, (B, C, D)."""
        m, n = (self._full(means, x).reshape(self.scales.shape[0], -1) for means in (self.means, self.source_means))
        return c.alpha[..., None] * m, c.sigma[..., None] * n

    def _components(self, c: "_Coefficients", x: Batched) -> Float[Array, "B C"]:
        """log(w N(x; mu, V))."""
        data, source = self._mu(c, x)
        flat = x.reshape(x.shape[0], 1, -1)
        square = jnp.sum((flat - data - source) ** 2, -1)
        return self.log_weights - 0.5 * (square / c.variance + flat.shape[-1] * jnp.log(2 * jnp.pi * c.variance))

    def _mix(self, weights: Float[Array, "B C"], c: "_Coefficients", x: Batched) -> Batched:
        """sum_c weights_c (x - mu_c)."""
        total = expand(weights.sum(-1), x)
        data = expand(c.alpha[:, 0], x) * jnp.tensordot(weights, self._full(self.means, x), 1)
        source = expand(c.sigma[:, 0], x) * jnp.tensordot(weights, self._full(self.source_means, x), 1)
        return total * x - data - source

    def log_prob(self, t: Time, x: Batched) -> Float[Array, " B"]:
        """log p_t(x), nats: equation (1)."""
        return logsumexp(self._components(self._coefficients(t, x), x), axis=-1)

    def score(self, t: Time, x: Batched, cond: Cond = None) -> Batched:
        """grad_x log p_t(x): equation (6)."""
        c = self._coefficients(t, x)
        return -self._mix(jax.nn.softmax(self._components(c, x)) / c.variance, c, x)

    @property
    def missing(self) -> Mapping[str, str]:
        """The score is known on every path."""
        return {}

    def ends(self, t: Time, x: Batched, cond: Cond = None) -> Ends:
        """Posterior means of both ends, and of z on a path with noise: equations (3) to (5)."""
        c = self._coefficients(t, x)
        r = jax.nn.softmax(self._components(c, x))
        to_data = (c.alpha * self.scales**2 + c.sigma * c.cross) / c.variance
        to_source = (c.sigma * self.source_scales**2 + c.alpha * c.cross) / c.variance
        x1 = jnp.tensordot(r, self._full(self.means, x), 1) + self._mix(r * to_data, c, x)
        x0 = jnp.tensordot(r, self._full(self.source_means, x), 1) + self._mix(r * to_source, c, x)
        return Ends(x0, x1, None if self.path.noise is None else self._mix(r * c.gamma / c.variance, c, x))

    def sample(self, key: Array, t: Time, n: int, event: tuple[int, ...]) -> Batched:
        """n points of p_t: what a solve that starts at t should start from."""
        key_c, key_x = jax.random.split(key)
        x = jnp.zeros((n, *event), self.scales.dtype)
        c = self._coefficients(t, x)
        which = jax.random.categorical(key_c, self.log_weights, shape=(n,))
        mean = expand(c.alpha[:, 0], x) * self._full(self.means, x)[which]
        mean = mean + expand(c.sigma[:, 0], x) * self._full(self.source_means, x)[which]
        std = jnp.sqrt(jnp.take_along_axis(c.variance, which[:, None], 1)[:, 0])
        return mean + expand(std, x) * jax.random.normal(key_x, x.shape, x.dtype)


@dataclass(frozen=True)
class _Coefficients:
    alpha: Float[Array, "B 1"]
    sigma: Float[Array, "B 1"]
    gamma: Float[Array, "B 1"]
    cross: Float[Array, " C"] | Float[Array, ""] | float
    variance: Float[Array, "B C"]


def gaussian(
    path: AffinePath,
    mean: ArrayLike,
    std: ArrayLike,
    *,
    source_mean: ArrayLike = 0.0,
    source_std: ArrayLike = 1.0,
    correlation: ArrayLike = 0.0,
) -> Oracle:
    """Data N(mean, std^2 I): `std` a scalar; `mean` a scalar or an array of the event's shape.

    The source is N(source_mean, source_std^2 I) with that correlation in each coordinate; N(0, I), independent, by
    default.
    """
    mean = jnp.asarray(mean, jnp.result_type(float))
    one = lambda a: jnp.reshape(jnp.asarray(a, mean.dtype), (1,))
    source = jnp.broadcast_to(jnp.asarray(source_mean, mean.dtype), mean.shape)
    return Oracle(path, mean[None], one(std), jnp.zeros(1, mean.dtype), source[None], one(source_std), one(correlation))


def bridge_correlation(source_std: float, std: float, sigma: float) -> float:
    """Correlation of the ends of the Schroedinger bridge of Brownian motion `sigma` between two isotropic normals.

    It is entropic optimal transport of |x - y|^2 with eps = 2 sigma^2; its covariance c solves c^2 + sigma^2 c =
    (source_std std)^2 (Mallasto et al. 2022, theorem 1; Bunne et al. 2023). sigma = 0 gives 1, optimal transport.
    """
    product = source_std * std
    return ((product**2 + sigma**4 / 4) ** 0.5 - sigma**2 / 2) / product


def mixture(path: AffinePath, mixture: GaussianMixture, source: GaussianMixture | None = None) -> Oracle:
    """Data from a mixture of isotropic normals in (D,); the source N(0, I), or another mixture, independent of it."""
    means = jnp.asarray(mixture.means)
    scales = jnp.broadcast_to(jnp.asarray(mixture.scales, means.dtype), means.shape[:1])
    if source is None:
        return Oracle(path, means, scales, mixture.log_weights)
    k, other = means.shape[0], jnp.asarray(source.means, means.dtype)
    j = other.shape[0]
    return Oracle(
        path,
        jnp.repeat(means, j, 0),
        jnp.repeat(scales, j),
        (mixture.log_weights[:, None] + source.log_weights).reshape(-1),
        jnp.tile(other, (k, 1)),
        jnp.tile(jnp.broadcast_to(jnp.asarray(source.scales, means.dtype), (j,)), k),
    )


def dataset(path: AffinePath, points: Float[ArrayLike, "N *event"]) -> Oracle:
    """Data uniform on a finite set (N, *event): the field of a network that has memorised it without error."""
    means = jnp.asarray(points)
    n = means.shape[0]
    return Oracle(path, means, jnp.zeros(n, means.dtype), jnp.full(n, -jnp.log(float(n)), means.dtype))
