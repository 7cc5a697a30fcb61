"""The variational bound of a chain of N steps, with the integers at its end (Ho et al. 2020, arXiv:2006.11239, eq. 5).

The levels t_1 < ... < t_N run from the noise to the data, c is the centre of the bins of the integers x, and
q(z_t | x) = N(alpha_t c, sigma_t^2 I). In nats per example,

    (1)  -log P(x) <= KL(q(z_1 | x) || prior) + sum_{k < N} E KL(q(z_{k+1} | z_k, x) || p(z_{k+1} | z_k))
                      - E log p(x | z_N)

The reverse step p(z_{k+1} | z_k) replaces c in q(z_{k+1} | z_k, x) (`flowjax.paths.transition`) by the prediction of
the network, and has a fixed or learned variance. The last step gives the integers the mass of N(m, (sigma_N /
alpha_N)^2) in their bins (`flowjax.bits.decoders`), where m is the prediction at z_N. The expectation in each term is
estimated by one draw of z_k.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flowjax.bits.bins import Bins
from flowjax.bits.decoders import log_mass_in_bin
from flowjax.keys import RowKeys, fold_rows
from flowjax.paths.affine import AffinePath
from flowjax.paths.transition import Variance, step_variance, transition
from flowjax.sources import Normal, sum_event
from flowjax.typing import Batched, Cond, Time

__all__ = ["BoundTerms", "chain_bound", "noised", "prior_divergence"]


Rows = Float[Array, " B"] | Float[np.ndarray, " B"]


class BoundTerms(NamedTuple):
    """An unbiased estimate of a bound on -log P(x) in nats, for each row, as the sum of three terms, each (B,).

    Attributes:
        prior: the divergence of the noisiest sample given x from the prior.
        diffusion: the divergences of the reverse steps, or their limit.
        reconstruction: -log P(x | the least noisy sample).
    """

    prior: Rows
    diffusion: Rows
    reconstruction: Rows

    @property
    def total(self) -> Rows:
        return self.prior + self.diffusion + self.reconstruction


def prior_divergence(path: AffinePath, time: Time, centres: Batched, prior: Normal) -> Float[Array, " B"]:
    """KL(N(alpha c, sigma^2 I) || prior) at a time, in nats."""
    r = path.rates(time, centres)
    scale = jnp.asarray(prior.scale)
    gap = r.alpha * centres - jnp.asarray(prior.loc)
    ratio = jnp.broadcast_to(r.sigma / scale, centres.shape)
    return sum_event(0.5 * (ratio**2 + (gap / scale) ** 2 - 1) - jnp.log(ratio))


def noised(path: AffinePath, keys: RowKeys, t: Float[Array, " B"], centres: Batched) -> tuple[Batched, Batched]:
    """Draws the noise of each row from its own key, and returns the points at time t, with that noise."""
    r = path.rates(t, centres)
    e = jax.vmap(lambda key: jax.random.normal(key, centres.shape[1:]))(keys)
    return r.alpha * centres + r.sigma * e, e


def chain_bound(
    model: Any,
    prior: Normal,
    bins: Bins,
    keys: RowKeys,
    edges: Batched,
    cond: Cond = None,
    *,
    times: Float[Array, " N"],
    draws: int,
    variance: Variance = "small",
) -> BoundTerms:
    """The terms of (1) for each row.

    Args:
        model: a model with the ability `ends` on a Gaussian path.
        prior: the distribution from which sampling starts, a normal one.
        bins: the bins.
        keys: (B,) keys; the estimate of a row depends on its key only.
        edges: the lower edges of the bins of the integers in model space, (B, *event).
        cond: the condition.
        times: the N levels, increasing. The noise of the path is not zero at the last one.
        draws: the number of steps of the sum that are evaluated for each row, one at random in each of `draws` equal
            parts of the chain. N - 1 takes each step once, without random numbers for the choice.
        variance: the variance of the reverse steps.
    """
    path, centres, rows = model.path, bins.centres(edges), edges.shape[0]
    steps = times.shape[0] - 1
    chosen = _chosen(keys, steps, draws)

    def add(total: Array, one: tuple[Array, Array, Array]) -> tuple[Array, None]:
        i, t, s = one
        z, _ = noised(path, fold_rows(keys, i), t, centres)
        ends, q = model.ends(t, z, cond), transition(path, t, s, z)
        var = step_variance(q, variance, ends.variance_fraction)
        spread = jnp.broadcast_to(q.small / var - 1 - jnp.log(q.small / var), z.shape)
        return total + 0.5 * sum_event(spread + (q.from_x1 * (centres - ends.x1)) ** 2 / var), None

    total, _ = jax.lax.scan(add, jnp.zeros(rows), (jnp.arange(draws), times[chosen].T, times[chosen + 1].T))
    last = jnp.full(rows, times[-1])
    z, _ = noised(path, fold_rows(keys, draws), last, centres)
    r = path.rates(last, z)
    reconstruction = -log_mass_in_bin(model.ends(last, z, cond).x1, r.sigma / r.alpha, edges, bins)
    return BoundTerms(prior_divergence(path, times[0], centres, prior), total * (steps / draws), reconstruction)


def _chosen(keys: RowKeys, steps: int, draws: int) -> Int[Array, "B draws"]:
    """The numbers of the steps that are evaluated for each row."""
    if draws == steps:
        return jnp.broadcast_to(jnp.arange(steps), (keys.shape[0], steps))
    offsets = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, draws + 1), (draws,)))(keys)
    return jnp.minimum((jnp.arange(draws) + offsets) * (steps / draws), steps - 1).astype(int)
