"""A model of one example that several independent observations condition, from a model of single observations.

For observations o_1, ..., o_n that are independent given x1, and a path x_t = alpha x1 + sigma x0 with normal x0,

    p(x1 | x_t, o_1, ..., o_n)  is proportional to  prod_j p(x1 | x_t, o_j)  p(x1 | x_t)^(1 - n)                     (1)

exactly. With normal distributions N(m_j, C_j) on the right, and N(m_0, C_0) for the prior, the mean on the left is

    E[x1 | x_t, o_1, ..., o_n] = C (sum_j C_j^-1 m_j + (1 - n) C_0^-1 m_0),   C^-1 = sum_j C_j^-1 + (1 - n) C_0^-1   (2)

where C_j^-1 = S_j^-1 + alpha^2 / sigma^2 I, and S_j is the covariance of x1 given o_j (Linhart et al. 2024,
arXiv:2404.07593, who write (2) for scores). It is exact if these distributions are normal. Otherwise it is exact at the
data end of the path, and an approximation elsewhere.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.abilities import Ends, HasEnds
from flowjax.guidance.guide import Guide
from flowjax.typing import Batched, Cond, Time

__all__ = ["Composed", "precisions_of"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["observations", "precisions", "prior_mean", "prior_precision"],
    meta_fields=["model", "null"],
)
@dataclass(frozen=True, eq=False)
class Composed(Guide):
    """The model of x given several observations.

    Attributes:
        model: a model of x given one observation, or none, on a path with a normal source and without further noise.
        observations: conditions by name, (n, *shape): one row for each observation.
        precisions: S_j^-1 for each observation, (n, D, D), of x as a vector of D numbers (`precisions_of`).
        prior_mean, prior_precision: mean (D,) and inverse covariance (D, D) of x without observations.
        null: the null value of each condition by name, with which the model predicts x without observations; None to
            take the normal distribution of `prior_mean` and `prior_precision` for it.
    """

    model: HasEnds
    observations: dict[str, Array]
    precisions: Float[Array, "n D D"]
    prior_mean: Float[Array, " D"]
    prior_precision: Float[Array, "D D"]
    null: tuple[tuple[str, float], ...] | None = None

    def ends(self, t: Time, x: Batched, cond: Cond = None) -> Ends:
        """The ends given all observations: equation (2). The condition is ignored."""
        rows, d = x.shape[0], self.prior_mean.shape[0]
        rates = self.path.rates(t, x)
        square = lambda rate: jnp.broadcast_to(rate.reshape(-1)[:, None, None] ** 2, (rows, 1, 1))
        alpha, sigma = square(rates.alpha), square(rates.sigma)
        # sigma^2 times the precisions, which are finite at the data end, where sigma is 0
        scaled = lambda precision: sigma * precision + alpha * jnp.eye(d)
        apply = lambda matrix, v: jnp.einsum("bij,bj->bi", matrix, v)
        repeat = lambda one: {name: jnp.broadcast_to(a, (rows, *a.shape)) for name, a in one.items()}
        n = self.precisions.shape[0]

        def add(total: tuple[Array, ...], one: tuple[dict[str, Array], Array]) -> tuple[tuple[Array, ...], None]:
            weighted, matrix, x0, x1 = total
            ends = self.model.ends(t, x, repeat(one[0]))
            flat = ends.x1.reshape(rows, d)
            weighted = weighted + apply(scaled(one[1]), flat)
            return (weighted, matrix + scaled(one[1]), x0 + ends.x0 / n, x1 + ends.x1 / n), None

        start = jnp.zeros((rows, d), x.dtype), jnp.zeros((rows, d, d), x.dtype), jnp.zeros_like(x), jnp.zeros_like(x)
        (weighted, matrix, x0, x1), _ = jax.lax.scan(add, start, (self.observations, self.precisions))
        mean = self._prior_mean(t, x).reshape(rows, d)
        weighted = weighted + (1 - n) * apply(scaled(self.prior_precision), mean)
        matrix = matrix + (1 - n) * scaled(self.prior_precision)
        composed = jnp.linalg.solve(matrix, weighted[..., None])[..., 0].reshape(x.shape)
        at_data = rates.sigma == 0
        ratio = jnp.where(at_data, 0.0, rates.alpha / jnp.where(at_data, 1.0, rates.sigma))
        return Ends(x0 - ratio * (composed - x1), composed)

    def _prior_mean(self, t: Time, x: Batched) -> Batched:
        """E[x1 | x_t] without observations."""
        if self.null is not None:
            values = dict(self.null)
            missing = {
                name: jnp.full((x.shape[0], *a.shape[1:]), values[name]) for name, a in self.observations.items()
            }
            return self.model.ends(t, x, missing).x1
        rates, d = self.path.rates(t, x), self.prior_mean.shape[0]
        covariance = jnp.linalg.inv(self.prior_precision)
        alpha, sigma = (jnp.broadcast_to(r.reshape(-1)[:, None], (x.shape[0], 1)) for r in (rates.alpha, rates.sigma))
        noisy = alpha[..., None] ** 2 * covariance + sigma[..., None] ** 2 * jnp.eye(d)
        gap = x.reshape(-1, d) - alpha * self.prior_mean
        moved = jnp.einsum("ij,bj->bi", covariance, jnp.linalg.solve(noisy, gap[..., None])[..., 0])
        return (self.prior_mean + alpha * moved).reshape(x.shape)


def precisions_of(
    samples: Float[Array, "n N D"], prior_covariance: Float[Array, "D D"]
) -> tuple[Float[Array, "n D D"], Float[Array, "D D"]]:
    """Estimates the precisions of `Composed` from samples given each single observation.

    An observation cannot make a normal distribution wider, so that each precision is at least that of the prior: where
    the estimate is not, because samples are finite or the posterior is not normal, it is moved there.

    Args:
        samples: of x given each observation, (n, N, D), N > D.
        prior_covariance: of x without observations.

    Returns:
        The precisions (n, D, D), and the precision of the prior (D, D).
    """
    prior = jnp.linalg.inv(prior_covariance)
    centred = samples - samples.mean(1, keepdims=True)
    covariances = jnp.einsum("nki,nkj->nij", centred, centred) / (samples.shape[1] - 1)
    values, vectors = jnp.linalg.eigh(jnp.linalg.inv(covariances) - prior)
    gained = jnp.einsum("nik,nk,njk->nij", vectors, jnp.maximum(values, 0.0), vectors)
    return prior + gained, prior
