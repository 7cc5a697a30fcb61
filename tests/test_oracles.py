"""Oracles against automatic differentiation, quadrature, Monte Carlo and the continuity equation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax import oracles
from flowjax.paths import AffinePath, Bridge, Constant, GaussianPath
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
    gradient = jax.jit(jax.grad(lambda x, t: oracle.log_prob(t, x).sum()))
    for t in (0.0, 0.3, 0.9):
        np.testing.assert_allclose(jax.jit(oracle.score)(t, points), gradient(points, t), rtol=2e-4, atol=2e-4)


def test_density_at_the_ends():
    oracle, x = oracles.mixture(GaussianPath(CondOT()), MIXTURE), jnp.array([[0.3, -0.4], [2.0, 1.0]])
    np.testing.assert_allclose(oracle.log_prob(0.0, x), stats.norm.logpdf(x).sum(1), rtol=1e-5)
    np.testing.assert_allclose(oracle.log_prob(1.0, x), MIXTURE.log_prob(x), rtol=1e-5)


def test_ends_are_the_posterior_mean_by_quadrature():
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
    ends = oracle.ends(t, jnp.asarray(x))
    for i in range(3):
        weight = prior * np.exp(-((x[i] - a * grid) ** 2).sum(1) / (2 * s**2))
        x1 = (weight[:, None] * grid).sum(0) / weight.sum()
        np.testing.assert_allclose(ends.x1[i], x1, atol=2e-5)
        np.testing.assert_allclose(ends.x0[i], (x[i] - a * x1) / s, atol=2e-5)


def test_ends_add_up_to_the_point(points):
    path = GaussianPath(VP())
    t = jnp.linspace(0.01, 0.99, 20)
    ends = oracles.mixture(path, MIXTURE).ends(t, points)
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

        @jax.jit
        def change(t):
            rate = jax.jvp(lambda t: oracle.log_prob(t, x), (t,), (jnp.ones_like(t),))[1]
            one = lambda x: oracle.velocity(t, x[None])[0]
            divergence = jnp.trace(jax.vmap(jax.jacfwd(one))(x), axis1=1, axis2=2)
            return rate + divergence + jnp.sum(oracle.velocity(t, x) * oracle.score(t, x), -1)

        for t in (0.2, 0.5, 0.8):
            np.testing.assert_allclose(change(t), 0.0, atol=1e-9)


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
    np.testing.assert_allclose(oracle.ends(0.9, x).x1, images, atol=1e-3)
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


SOURCE = GaussianMixture(jnp.array([[0.0, 3.0], [0.5, -2.0]]), jnp.array([0.6, 0.4]), jnp.array([1.0, 3.0]))


@pytest.mark.parametrize("noise", [None, Constant(0.3), Bridge(0.8)])
def test_any_source_and_noise_moves_the_density(points, noise):
    """The continuity equation for a mixture source and noise on the path, and the score as a gradient; float64."""
    with jax.enable_x64(True):
        wide = lambda m: GaussianMixture(*(jnp.asarray(a, jnp.float64) for a in (m.means, m.scales, m.weights)))
        oracle = oracles.mixture(AffinePath(CondOT(), noise), wide(MIXTURE), wide(SOURCE))
        x = points.astype(jnp.float64)

        @jax.jit
        def change(t):
            rate = jax.jvp(lambda t: oracle.log_prob(t, x), (t,), (jnp.ones_like(t),))[1]
            one = lambda x: oracle.velocity(t, x[None])[0]
            divergence = jnp.trace(jax.vmap(jax.jacfwd(one))(x), axis1=1, axis2=2)
            transport = jnp.sum(oracle.velocity(t, x) * oracle.score(t, x), -1)
            gradient = jax.grad(lambda x: oracle.log_prob(t, x).sum())(x)
            return rate + divergence + transport, oracle.score(t, x) - gradient

        for t in (0.2, 0.7):
            rest, error = change(t)
            np.testing.assert_allclose(rest, 0.0, atol=1e-8)
            np.testing.assert_allclose(error, 0.0, atol=1e-9)


def test_ends_of_any_source_are_conditional_means():
    """E[x0 | x_t] and E[z | x_t] by least squares on features of x_t: residuals are uncorrelated with them, 5 sigma."""
    path, n, t = AffinePath(Cosine(), Constant(0.5)), 100_000, 0.4
    oracle = oracles.mixture(path, MIXTURE, SOURCE)
    keys = jax.random.split(jax.random.key(0), 3)
    p = path.sample(keys[0], t, SOURCE.sample(keys[1], n), MIXTURE.sample(keys[2], n))
    ends = jax.jit(oracle.ends)(t, p.x_t)
    for true, mean in ((p.x0, ends.x0), (p.x1, ends.x1), (p.z, ends.z)):
        for feature in (jnp.ones(n), p.x_t[:, 0], jnp.sin(p.x_t[:, 1]), p.x_t[:, 0] * p.x_t[:, 1]):
            product = np.asarray((true - mean) * feature[:, None], np.float64)
            assert np.all(np.abs(product.mean(0)) <= 5 * product.std(0) / np.sqrt(n))
    r = path.rates(t, p.x_t)
    noise = path.noise_rates(t, p.x_t).gamma * ends.z
    np.testing.assert_allclose(r.alpha * ends.x1 + r.sigma * ends.x0 + noise, p.x_t, atol=2e-5)


def test_correlated_normals_by_linear_regression():
    """(x0, x1) normal with correlation q: E[x1 | x_t] = m + cov(x1, x_t) / var(x_t) (x_t - mean), from the joint
    law."""
    path, t, q = AffinePath(CondOT(), Bridge(0.7)), 0.3, 0.6
    n, r, m, s = -0.5, 1.3, 1.0, 0.6
    a, b, g = t, 1 - t, 0.7 * np.sqrt(t * (1 - t))
    x = jnp.linspace(-2, 2, 7)[:, None]
    variance = (a * s) ** 2 + (b * r) ** 2 + 2 * a * b * q * r * s + g**2
    gap = (x - a * m - b * n) / variance
    ends = oracles.gaussian(path, m, s, source_mean=n, source_std=r, correlation=q).ends(t, x)
    np.testing.assert_allclose(ends.x1, m + (a * s**2 + b * q * r * s) * gap, rtol=1e-5)
    np.testing.assert_allclose(ends.x0, n + (b * r**2 + a * q * r * s) * gap, rtol=1e-5)
    np.testing.assert_allclose(ends.z, g * gap, rtol=1e-5, atol=1e-6)


def test_the_schroedinger_bridge_between_normals():
    """With entropic ends and Brownian bridges between, dX = drift dt + sigma dW has a drift that is a gradient in space
    and
    solves the bridge: the drift of both time directions adds up to sigma^2 score, and at sigma = 0 the ends are
        optimal.

    Here: the joint law of the ends has correlation c / (r s) with c^2 + sigma^2 c = (r s)^2, and the SDE run from the
        source (Euler-Maruyama, small steps) arrives with that correlation: within 5 standard errors and the step's
        bias.
    """
    sigma, r, s = 1.0, 1.5, 0.5
    q = oracles.bridge_correlation(r, s, sigma)
    c = q * r * s
    assert c**2 + sigma**2 * c == pytest.approx((r * s) ** 2)
    assert oracles.bridge_correlation(r, s, 0.0) == 1.0
    oracle = oracles.gaussian(AffinePath(CondOT(), Bridge(sigma)), 1.0, s, source_std=r, correlation=q)
    n, steps = 20_000, 500
    x0 = r * jax.random.normal(jax.random.key(0), (n, 1))
    times = jnp.linspace(1e-3, 1 - 1e-3, steps + 1)

    def step(x, edge):
        t, h, i = edge
        f = oracle.velocity(t, x) + 0.5 * sigma**2 * oracle.score(t, x)
        return x + h * f + sigma * jnp.sqrt(h) * jax.random.normal(
            jax.random.fold_in(jax.random.key(1), i), x.shape
        ), None

    x1, _ = jax.jit(lambda x: jax.lax.scan(step, x, (times[:-1], jnp.diff(times), jnp.arange(steps))))(x0)
    assert float(x1.mean()) == pytest.approx(1.0, abs=5 * s / np.sqrt(n) + 0.01)
    assert float(x1.std()) == pytest.approx(s, rel=0.03)
    got = np.corrcoef(np.asarray(x0[:, 0]), np.asarray(x1[:, 0]))[0, 1]
    assert got == pytest.approx(q, abs=5 * (1 - q**2) / np.sqrt(n) + 0.01)


def test_sample_draws_from_p_t():
    oracle = oracles.gaussian(AffinePath(CondOT(), Constant(0.2)), 2.0, 0.5, source_std=1.5)
    x = oracle.sample(jax.random.key(0), 0.4, 40_000, (1,))
    variance = (0.4 * 0.5) ** 2 + (0.6 * 1.5) ** 2 + 0.04
    assert float(x.mean()) == pytest.approx(0.8, abs=5 * np.sqrt(variance / 40_000))
    assert float(x.var()) == pytest.approx(variance, rel=5 * np.sqrt(2 / 40_000))


def test_a_source_at_zero_survives_the_compiler():
    """XLA's CPU compiler (jaxlib 0.10.2) left memory as it was where a fused sum held a product with constant zeros."""
    source = GaussianMixture(jnp.zeros((1, 2)), 1.0)
    means = jax.random.normal(jax.random.key(0), (96, 2))
    oracle = oracles.mixture(AffinePath(CondOT(), Constant(0.1)), GaussianMixture(means, 0.5), source)
    x = jax.random.normal(jax.random.key(1), (512, 2))
    square = lambda x: (oracle.velocity(0.5, x) ** 2).sum(-1)
    np.testing.assert_allclose(jax.jit(square)(x), square(x), rtol=1e-4)


