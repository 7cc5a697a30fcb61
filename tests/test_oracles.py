"""Oracles against automatic differentiation, quadrature, Monte Carlo and the continuity equation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax import oracles
from flowjax.paths import GaussianPath
from flowjax.schedules import VP, CondOT, Cosine
from flowjax.sources import GaussianMixture

pytestmark = pytest.mark.analytic
MIXTURE = GaussianMixture(
    jnp.array([[2.0, 0.0], [-1.0, 1.0], [0.0, -2.0]]), jnp.array([0.5, 0.8, 0.3]), jnp.array([1.0, 2.0, 1.0])
)


@pytest.fixture(scope="module")
def points():
    return jax.random.normal(jax.random.key(0), (20, 2)) * 2


@pytest.mark.parametrize("schedule", [CondOT(), VP()])
def test_score_is_the_gradient_of_log_prob(points, schedule):
    oracle = oracles.mixture(GaussianPath(schedule), MIXTURE)
    for t in (0.0, 0.3, 0.9):
        gradient = jax.grad(lambda x, t=t: oracle.log_prob(t, x).sum())(points)
        np.testing.assert_allclose(oracle.score(t, points), gradient, rtol=2e-4, atol=2e-4)


def test_density_at_the_ends():
    oracle, x = oracles.mixture(GaussianPath(CondOT()), MIXTURE), jnp.array([[0.3, -0.4], [2.0, 1.0]])
    np.testing.assert_allclose(oracle.log_prob(0.0, x), stats.norm.logpdf(x).sum(1), rtol=1e-5)
    np.testing.assert_allclose(oracle.log_prob(1.0, x), MIXTURE.log_prob(x), rtol=1e-5)


def test_denoiser_is_the_posterior_mean_by_quadrature():
    """E[x1 | x_t] = integral of x1 p(x1) N(x_t; alpha x1, sigma^2) / p_t, summed on a fine grid in float64."""
    path, t = GaussianPath(Cosine()), 0.6
    oracle = oracles.mixture(path, MIXTURE)
    x = np.array([[0.5, 0.2], [-1.0, 1.0], [1.5, -1.0]], np.float32)
    axis = np.arange(-6, 6, 0.02)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    prior = sum(
        w * stats.multivariate_normal(m, s**2).pdf(grid)
        for m, s, w in zip(*map(np.asarray, (MIXTURE.means, MIXTURE.scales, MIXTURE.weights)), strict=True)
    )
    a, s = np.sin(np.pi / 2 * t), np.cos(np.pi / 2 * t)
    ends = oracle.denoiser(t, jnp.asarray(x))
    for i in range(3):
        weight = prior * np.exp(-((x[i] - a * grid) ** 2).sum(1) / (2 * s**2))
        x1 = (weight[:, None] * grid).sum(0) / weight.sum()
        np.testing.assert_allclose(ends.x1[i], x1, atol=2e-5)
        np.testing.assert_allclose(ends.x0[i], (x[i] - a * x1) / s, atol=2e-5)


def test_ends_add_up_to_the_point(points):
    path = GaussianPath(VP())
    t = jnp.linspace(0.01, 0.99, 20)
    ends = oracles.mixture(path, MIXTURE).denoiser(t, points)
    a, s = VP().alpha(t)[:, None], VP().sigma(t)[:, None]
    np.testing.assert_allclose(a * ends.x1 + s * ends.x0, points, atol=1e-5)


@pytest.mark.parametrize("schedule", [CondOT(), VP()])
def test_velocity_moves_the_density(points, schedule):
    """The continuity equation: d log p / dt + div v + v . score = 0 everywhere; float64."""
    with jax.enable_x64(True):
        mixture = GaussianMixture(
            *(jnp.asarray(a, jnp.float64) for a in (MIXTURE.means, MIXTURE.scales, MIXTURE.weights))
        )
        oracle, x = oracles.mixture(GaussianPath(schedule), mixture), points.astype(jnp.float64)
        for t in (0.2, 0.5, 0.8):
            rate = jax.jvp(lambda t: oracle.log_prob(t, x), (t,), (1.0,))[1]
            one = lambda x, t=t: oracle.velocity(t, x[None])[0]
            divergence = jnp.trace(jax.vmap(jax.jacfwd(one))(x), axis1=1, axis2=2)
            transport = jnp.sum(oracle.velocity(t, x) * oracle.score(t, x), -1)
            np.testing.assert_allclose(rate + divergence + transport, 0.0, atol=1e-9)


@pytest.mark.parametrize("shape", [(3,), (2, 2, 1)])
def test_gaussian_is_the_normal_it_says(shape):
    path = GaussianPath(CondOT())
    mean = np.arange(np.prod(shape)).reshape(shape) * 0.5
    x, t = jax.random.normal(jax.random.key(0), (6, *shape)), 0.7
    reference = stats.norm(0.7 * mean, np.sqrt((0.7 * 0.5) ** 2 + 0.3**2))
    np.testing.assert_allclose(
        oracles.gaussian(path, mean, 0.5).log_prob(t, x), reference.logpdf(x).reshape(6, -1).sum(1), rtol=1e-5
    )
    scalar, full = oracles.gaussian(path, 1.0, 0.5), oracles.gaussian(path, np.ones(shape), 0.5)
    for method in ("velocity", "score", "log_prob"):
        np.testing.assert_allclose(getattr(scalar, method)(t, x), getattr(full, method)(t, x), rtol=1e-5, atol=1e-6)


def test_dataset_is_a_mixture_of_points_and_lands_on_them():
    path = GaussianPath(CondOT())
    images = jax.random.normal(jax.random.key(0), (5, 2, 2, 1))
    oracle = oracles.dataset(path, images)
    x = 0.9 * images + 0.1 * 0.05
    np.testing.assert_allclose(oracle.denoiser(0.9, x).x1, images, atol=1e-3)
    flat = oracles.mixture(path, GaussianMixture(images.reshape(5, 4), 0.0))
    np.testing.assert_allclose(oracle.log_prob(0.5, x), flat.log_prob(0.5, x.reshape(5, 4)), rtol=1e-5)


def test_gaussian_velocity_in_closed_form():
    """CondOT, data N(m, s^2): v = m + (t s^2 - (1 - t)) / (t^2 s^2 + (1 - t)^2) (x - t m)."""
    t, m, s = 0.35, 1.5, 0.5
    x = jnp.linspace(-2, 2, 9)[:, None]
    expected = m + (t * s**2 - (1 - t)) / (t**2 * s**2 + (1 - t) ** 2) * (x - t * m)
    np.testing.assert_allclose(
        oracles.gaussian(GaussianPath(CondOT()), m, s).velocity(t, x), expected, rtol=1e-5, atol=1e-6
    )
