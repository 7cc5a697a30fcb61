"""Log-normalisers and free energies of unnormalised densities, by importance sampling with a model as the proposal.

For a density f(x) = exp(-U(x)), such as that of a potential energy U in units of the temperature, the logarithm of the
normaliser is log Z = log int f(x) dx, and the free energy is -log Z. The functions return log Z. With samples x of a
density q and weights w = f(x) / q(x),

    (1)  Z = E_q[w],   log Z ~ log mean w

A flow has a known q, by the change of variables (Noe et al. 2019, arXiv:1812.01729, Boltzmann generators). The weights
also correct averages: E_f[h] ~ sum w h(x) / sum w.

A chain x_0, ..., x_n with a source p, forward kernels F and backward kernels B has, for any kernels that are normalised
densities, weights with the same mean (Nilmeier et al. 2011; Wu et al. 2020, arXiv:2002.06707, stochastic normalizing
flows):

    (2)  w = f(x_n) prod_k B(x_k | x_{k+1}) / (p(x_0) prod_k F(x_{k+1} | x_k)),   E[w] = Z

Here F and B are the Euler-Maruyama steps of the SDE dX = (v + g^2/2 score) dt + g dW and of its reversal, which has the
drift v - g^2/2 score; both have the variance of the middle of the step. (2) needs no divergence, and is unbiased for
any number of steps and any network. The noise of a step cannot be 0: without it the kernels have no density. If the
network is exact, the weights are constant in the limit of small steps.

The average of weights is unbiased for Z. Its logarithm is too small by about stderr^2 / 2. A proposal that misses a
region where f is large, or visits it rarely, gives an estimate that is too small without any sign of it: the effective
sample size and the standard error are themselves estimated from the samples.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from flowjax.abilities import (
    abilities_of,
    interval_of,
    space_of,
)
from flowjax.keys import fold_rows, row_keys
from flowjax.likelihood import push_forward
from flowjax.paths.affine import AffinePath
from flowjax.predictions import no_score, well_conditioned
from flowjax.solvers.diffusions import Diffusion, default
from flowjax.solvers.samplers import standard_normal
from flowjax.solvers.stochastic import drift
from flowjax.sources import Source, sum_event
from flowjax.spaces import check_euclidean
from flowjax.typing import Batched, Cond, PRNGKey

__all__ = [
    "LogNormalizer",
    "UnnormalisedLogDensity",
    "Weighted",
    "importance_sample",
    "importance_sample_sde",
    "log_normalizer",
]

UnnormalisedLogDensity = Callable[[Batched], Float[Array, " B"]]
"""The logarithm of an unnormalised density, log f(x), of each row of x (B, *event), in nats."""

SMALLEST_SHARE = 0.1
"""The effective sample size as a share of the samples below which `log_normalizer` warns.