def test_many_points_in_many_dimensions_survive_the_compiler():
    """At these sizes XLA's CPU compiler (jaxlib 0.10.2) returned uninitialised memory for a sum of two products."""
    points = jax.random.normal(jax.random.key(1), (1024, 64))
    oracle = oracles.dataset(GaussianPath(CondOT()), points)
    x = oracle.sample(jax.random.key(3), 0.5, 500, (64,))
    compiled = jax.jit(lambda x: oracle.velocity(0.5, x))(x)
    weights = jax.nn.softmax(-((x[:, None] - 0.5 * points) ** 2).sum(-1) / (2 * 0.5**2))
    np.testing.assert_allclose(compiled, (weights @ points - x) / 0.5, atol=1e-3)


@pytest.mark.parametrize(("schedule", "marginal", "conditional"), [(CondOT(), 0.4646, 1.25), (Cosine(), 0.3084, 1.542)])
def test_energies(schedule, marginal, conditional):
    """Integral of E|v|^2 dt for N(0, 1) to N(0, 1/4): of the marginal velocity, and of the conditional one.

    The marginal velocity is V' / (2 V) x with V = alpha^2 / 4 + sigma^2, so the energy is the integral of V'^2 / (4 V);
    the library's by its own velocity under p_t: exact in x for a linear field, trapezoidal in t.
    """
    with jax.enable_x64(True):
        path = GaussianPath(schedule)
        oracle = oracles.gaussian(path, 0.0, 0.5)
        t = jnp.linspace(0.0, 1.0, 20_001)
        slope = oracle.velocity(t, jnp.ones((t.size, 1)))[:, 0]
        r = path.rates(t, jnp.zeros(t.size))
        variance = r.alpha**2 / 4 + r.sigma**2
        assert float(jnp.trapezoid(slope**2 * variance, t)) == pytest.approx(marginal, abs=5e-5)
        assert float(jnp.trapezoid(r.dalpha**2 / 4 + r.dsigma**2, t)) == pytest.approx(conditional, abs=5e-4)
