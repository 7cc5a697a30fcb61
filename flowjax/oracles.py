"""Oracles: closed-form denoisers, velocities, scores and densities, for data whose p_t is known.

With source N(0, I) independent of the data, and data a mixture sum_k w_k N(m_k, s_k^2 I), the path
x_t = alpha x1 + sigma x0 has

    (1)  p_t       = sum_k w_k N(alpha m_k, V_k I),      V_k = alpha^2 s_k^2 + sigma^2
    (2)  r_k(x)    = w_k N(x; alpha m_k, V_k I) / p_t(x)                        (responsibilities)
    (3)  E[x1 | x] = sum_k r_k (m_k + alpha s_k^2 / V_k (x - alpha m_k))
    (4)  E[x0 | x] = sum_k r_k sigma / V_k (x - alpha m_k)
    (5)  score     = -sum_k r_k (x - alpha m_k) / V_k

One normal is K = 1; a finite data set is s_k = 0, one component a point. All three below are this mixture. They are
the root of the tests and what notebooks draw beside what was learned.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, ArrayLike, Float

from flowjax.paths.affine import AffinePath, expand
from flowjax.predictions import Ends, field
from flowjax.schedules import rates
from flowjax.sources import GaussianMixture
from flowjax.typing import Batched, Cond, Time


@partial(jax.tree_util.register_dataclass, data_fields=["path", "means", "scales", "log_weights"], meta_fields=[])
@dataclass(frozen=True)
class Oracle:
    """The exact answers for a mixture of isotropic normals reached from N(0, I).

    Every method takes t, () or (B,), and x, (B, *event). Where all scales are zero the density is singular at t = 1:
    stay below it. Memory is B x K x D unless compiled, when the distances fuse into their sum.

    Attributes:
        path: an affine path; the source is N(0, I), drawn independently.
        means: (K, *event), or (K,) for the same mean in every coordinate.
        scales: (K,) standard deviations.
        log_weights: (K,), normalised.
    """

    path: AffinePath
    means: Float[Array, "K *mean"]
    scales: Float[Array, " K"]
    log_weights: Float[Array, " K"]

    def _means(self, x: Batched) -> Float[Array, "K *event"]:
        """The means in the event's full shape, also where they were given as scalars."""
        k = self.means.shape[0]
        return jnp.broadcast_to(
            self.means.reshape(self.means.shape + (1,) * (x.ndim - self.means.ndim)), (k, *x.shape[1:])
        )

    def _components(self, t: Time, x: Batched) -> tuple[Float[Array, "B K"], Float[Array, "B K"]]:
        """log(w_k N(x; alpha m_k, V_k)) and V_k."""
        r = rates(self.path.schedule, t)
        alpha, sigma = (jnp.broadcast_to(a, x.shape[:1])[:, None] for a in (r.alpha, r.sigma))
        variance = (alpha * self.scales) ** 2 + sigma**2
        flat, means = x.reshape(x.shape[0], 1, -1), self._means(x).reshape(self.means.shape[0], -1)
        square = jnp.sum((flat - alpha[..., None] * means) ** 2, -1)
        log_normal = -0.5 * (square / variance + means.shape[1] * jnp.log(2 * jnp.pi * variance))
        return self.log_weights + log_normal, variance

    def _mix(self, coefficients: Float[Array, "B K"], t: Time, x: Batched) -> Batched:
        """sum_k c_k (x - alpha m_k)."""
        alpha = expand(rates(self.path.schedule, t).alpha, x)
        total = expand(coefficients.sum(-1), x)
        return total * x - alpha * jnp.tensordot(coefficients, self._means(x), 1)

    def log_prob(self, t: Time, x: Batched) -> Float[Array, " B"]:
        """log p_t(x), nats: equation (1)."""
        return logsumexp(self._components(t, x)[0], axis=-1)

    def score(self, t: Time, x: Batched) -> Batched:
        """grad_x log p_t(x): equation (5)."""
        logits, variance = self._components(t, x)
        return -self._mix(jax.nn.softmax(logits) / variance, t, x)

    def denoiser(self, t: Time, x: Batched, cond: Cond = None) -> Ends:
        """Posterior means of both ends: equations (3) and (4). `cond` is ignored."""
        logits, variance = self._components(t, x)
        r = rates(self.path.schedule, t)
        alpha, sigma = (jnp.broadcast_to(a, x.shape[:1])[:, None] for a in (r.alpha, r.sigma))
        weights = jax.nn.softmax(logits)
        x0 = self._mix(weights * sigma / variance, t, x)
        x1 = jnp.tensordot(weights, self._means(x), 1) + self._mix(weights * alpha * self.scales**2 / variance, t, x)
        return Ends(x0, x1)

    def velocity(self, t: Time, x: Batched, cond: Cond = None) -> Batched:
        """The marginal velocity alpha' E[x1 | x] + sigma' E[x0 | x]. `cond` is ignored."""
        return field(self.denoiser, self.path)(t, x, cond)


def gaussian(path: AffinePath, mean: ArrayLike, std: ArrayLike) -> Oracle:
    """Data N(mean, std^2 I): `std` a scalar; `mean` a scalar or an array of the event's shape."""
    mean = jnp.asarray(mean, jnp.result_type(float))
    return Oracle(path, mean[None], jnp.reshape(jnp.asarray(std, mean.dtype), (1,)), jnp.zeros(1, mean.dtype))


def mixture(path: AffinePath, mixture: GaussianMixture) -> Oracle:
    """Data from a mixture of isotropic normals in (D,)."""
    means = jnp.asarray(mixture.means)
    scales = jnp.broadcast_to(jnp.asarray(mixture.scales, means.dtype), means.shape[:1])
    return Oracle(path, means, scales, mixture.log_weights)


def dataset(path: AffinePath, points: Float[ArrayLike, "N *event"]) -> Oracle:
    """Data uniform on a finite set (N, *event): the field of a network that has memorised it without error."""
    means = jnp.asarray(points)
    n = means.shape[0]
    return Oracle(path, means, jnp.zeros(n, means.dtype), jnp.full(n, -jnp.log(float(n)), means.dtype))
