"""The variational bound in continuous time, with the integers at its end (Kingma et al. 2021, arXiv:2107.00630).

It is the limit of the chain (`flowjax.bits.chain`) for many steps. Between the times t_0 and t_1, with the centre c of
the bins of the integers x, z_t = alpha c + sigma e, and the noise e_hat that the network predicts at z_t, in nats,

    (1)  -log P(x) <= KL(q(z_0 | x) || prior) + 1/2 integral of E |e - e_hat|^2 d(log SNR) - E log p(x | z_1)

With SNR |c - c_hat|^2 = |e - e_hat|^2 the second term is eq. 18 of the paper, 1/2 integral of SNR' E |c - c_hat|^2 dt.
It depends on the schedule only through the log-SNR at both ends: the schedule is a choice of how to draw the log-SNR.
Here it is drawn from a density on equal bins of log-SNR (`LogSnrDensity`), which `methods.variational_diffusion` learns
so that the variance of the estimate is small. The last term takes the posterior of the integers given z_1
(`flowjax.bits.decoders`), which needs no network.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.bits.bins import Bins
from flowjax.bits.chain import BoundTerms, noised, prior_divergence
from flowjax.bits.decoders import log_posterior_of_bin
from flowjax.keys import RowKeys, fold_rows
from flowjax.schedules import clip_time
from flowjax.sources import Normal, sum_event
from flowjax.typing import Batched, Cond

__all__ = ["LogSnrDensity", "continuous_bound"]


@partial(jax.tree_util.register_dataclass, data_fields=["low", "high", "logits"], meta_fields=[])
@dataclass(frozen=True)
class LogSnrDensity:
    """A density of the log-SNR on [low, high], constant on equal bins: a monotone, piecewise linear schedule.

    The schedule s -> log-SNR for s in [0, 1] is the inverse of the distribution function, so its slope is one over the
    density.

    Attributes:
        low, high: the ends of the interval.
        logits: (K,) the logarithms of the masses of the bins, up to a constant.
    """

    low: float | Float[Array, ""]
    high: float | Float[Array, ""]
    logits: Float[Array, " K"]

    def schedule(self, s: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """The log-SNR at s in [0, 1], increasing."""
        masses = jax.nn.softmax(self.logits)
        ends = jnp.cumsum(masses)
        k = jnp.clip(jnp.searchsorted(ends, s, side="right"), 0, masses.size - 1)
        inside = jnp.clip((s - (ends[k] - masses[k])) / masses[k], 0, 1)
        return self.low + (k + inside) * ((self.high - self.low) / masses.size)

    def log_density(self, log_snr: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """The logarithm of the density of the log-SNR."""
        width = (self.high - self.low) / self.logits.size
        k = jnp.clip((log_snr - self.low) / width, 0, self.logits.size - 1).astype(int)
        return jax.nn.log_softmax(self.logits)[k] - jnp.log(width)


def continuous_bound(
    model: Any,
    prior: Normal,
    bins: Bins,
    keys: RowKeys,
    edges: Batched,
    cond: Cond = None,
    *,
    interval: tuple[float, float],
    density: LogSnrDensity,
    draws: int,
) -> BoundTerms:
    """The terms of (1) for each row.

    Args:
        model: a model with the ability `ends` on a Gaussian path.
        prior: the distribution from which sampling starts, a normal one.
        bins: the bins; all entries are integers.
        keys: (B,) keys; the estimate of a row depends on its key only.
        edges: the lower edges of the bins of the integers in model space, (B, *event).
        cond: the condition.
        interval: the times t_0 and t_1, at which alpha and sigma are not zero.
        density: of the log-SNR, between those at t_0 and t_1.
        draws: the number of values of the log-SNR for each row, one in each of `draws` equal parts of its distribution.
    """
    path, centres = model.path, bins.centres(edges)
    offsets = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, draws + 1), (draws,)))(keys)

    def add(total: Array, i: Array) -> tuple[Array, None]:
        log_snr = density.schedule((i + offsets[:, i]) / draws)
        t = jnp.clip(clip_time(path.schedule, log_snr), *interval)
        z, e = noised(path, fold_rows(keys, i), t, centres)
        square = sum_event((e - model.ends(t, z, cond).x0) ** 2)
        return total + 0.5 * square * jnp.exp(-density.log_density(log_snr)), None

    total, _ = jax.lax.scan(add, jnp.zeros(edges.shape[0]), jnp.arange(draws))
    with jax.ensure_compile_time_eval():
        alpha, sigma = float(path.schedule.alpha(interval[1])), float(path.schedule.sigma(interval[1]))
    e = jax.vmap(lambda key: jax.random.normal(key, edges.shape[1:]))(fold_rows(keys, draws))
    reconstruction = -log_posterior_of_bin(centres + sigma / alpha * e, sigma / alpha, edges, bins)
    return BoundTerms(prior_divergence(path, interval[0], centres, prior), total / draws, reconstruction)
