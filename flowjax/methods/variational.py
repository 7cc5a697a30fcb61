"""The variational bound of a discrete chain (Ho et al. 2020, eq. 5; Nichol & Dhariwal 2021).

Levels t_1 < ... < t_n run from the noise to the data. In nats an example,

    -log p(x1) <= KL(q(x_1st | x1) | prior) + sum_k KL(q(x_{k+1} | x_k, x1) | p(x_{k+1} | x_k)) - log p(x1 | x_n)

with q(x_{k+1} | x_k, x1) the posterior of `flowjax.paths.transition`, p the same with the network's E[x1 | x_k] for
x1 and a fixed or learned variance, and p(x1 | x_n) = N(E[x1 | x_n], (sigma_n / alpha_n)^2 I). The first term has no
parameters. DDPM's "simple" loss is `conditional` with the noise as target and `times.Levels`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowjax.batch import Batch
from flowjax.couplings import Independent
from flowjax.methods.flow_matching import Diagnosed, DiagnosedLoss, ParametricApply, draw, row_mean_square
from flowjax.methods.times import Drawn, Interval, Levels, Profile
from flowjax.paths.affine import GaussianPath
from flowjax.paths.transition import Variance, step_variance, transition
from flowjax.predictions import Ends, Prediction
from flowjax.sources import Source, sum_event
from flowjax.typing import Batched, Params, PRNGKey

HYBRID = 1e-3
"""Weight of the bound beside the simple loss (Nichol & Dhariwal 2021, eq. 16)."""


def bound_term(
    path: GaussianPath, t: Array, s: Array, last: Array, x: Batched, x1: Batched, ends: Ends, variance: Variance
) -> Float[Array, " B"]:
    """One term of the bound for each row, nats: that of the step from t to s, or of the decoder where `last`."""
    q = transition(path, jnp.where(last, t - 1e-2, t), s, x)  # a step from the last level to itself has no variance
    var = step_variance(q, variance, ends.spread)
    miss = (q.from_x1 * (x1 - ends.x1)) ** 2
    kl = 0.5 * sum_event(jnp.broadcast_to(q.small / var - 1 - jnp.log(q.small / var), x.shape) + miss / var)
    r = path.rates(t, x)
    decoder = (r.sigma / r.alpha) ** 2
    nll = 0.5 * sum_event((x1 - ends.x1) ** 2 / decoder + jnp.log(2 * jnp.pi * jnp.broadcast_to(decoder, x.shape)))
    return jnp.where(last, nll, kl)


def variational(
    apply: ParametricApply,
    path: GaussianPath,
    source: Source,
    prediction: Prediction,
    levels: Levels,
    variance: Variance = "small",
    hybrid: bool = False,
) -> DiagnosedLoss:
    """The bound in nats a dimension, by one random level a row; without its first, constant term.

    Args:
        apply: the network.
        path, source: a Gaussian path from N(0, I).
        prediction: one that reads as ends; `noise_variance` where the variance is learned.
        levels: of the chain.
        variance: of the reverse steps.
        hybrid: the squared error of the noise plus 1e-3 times the bound, which then teaches the variance alone.
    """
    interval = prediction.interval(path)
    with jax.ensure_compile_time_eval():
        if float(path.schedule.sigma(interval[1])) == 0:
            raise ValueError(
                f"the bound needs noise at its last level, and {path.schedule} has none at "
                f"t = {interval[1]:.4g}: take a diffusion's schedule, such as ddpm_linear or vp"
            )

    def loss(params: Params, key: PRNGKey, batch: Batch) -> Diagnosed:
        key_level, key_draw = jax.random.split(key)
        n = batch.x1.shape[0]
        grid = levels.grid(path, interval)
        k = jax.random.randint(key_level, (n,), 0, levels.n)

        def at_level(key: PRNGKey, n: int, path: object, interval: Interval, profile: Profile | None = None) -> Drawn:
            return Drawn(grid[k], jnp.ones(n))

        p, _, violation = draw(key_draw, batch, path, source, Independent(), interval, at_level)
        output = apply(params, p.t, prediction.inputs(path, p.t, p.x_t), batch.cond)
        ends = prediction.to_ends(path, p.t, p.x_t, output)
        simple = row_mean_square(ends.x0 - p.x0)
        if hybrid:
            ends = ends._replace(x0=jax.lax.stop_gradient(ends.x0), x1=jax.lax.stop_gradient(ends.x1))
        s = grid[jnp.minimum(k + 1, levels.n - 1)]
        last = k == levels.n - 1
        term = bound_term(path, p.t, s, last, p.x_t, batch.x1, ends, variance)
        bound = levels.n * term / batch.x1[0].size
        return Diagnosed(jnp.mean(simple + HYBRID * bound if hybrid else bound), violation)

    return loss
