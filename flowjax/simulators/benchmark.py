"""Eight tasks of the benchmark of simulation-based inference, whose numbers are those of the package sbibm 1.1.0.

Lueckmann, Boelts, Greenberg, Goncalves and Macke, "Benchmarking Simulation-Based Inference", AISTATS 2021, appendix T.
"""

import math
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowjax.simulators.priors import LogNormal, MultivariateNormal
from flowjax.simulators.simulator import Simulator
from flowjax.sources import Normal, Uniform
from flowjax.typing import Batched, PRNGKey

__all__ = [
    "BENCHMARK",
    "bernoulli_glm",
    "gaussian_linear",
    "gaussian_linear_uniform",
    "gaussian_mixture",
    "lotka_volterra",
    "sir",
    "slcp",
    "two_moons",
]

_TOLERANCE = 1e-5
"""Relative and absolute tolerance of the solutions of ODEs, whose states are logarithms and fractions of order 1."""


def gaussian_linear() -> Simulator:
    """Ten means with independent normal priors and normal noise, both of variance 0.1 (appendix T.1)."""
    return Simulator(Normal((10,), 0.0, math.sqrt(0.1)), _with_noise)


def gaussian_linear_uniform() -> Simulator:
    """Ten means in [-1, 1), with normal noise of variance 0.1 (appendix T.2)."""
    return _in_a_box(1.0, 10, _with_noise)


def _in_a_box(bound: float, d: int, simulate: Callable[[PRNGKey, Float[Array, "n D"]], Batched]) -> Simulator:
    """A simulator whose prior is uniform on [-bound, bound) in each of d parameters."""
    return Simulator(Uniform((d,), -bound, bound), simulate, low=-bound, high=bound)


def _with_noise(key: PRNGKey, theta: Float[Array, "n D"]) -> Float[Array, "n D"]:
    return theta + math.sqrt(0.1) * jax.random.normal(key, theta.shape)


def slcp() -> Simulator:
    """Simple likelihood, complex posterior: four points from a normal distribution in the plane (appendix T.3).

    Its mean is (theta_1, theta_2), its standard deviations are theta_3^2 and theta_4^2, and its correlation is
    tanh(theta_5); all in [-3, 3). The posterior has four modes, as the signs of theta_3 and theta_4 do not matter.
    """

    def simulate(key: PRNGKey, theta: Float[Array, "n 5"]) -> Float[Array, "n 8"]:
        mean, scale, rho = theta[:, :2], theta[:, 2:4] ** 2, jnp.tanh(theta[:, 4])
        z = jax.random.normal(key, (len(theta), 4, 2))
        second = rho[:, None] * z[..., 0] + jnp.sqrt(1 - rho[:, None] ** 2) * z[..., 1]
        points = mean[:, None] + scale[:, None] * jnp.stack([z[..., 0], second], -1)
        return points.reshape(-1, 8)

    return _in_a_box(3.0, 5, simulate)


def bernoulli_glm() -> Simulator:
    """A generalised linear model of 100 spikes that a white noise stimulus drives (appendix T.5).

    The probability of a spike at time t is the logistic function of theta_0 + sum_k theta_k s_(t - k + 1). The
    observation has the sufficient statistics: the number of spikes, and the sum of the stimulus over spikes at lags 0
    to 8. The prior of the filter theta_1, ..., theta_9 penalises its second differences.
    """
    stimulus = np.random.RandomState(42).randn(100)  # as in the benchmark, whose file has these numbers
    lagged = [np.concatenate([np.zeros(k), stimulus[: 100 - k]]) for k in range(9)]
    design = jnp.asarray(np.stack([np.ones(100), *lagged], 1), jnp.float32)
    difference = np.eye(9) - np.eye(9, k=-1)
    roughness = difference @ difference + np.diag(np.sqrt(np.arange(9) / 9))
    precision = np.zeros((10, 10))
    precision[0, 0], precision[1:, 1:] = 0.5, roughness.T @ roughness

    def simulate(key: PRNGKey, theta: Float[Array, "n 10"]) -> Float[Array, "n 10"]:
        spikes = jax.random.bernoulli(key, jax.nn.sigmoid(theta @ design.T))
        return spikes.astype(jnp.float32) @ design

    return Simulator(MultivariateNormal(jnp.asarray(precision, jnp.float32)), simulate)


def gaussian_mixture() -> Simulator:
    """The common mean, in [-10, 10)^2, of two normal distributions with deviations 1 and 0.1 (appendix T.7)."""

    def simulate(key: PRNGKey, theta: Float[Array, "n 2"]) -> Float[Array, "n 2"]:
        key_which, key_z = jax.random.split(key)
        scale = jnp.where(jax.random.bernoulli(key_which, 0.5, (len(theta), 1)), 1.0, 0.1)
        return theta + scale * jax.random.normal(key_z, theta.shape)

    return _in_a_box(10.0, 2, simulate)


