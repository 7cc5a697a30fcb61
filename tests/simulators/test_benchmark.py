"""Simulators against closed forms, SciPy's ODE solver, and the benchmark's reference posteriors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import expit
from scipy.stats import lognorm, multivariate_normal

from flowjax.metrics.cache import cache_folder
from flowjax.simulators import BENCHMARK, LogNormal, MultivariateNormal

N = 4096


def at(name: str, theta, n: int = N) -> np.ndarray:
    """n observations of one vector of parameters, in float64."""
    rows = jnp.tile(jnp.asarray(theta, jnp.float32), (n, 1))
    return np.asarray(jax.jit(BENCHMARK[name]().simulate)(jax.random.key(3), rows), np.float64)


def agrees(samples: np.ndarray, mean, errors: float = 5.0) -> None:
    """The mean of the samples is `mean` within 5 standard errors: a chance of 6e-7 for each coordinate."""
    error = samples.std(0) / math.sqrt(len(samples))
    np.testing.assert_array_less(np.abs(samples.mean(0) - mean), errors * error + 1e-6)


@pytest.mark.parametrize("name", BENCHMARK)
def test_draws_of_the_prior_are_inside_its_support_and_have_observations(name):
    simulator = BENCHMARK[name]()
    theta, x = simulator.sample(jax.random.key(0), 64)
    dims = {"gaussian_linear": 10, "gaussian_linear_uniform": 10, "slcp": 8, "bernoulli_glm": 10}
    dims |= {"gaussian_mixture": 2, "two_moons": 2, "sir": 10, "lotka_volterra": 20}
    assert theta.shape == (64, *simulator.prior.shape)
    assert x.shape == (64, dims[name])
    assert np.isfinite(x).all()
    assert ((theta >= jnp.asarray(simulator.low)) & (theta <= jnp.asarray(simulator.high))).all()
    assert np.isfinite(simulator.prior.log_prob(theta)).all()
    assert len(simulator.names) in (0, *simulator.prior.shape)


def test_moments_of_the_gaussian_tasks():
    theta = np.linspace(-1, 1, 10)
    for name in ("gaussian_linear", "gaussian_linear_uniform"):
        noise = at(name, theta) - theta
        agrees(noise, 0.0)
        agrees(noise**2, 0.1)
    noise = at("gaussian_mixture", [3.0, -4.0]) - [3.0, -4.0]
    agrees(noise**2, (1 + 0.01) / 2)
    agrees(noise**4, 3 * (1 + 1e-4) / 2)  # E z^4 = 3; one normal distribution of this variance has 0.77
    assert np.mean(np.prod(noise**2, 1)) == pytest.approx(0.5, abs=0.12)  # the coordinates share their component


def test_moments_of_slcp():
    """Mean, variances and covariance of the points, and that the four points are independent."""
    theta = [0.7, -2.9, -1.1, 0.6, 0.4]
    points = at("slcp", theta).reshape(N, 4, 2) - theta[:2]
    agrees(points.reshape(N, 8), 0.0)
    agrees((points**2).reshape(N, 8), np.tile([1.1**4, 0.6**4], 4))
    agrees(points[..., 0] * points[..., 1], math.tanh(0.4) * 1.1**2 * 0.6**2)
    agrees(points[:, 0, 0] * points[:, 1, 0], 0.0)


def test_moments_of_the_moons():
    """With a uniform on (-pi/2, pi/2), E cos a = 2/pi, E sin a = 0, and E r^2 = 0.1^2 + 0.01^2."""
    theta = np.array([0.3, -0.8])
    x = at("two_moons", theta)
    crescent = x - [-abs(theta.sum()) / math.sqrt(2) + 0.25, (theta[1] - theta[0]) / math.sqrt(2)]
    agrees(crescent, [0.1 * 2 / math.pi, 0.0])
    agrees((crescent**2).sum(1), 0.1**2 + 0.01**2)
    assert crescent[:, 0].min() > -1e-6


def test_statistics_of_the_spikes():
    """The sums over spikes at each lag, by NumPy's correlation instead of a design matrix."""
    theta = np.array([0.2, 1.0, -0.5, 0.3, 0.8, -1.2, 0.1, 0.0, 0.4, -0.3])
    stimulus = np.random.RandomState(42).randn(100)
    drive = theta[0] + np.convolve(stimulus, theta[1:])[:100]
    p = expit(drive)
    lagged = np.correlate(p, stimulus, "full")[99:108]  # sum_t p(t) s(t - k)
    statistics = at("bernoulli_glm", theta)
    agrees(statistics, [p.sum(), *lagged])
    agrees((statistics[:, 0] - p.sum()) ** 2, (p * (1 - p)).sum())


