"""Oracles: closed-form ends, velocities, scores and densities, for sources and data with a known density p_t.

Let (x0, x1) be a mixture of components c with weights w_c. In each coordinate of a component, x0 ~ N(n, r^2) and
x1 ~ N(m, s^2) have correlation q. The path x_t = alpha x1 + sigma x0 + gamma z then has

    (1)  p_t       = sum_c w_c N(mu_c, V_c I),   mu = alpha m + sigma n,
                                                 V  = alpha^2 s^2 + sigma^2 r^2 + 2 alpha sigma q s r + gamma^2
    (2)  R_c(x)    = w_c N(x; mu_c, V_c I) / p_t(x)                                    (responsibilities)
    (3)  E[x1 | x] = sum_c R_c (m + (alpha s^2 + sigma q s r) / V (x - mu))
    (4)  E[x0 | x] = sum_c R_c (n + (sigma r^2 + alpha q s r) / V (x - mu))
    (5)  E[z  | x] = sum_c R_c gamma / V (x - mu)
    (6)  score     = -sum_c R_c (x - mu) / V

The independent coupling of a mixture of J components with a mixture of K components has J K components with q = 0. A
finite data set has one component per point, with s = 0. Between two normals, q = 1 is optimal transport, and the
Schroedinger bridge has a q between 0 and 1 (`bridge_correlation`). Tests and figures compare networks with oracles.
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
    """The exact model for mixtures of isotropic normals at both ends of an affine path, with ends, velocity and score.

    Every method accepts times t of shape () or (B,) and x of shape (B, *event), and ignores the condition. If the
    scales are zero, the density is singular at t = 1 on a path without noise, so use times below 1. The memory is
    B x C x D, and less under `jit`, which fuses the distances into their sum.

    Attributes:
        path: an affine path.
        means: the means of the data, (C, *event), or (C,) for the same mean in every coordinate.
        scales: (C,) standard deviations of the data.
        log_weights: (C,) normalised log-weights of the components.
        source_means: the means of the source, shaped like `means`; 0 by default.
        source_scales: (C,) standard deviations of the source; 1 by default.
        correlation: (C,) correlations of x0 and x1 in each coordinate; 0 by default.
    """

    path: AffinePath
    means: Float[Array, "C *mean"]
    scales: Float[Array, " C"]
    log_weights: Float[Array, " C"]
    source_means: Float[Array, "C *mean"] | float = 0.0
    source_scales: Float[Array, " C"] | float = 1.0
    correlation: Float[Array, " C"] | float = 0.0

    def _coefficients(self, t: Time, x: Batched) -> "_Coefficients":
        """alpha, sigma and gamma, (B, 1), the covariance of x0 and x1, (C,), and V, (B, C)."""
        r = rates(self.path.schedule, t)
        rows = x[:, :1].reshape(x.shape[0], -1)[:, :1]
        column = lambda a: jnp.broadcast_to(a, x.shape[:1])[:, None]
        alpha, sigma = column(r.alpha), column(r.sigma)
        gamma = jnp.broadcast_to(self.path.noise_rates(t, rows).gamma, (x.shape[0], 1))
        cross = self.correlation * self.scales * self.source_scales
        variance = (alpha * self.scales) ** 2 + (sigma * self.source_scales) ** 2
        return _Coefficients(alpha, sigma, gamma, cross, variance + 2 * alpha * sigma * cross + gamma**2)

    def _full(self, means: Array | float, x: Batched) -> Float[Array, "C *event"]:
        """The means broadcast to the shape of the event.

        The barrier hides constant zeros from XLA's CPU compiler, which in jaxlib 0.10.2 drops a product with a constant
        zero inside a fused sum and returns uninitialised memory.
        """
        given: Array = jax.lax.optimization_barrier(jnp.asarray(means, x.dtype))
        given = given.reshape(given.shape + (1,) * (x.ndim - given.ndim))
        return jnp.broadcast_to(given, (self.scales.shape[0], *x.shape[1:]))

    def _mu(self, c: "_Coefficients", x: Batched) -> tuple[Array, Array]:
        """The two terms of mu = alpha m + sigma n with flattened events, each (B, C, D)."""
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
        data = expand(c.alpha[:, 0], x) * self._average(weights, self.means, x)
        source = expand(c.sigma[:, 0], x) * self._average(weights, self.source_means, x)
        return total * x - data - source

    def _average(self, weights: Float[Array, "B C"], means: Array | float, x: Batched) -> Batched:
        """sum_c weights_c means_c, (B, *event).

        A matrix product with a broadcast number is avoided. Next to a second product, XLA's CPU compiler of jaxlib
        0.10.2 returns uninitialised memory for it, for example with 500 rows, 1,024 components and 64 dimensions.
        """
        if jnp.ndim(means) == 0:
            same = expand(weights.sum(-1), x) * jax.lax.optimization_barrier(jnp.asarray(means, x.dtype))
            return jnp.broadcast_to(same, x.shape)
        return jnp.tensordot(weights, self._full(means, x), 1)

    def log_prob(self, t: Time, x: Batched) -> Float[Array, " B"]:
        """log p_t(x) in nats, (B,): equation (1)."""
        return logsumexp(self._components(self._coefficients(t, x), x), axis=-1)

    def score(self, t: Time, x: Batched, cond: Cond = None) -> Batched:
        """grad_x log p_t(x), (B, *event): equation (6)."""
        c = self._coefficients(t, x)
        return -self._mix(jax.nn.softmax(self._components(c, x)) / c.variance, c, x)

    @property
    def missing(self) -> Mapping[str, str]:
        """Nothing: an oracle has the score of every path."""
        return {}

    def ends(self, t: Time, x: Batched, cond: Cond = None) -> Ends:
        """The posterior means of both ends, and of z on a path with noise: equations (3) to (5)."""
        c = self._coefficients(t, x)
        r = jax.nn.softmax(self._components(c, x))
        to_data = (c.alpha * self.scales**2 + c.sigma * c.cross) / c.variance
        to_source = (c.sigma * self.source_scales**2 + c.alpha * c.cross) / c.variance
        x1 = self._average(r, self.means, x) + self._mix(r * to_data, c, x)
        x0 = self._average(r, self.source_means, x) + self._mix(r * to_source, c, x)
        return Ends(x0, x1, None if self.path.noise is None else self._mix(r * c.gamma / c.variance, c, x))

    def sample(self, key: Array, t: Time, n: int, event: tuple[int, ...]) -> Batched:
        """n samples of p_t, (n, *event), such as the initial states of a solve that starts at t.

        Args:
            key: a PRNG key.
            t: the time, a scalar or (n,).
            n: the number of samples.
            event: the shape of one sample.
        """
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
    """The oracle of data N(mean, std^2 I) and a source N(source_mean, source_std^2 I).

    Args:
        path: an affine path.
        mean: the mean of the data, a scalar or an array with the shape of the event.
        std: the standard deviation of the data, a scalar.
        source_mean: the mean of the source, a scalar or an array with the shape of `mean`.
        source_std: the standard deviation of the source, a scalar.
        correlation: the correlation of source and data in each coordinate, a scalar; 0 is the independent coupling.
    """
    mean = jnp.asarray(mean, jnp.result_type(float))
    one = lambda a: jnp.reshape(jnp.asarray(a, mean.dtype), (1,))
    source = jnp.broadcast_to(jnp.asarray(source_mean, mean.dtype), mean.shape)
    return Oracle(path, mean[None], one(std), jnp.zeros(1, mean.dtype), source[None], one(source_std), one(correlation))


def bridge_correlation(source_std: float, std: float, sigma: float) -> float:
    """The correlation of the ends of the Schroedinger bridge between two isotropic normals.

    The bridge is entropic optimal transport with the cost |x - y|^2 and eps = 2 sigma^2. The covariance c of its ends
    solves c^2 + sigma^2 c = (source_std std)^2 (Mallasto et al. 2022, theorem 1; Bunne et al. 2023).

    Args:
        source_std, std: the standard deviations of the source and of the data.
        sigma: the scale of the Brownian motion; 0 gives the correlation 1 of optimal transport.
    """
    product = source_std * std
    return ((product**2 + sigma**4 / 4) ** 0.5 - sigma**2 / 2) / product


def mixture(path: AffinePath, mixture: GaussianMixture, source: GaussianMixture | None = None) -> Oracle:
    """The oracle of data from a mixture of isotropic normals, independent of the source.

    Args:
        path: an affine path.
        mixture: the distribution of the data, with events (D,).
        source: the distribution of the source; None for N(0, I).
    """
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
    """The oracle of the uniform distribution on a finite set, which is what a network that memorises the set learns.

    Args:
        path: an affine path.
        points: (N, *event) data points.
    """
    means = jnp.asarray(points)
    n = means.shape[0]
    return Oracle(path, means, jnp.zeros(n, means.dtype), jnp.full(n, -jnp.log(float(n)), means.dtype))