For a flow that covered another ring than that of the potential, estimates of log Z from 2,000 samples with shares of 6%
to 9% were too small by up to 8 of their standard errors (12 runs).
"""


class Weighted(NamedTuple):
    """Samples of a proposal with their importance weights.

    Attributes:
        x: samples, (n, *event).
        log_weights: log w, (n,), whose mean in w estimates Z.
        nfe: evaluations of the model for each sample, (n,).
    """

    x: Batched
    log_weights: Float[Array, " n"]
    nfe: Int[Array, " n"]


class LogNormalizer(NamedTuple):
    """An estimate of log Z, the negative free energy.

    Attributes:
        log_z: log mean w in nats, ().
        stderr: its standard error by the delta method, (): the relative standard error of the mean of w.
        ess: the effective sample size (sum w)^2 / sum w^2, between 1 and the number of samples, ().
    """

    log_z: Float[Array, ""]
    stderr: Float[Array, ""]
    ess: Float[Array, ""]


def log_normalizer(log_weights: Float[Array, " n"]) -> LogNormalizer:
    """The logarithm of the mean of weights, with its standard error and the effective sample size.

    Warns if the effective sample size is below 10% of the samples: the estimate then rests on few of them, and regions
    that the proposal visits rarely make log Z too small by more than its standard error.

    Args:
        log_weights: the logarithms of n >= 2 weights, (n,). Those of several calls can be concatenated.

    Raises:
        ValueError: if there are fewer than 2 weights, one of them is NaN, or all are 0.
    """
    n = log_weights.shape[0]
    if n < 2:
        raise ValueError(f"log_normalizer needs at least 2 weights, not {n}")
    largest = jnp.max(log_weights)
    largest = jnp.where(jnp.isfinite(largest), largest, 0.0)
    w = jnp.exp(log_weights - largest)
    ess = jnp.sum(w) ** 2 / jnp.sum(w**2)
    found = LogNormalizer(largest + jnp.log(jnp.mean(w)), jnp.sqrt(jnp.maximum(n / ess - 1, 0.0) / (n - 1)), ess)
    if isinstance(log_weights, Tracer):
        return found
    if bool(jnp.isnan(log_weights).any()):
        raise ValueError("a weight is NaN: check that log f is finite or -inf at samples of the proposal")
    if not bool(jnp.isfinite(found.log_z)):
        raise ValueError(f"log Z is {float(found.log_z)}: log f is -inf at all samples of the proposal, or inf at one")
    if (share := float(ess) / n) < SMALLEST_SHARE:
        warnings.warn(
            f"the effective sample size is {float(ess):.1f} of {n:,} samples ({100 * share:.2g}%): a few samples carry "
            "the estimate, which can be wrong, mostly too small, by several of its standard errors; compare other keys "
            "and more samples, or train the proposal on samples that are nearer to the density",
            stacklevel=2,
        )
    return found


def importance_sample(
    log_density: UnnormalisedLogDensity,
    model: Any,
    source: Source,
    key: PRNGKey,
    n: int,
    *,
    cond: Cond = None,
    solver: str = "dopri5",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    steps: int | None = None,
) -> Weighted:
    """Draws samples of a flow, with the weights f / q of equation (1).

    The divergence is exact: an estimate of it without bias would give weights with a bias. The tolerances of the solver
    are an error of log w in nats.

    Args:
        log_density: log f, in the space in which the model was trained.
        model: a bijection, a model with a velocity, or a velocity field v(t, x, cond).
        source: the distribution at the start, in general the `prior` of a run.
        key: sample i depends on the key and on i only.
        n: the number of samples.
        cond: the condition, with leading axis n, or None.
        solver, rtol, atol, steps: see `flowjax.solvers.solve_ode`; not used for a bijection.

    Raises:
        ValueError: if the model has neither a velocity nor an inverse, or log f does not have one number for each row;
            and as `solve_ode`.
    """
    z = _source_samples(source, key, n)
    x, found = push_forward(model, z, source, cond=cond, solver=solver, rtol=rtol, atol=atol, steps=steps)
    return Weighted(x, _of_batch(log_density, x) - found.log_prob, found.stats.nfe)


def importance_sample_sde(
    log_density: UnnormalisedLogDensity,
    model: Any,
    source: Source,
    key: PRNGKey,
    n: int,
    *,
    steps: int,
    g: Diffusion | None = None,
    cond: Cond = None,
) -> Weighted:
    """Draws samples of the SDE of a model, with the weights of equation (2) over the forward and backward chains.

    Args:
        log_density: log f, in the space in which the model was trained.
        model: a model with ends, on a path with a score.
        source: the distribution at the start, in general `path.prior(source)`.
        key: sample i depends on the key and on i only.
        n: the number of samples.
        steps: the number of steps of equal length; the model is evaluated once more than there are steps.
        g: the diffusion, (path, t) -> g^2, as in `flowjax.solvers.diffusions`, positive in the middle of each step;
            None for the default of the path.
        cond: the condition, with leading axis n, or None.

    Raises:
        ValueError: if steps < 1, the model has no ends, its path has no score, or g is 0 in a step.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    if "ends" not in (offered := abilities_of(model)):
        raise ValueError(f"the SDE needs a model with ends, and this model offers {', '.join(offered) or 'nothing'}")
    path: AffinePath = model.path
    if not path.has_score:
        raise ValueError(f"the SDE needs a score: {no_score(path)}")
    check_euclidean("importance sampling", space_of(model))
    g = default(path) if g is None else g
    low, high = well_conditioned(path, getattr(g, "needs_alpha", False), True)
    first, last = interval_of(model)
    times = jnp.linspace(max(low, first), min(high, last), steps + 1)
    variances = g(path, (times[:-1] + times[1:]) / 2) * jnp.diff(times)
    if not isinstance(variances, Tracer) and bool((variances <= 0).any()):
        raise ValueError(
            "g is 0 in a step, where the chain has no density: use a positive diffusion, or importance_sample, which "
            "solves the ODE"
        )
    keys, x = row_keys(key, n), _source_samples(source, key, n)

    def drifts(t: Array, x: Batched) -> tuple[Batched, Batched]:
        """The drift of the SDE, and that of its reversal."""
        ends, g2 = model.ends(t, x, cond), g(path, t)
        return drift(path, g2, t, x, ends), drift(path, -g2, t, x, ends)

    def step(state: tuple[Batched, Batched, Array], edge: tuple[Array, Array, Array, Array]) -> Any:
        (x, forward, log_weight), (t, t_next, std, k) = state, edge
        h = t_next - t
        noise = standard_normal(fold_rows(keys, k + 1), x)
        new = x + h * forward + std * noise
        forward, backward = drifts(t_next, new)
        back = (x - new + h * backward) / std
        return (new, forward, log_weight + 0.5 * sum_event(noise**2 - back**2)), None

    start = (x, drifts(times[0], x)[0], -source.log_prob(x))
    edges = (times[:-1], times[1:], jnp.sqrt(variances), jnp.arange(steps))
    (x, _, log_weight), _ = jax.lax.scan(step, start, edges)
    return Weighted(x, log_weight + _of_batch(log_density, x), jnp.full(n, steps + 1))


def _of_batch(log_density: UnnormalisedLogDensity, x: Batched) -> Float[Array, " n"]:
    """log f of each row of x; ValueError if the function does not return one number for each row."""
    values = log_density(x)
    if jnp.shape(values) != x.shape[:1]:
        raise ValueError(
            f"log_density takes a batch and returns one number for each row: for x {tuple(x.shape)} it must return "
            f"{tuple(x.shape[:1])}, not {jnp.shape(values)}; jax.vmap makes a function of one point take a batch"
        )
    return values


def _source_samples(source: Source, key: PRNGKey, n: int) -> Batched:
    """Samples of the source, of which row i depends on the key and on i only."""
    return jax.vmap(lambda k: source.sample(k, 1)[0])(fold_rows(row_keys(key, n), 0))