def test_epidemics_and_predators_follow_their_equations():
    def sir(t, y):
        return [-0.5 * y[0] * y[1], 0.5 * y[0] * y[1] - 0.15 * y[1]]

    days = np.arange(0, 160, 17.0)
    infected = solve_ivp(sir, (0, 160), [1 - 1e-6, 1e-6], t_eval=days, rtol=1e-10, atol=1e-14).y[1]
    counts = at("sir", [0.5, 0.15], 512)
    error = np.sqrt(1000 * infected * (1 - infected) / len(counts))  # of the mean of binomial counts
    np.testing.assert_array_less(np.abs(counts.mean(0) - 1000 * infected), 5 * error)
    assert np.all(counts == np.round(counts))

    def predators(t, y):
        return [0.9 * y[0] - 0.05 * y[0] * y[1], -0.8 * y[1] + 0.04 * y[0] * y[1]]

    times = 2.1 * np.arange(10)
    exact = solve_ivp(predators, (0, times[-1]), [30, 1], t_eval=times, rtol=1e-10, atol=1e-12).y.reshape(-1)
    logs = np.log(at("lotka_volterra", [0.9, 0.05, 0.8, 0.04], 512)) - np.log(exact)
    agrees(logs, 0.0)
    agrees(logs**2, 0.01)


def test_priors_are_those_of_scipy():
    """Densities to the rounding of float32: of a sum of 10 terms of order 10 (1e-5)."""
    prior = BENCHMARK["bernoulli_glm"]().prior
    assert isinstance(prior, MultivariateNormal)
    covariance = np.linalg.inv(np.asarray(prior.precision, np.float64))
    theta = np.asarray(prior.sample(jax.random.key(1), N), np.float64)
    centred = theta[:, :, None] * theta[:, None, :]
    agrees(centred.reshape(N, -1), covariance.reshape(-1))
    expected = multivariate_normal(np.zeros(10), covariance).logpdf(theta[:32])
    np.testing.assert_allclose(prior.log_prob(jnp.asarray(theta[:32], jnp.float32)), expected, rtol=2e-5, atol=2e-5)
    positive = LogNormal((2,), jnp.array([0.5, -1.0]), jnp.array([0.3, 2.0]))
    x = np.asarray(positive.sample(jax.random.key(2), 32), np.float64)
    expected = lognorm([0.3, 2.0], scale=np.exp([0.5, -1.0])).logpdf(x).sum(1)
    np.testing.assert_allclose(positive.log_prob(jnp.asarray(x, jnp.float32)), expected, rtol=2e-5, atol=2e-5)
    assert positive.log_prob(jnp.array([[1.0, -1.0]])) == -jnp.inf


def reference(task: str):
    path = cache_folder() / "sbibm" / f"{task}.npz"
    if not path.exists():
        pytest.skip(f"needs the reference posteriors of the benchmark, {path.name}")
    with np.load(path) as file:
        return [np.asarray(file[key], np.float64) for key in ("observation", "reference")]


@pytest.mark.data
def test_the_reference_posteriors_are_those_of_these_tasks():
    """Of each posterior a property that follows from the prior and the likelihood of the task."""
    x, theta = reference("gaussian_linear")  # normal, with mean x / 2 and variance 0.05
    for observation, samples in zip(x, theta, strict=True):
        agrees(samples, observation / 2)
        agrees((samples - observation / 2) ** 2, 0.05)
    x, theta = reference("bernoulli_glm")  # the mean of the gradient of the log-density is 0
    stimulus = np.random.RandomState(42).randn(100)
    design = np.stack([np.ones(100), *(np.concatenate([np.zeros(k), stimulus[: 100 - k]]) for k in range(9))], 1)
    precision = np.asarray(BENCHMARK["bernoulli_glm"]().prior.precision, np.float64)
    for observation, samples in zip(x, theta, strict=True):
        agrees(observation - expit(samples @ design.T) @ design - samples @ precision, 0.0)
    x, theta = reference("two_moons")  # the radius of the crescent has mean 0.1 and deviation 0.01
    for observation, samples in zip(x, theta, strict=True):
        place = np.stack([-np.abs(samples.sum(1)), samples[:, 1] - samples[:, 0]], 1) / math.sqrt(2)
        radius = np.linalg.norm(observation - place - [0.25, 0.0], axis=1)
        assert radius.mean() == pytest.approx(0.1, abs=0.002)
        assert radius.std() == pytest.approx(0.01, abs=0.002)


@pytest.mark.data
@pytest.mark.parametrize("task", ["sir", "lotka_volterra"])
def test_observations_are_usual_for_parameters_of_their_posterior(task):
    """The observation differs from predictions by about their deviation: the mean square of the ratio is about 1."""
    x, theta = reference(task)
    simulate = jax.jit(BENCHMARK[task]().simulate)
    for observation, samples in zip(x[:3], theta[:3], strict=True):
        drawn = np.asarray(simulate(jax.random.key(0), jnp.asarray(samples[:512], jnp.float32)), np.float64)
        ratio = (observation - drawn.mean(0)) / np.maximum(drawn.std(0), 0.5 if task == "sir" else 0.0)
        assert 0.05 < np.mean(ratio**2) < 3.0