def two_moons() -> Simulator:
    """A crescent whose place depends on |theta_1 + theta_2| and theta_2 - theta_1, in [-1, 1)^2 (appendix T.8)."""

    def simulate(key: PRNGKey, theta: Float[Array, "n 2"]) -> Float[Array, "n 2"]:
        key_angle, key_radius = jax.random.split(key)
        angle = math.pi * (jax.random.uniform(key_angle, (len(theta),)) - 0.5)
        radius = 0.1 + 0.01 * jax.random.normal(key_radius, (len(theta),))
        place = jnp.stack([-jnp.abs(theta[:, 0] + theta[:, 1]), theta[:, 1] - theta[:, 0]], -1) / math.sqrt(2)
        return place + jnp.stack([radius * jnp.cos(angle) + 0.25, radius * jnp.sin(angle)], -1)

    return _in_a_box(1.0, 2, simulate)


def sir() -> Simulator:
    """Ten counts of infected people among 1,000 who are tested, every 17 days of an epidemic (appendix T.9).

    Of a million people one is infected at first. With the contact rate beta and the recovery rate gamma (per day), the
    fractions S, I follow dS/dt = -beta S I and dI/dt = (beta S - gamma) I. Solved for log I, so that a fraction of
    1e-6 has the same relative accuracy as a large one.
    """
    days = jnp.arange(0.0, 160.0, 17.0)

    def field(t: Any, y: Float[Array, " 2"], rates: Float[Array, " 2"]) -> Float[Array, " 2"]:
        s, log_i = y
        return jnp.stack([-rates[0] * s * jnp.exp(log_i), rates[0] * s - rates[1]])

    def simulate(key: PRNGKey, theta: Float[Array, "n 2"]) -> Float[Array, "n 10"]:
        start = jnp.array([1 - 1e-6, math.log(1e-6)])
        infected = jnp.exp(jax.vmap(lambda rates: _solve(field, start, rates, days))(theta)[..., 1])
        return jax.random.binomial(key, 1000.0, jnp.clip(infected, 0.0, 1.0))

    prior = LogNormal((2,), jnp.log(jnp.array([0.4, 0.125])), jnp.array([0.5, 0.2]))
    return Simulator(prior, simulate, ("beta", "gamma"), low=0.0)


def lotka_volterra() -> Simulator:
    """Predators and prey at ten times, each with log-normal errors of measurement of 0.1 (appendix T.10).

    dX/dt = (alpha - beta Y) X and dY/dt = (delta X - gamma) Y from X = 30, Y = 1, solved for the logarithms. The
    observation has ten values of X and then ten of Y, every 2.1 units of time.
    """
    times = 2.1 * jnp.arange(10.0)

    def field(t: Any, y: Float[Array, " 2"], rates: Float[Array, " 4"]) -> Float[Array, " 2"]:
        alpha, beta, gamma, delta = rates
        prey, predators = jnp.exp(y)
        return jnp.stack([alpha - beta * predators, delta * prey - gamma])

    def simulate(key: PRNGKey, theta: Float[Array, "n 4"]) -> Float[Array, "n 20"]:
        start = jnp.log(jnp.array([30.0, 1.0]))
        logs = jax.vmap(lambda rates: _solve(field, start, rates, times))(theta)
        logs = jnp.clip(jnp.swapaxes(logs, 1, 2).reshape(-1, 20), math.log(1e-10), math.log(1e4))
        return jnp.exp(logs + 0.1 * jax.random.normal(key, logs.shape))

    prior = LogNormal((4,), jnp.array([-0.125, -3.0, -0.125, -3.0]), 0.5)
    return Simulator(prior, simulate, ("alpha", "beta", "gamma", "delta"), low=0.0)


def _solve(field: Callable[..., Any], start: Any, rates: Any, times: Float[Array, " T"]) -> Float[Array, "T 2"]:
    """Solves an ODE of two states from times[0], and returns the states at all times; NaN if the solver fails."""
    found = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        times[0],
        times[-1],
        dt0=None,
        y0=start,
        args=rates,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=diffrax.PIDController(rtol=_TOLERANCE, atol=_TOLERANCE),
        max_steps=4096,
        throw=False,
    )
    return jnp.where(found.result == diffrax.RESULTS.successful, jnp.asarray(found.ys), jnp.nan)


BENCHMARK: dict[str, Callable[[], Simulator]] = {
    "gaussian_linear": gaussian_linear,
    "gaussian_linear_uniform": gaussian_linear_uniform,
    "slcp": slcp,
    "bernoulli_glm": bernoulli_glm,
    "gaussian_mixture": gaussian_mixture,
    "two_moons": two_moons,
    "sir": sir,
    "lotka_volterra": lotka_volterra,
}
"""The tasks by name."""
