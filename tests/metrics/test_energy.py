"""The energy distance, the discrepancy with one kernel, and scores of ensembles, against closed forms and SciPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from flowjax import metrics

pytestmark = pytest.mark.analytic

SHIFT, SCALE = 0.5, 1.5


def absolute(mean: float, std: float) -> float:
    """E|Z| of Z ~ N(mean, std^2), the mean of a folded normal distribution."""
    z = mean / std
    return std * math.sqrt(2 / math.pi) * math.exp(-(z**2) / 2) + mean * math.erf(z / math.sqrt(2))


def kernel(mean: float, std: float, bandwidth: float = 1.0) -> float:
    """E exp(-Z^2 / (2 h^2)) of Z ~ N(mean, std^2), by completing the square."""
    variance = bandwidth**2 + std**2
    return bandwidth / math.sqrt(variance) * math.exp(-(mean**2) / (2 * variance))


ROOT = math.sqrt(2)
ENERGY = 2 * absolute(SHIFT, math.hypot(1, SCALE)) - absolute(0, ROOT) - absolute(0, ROOT * SCALE)
MMD = kernel(0, ROOT) + kernel(0, ROOT * SCALE) - 2 * kernel(SHIFT, math.hypot(1, SCALE))


@pytest.mark.parametrize(
    ("distance", "expected", "bias"),
    [
        (metrics.energy_distance, ENERGY, absolute(0, ROOT) / 8 + absolute(0, ROOT * SCALE) / 12),
        (lambda x, y: metrics.gaussian_mmd(x, y, 1.0), MMD, (1 - kernel(0, ROOT)) / 8),
    ],
)
def test_distances_of_normals_are_unbiased(distance, expected, bias):
    """The mean over 4,000 pairs of 8 points of N(0, 1) and 12 of N(0.5, 1.5^2) is within 5 of its standard errors of
    the closed form. With the pairs of a point with itself it would differ by `bias`, which is more than that.
    """
    x = jax.random.normal(jax.random.key(0), (4000, 8, 1))
    y = SHIFT + SCALE * jax.random.normal(jax.random.key(1), (4000, 12, 1))
    values = np.asarray(jax.jit(jax.vmap(distance))(x, y))
    tolerance = float(5 * values.std() / math.sqrt(4000))
    assert tolerance < bias / 2
    assert float(values.mean()) == pytest.approx(expected, abs=tolerance)


def test_energy_distance_is_that_of_scipy_in_one_dimension():
    """SciPy's number squared has the pairs of a point with itself, which are added to the means here: the mean over the
    n (n - 1) pairs of different points is n / (n - 1) times that over all. 50 rows are no multiple of a block of 16.
    """
    x, y = np.random.default_rng(0).normal(size=50), 1 + np.random.default_rng(1).normal(size=33)
    over_all = lambda a: np.abs(a[:, None] - a).mean()
    expected = stats.energy_distance(x, y) ** 2 - over_all(x) / 49 - over_all(y) / 32
    got = metrics.energy_distance(x[:, None].astype(np.float32), y[:, None].astype(np.float32), block=16)
    assert float(got) == pytest.approx(expected, abs=5e-6)  # sums of 50 numbers near 1 in float32
    with pytest.raises(ValueError, match="at least two points"):
        metrics.energy_distance(jnp.ones((1, 2)), jnp.ones((5, 2)))
    with pytest.raises(ValueError, match="the same shape"):
        metrics.energy_distance(jnp.ones((5, 3)), jnp.ones((5, 2)))


def test_gaussian_mmd_is_the_double_sum_at_the_median_distance_of_the_reference():
    x, y = np.random.default_rng(0).normal(size=(2, 12, 6))
    y = 0.5 + y[:9]
    distance = lambda a, b: np.sqrt(((a[:, None] - b) ** 2).sum(-1))
    k = lambda a, b: np.exp(-(distance(a, b) ** 2) / (2 * np.median(distance(y, y)[np.triu_indices(9, 1)]) ** 2))
    other = lambda a: k(a, a)[~np.eye(len(a), dtype=bool)].mean()
    got = metrics.gaussian_mmd(*(a.astype(np.float32) for a in (x, y)))
    assert float(got) == pytest.approx(other(x) + other(y) - 2 * k(x, y).mean(), abs=2e-6)


def test_crps_is_fair_for_a_normal_distribution():
    """The mean over 20,000 ensembles of 4 members of N(0, 1) is within 5 standard errors of the score of N(0, 1) at 0.3
    (Gneiting and Raftery 2007). With the pairs of a member with itself it would exceed it by E|X - X'| / 8 = 0.14.
    """
    observed = np.full(20_000, 0.3, np.float32)
    values = np.asarray(jax.jit(metrics.crps)(jax.random.normal(jax.random.key(0), (4, 20_000)), observed))
    expected = 0.3 * (2 * stats.norm.cdf(0.3) - 1) + 2 * stats.norm.pdf(0.3) - 1 / math.sqrt(math.pi)
    tolerance = float(5 * values.std() / math.sqrt(20_000))
    assert tolerance < 0.14 / 2
    assert float(values.mean()) == pytest.approx(expected, abs=tolerance)


def test_scores_of_ensembles_are_double_sums():
    ensemble, observed = np.random.default_rng(0).normal(size=(7, 3, 2)), np.random.default_rng(1).normal(size=(3, 2))
    pairs = np.abs(ensemble[:, None] - ensemble).sum((0, 1)) / (7 * 6)
    expected = np.abs(ensemble - observed).mean(0) - pairs / 2
    float32 = ensemble.astype(np.float32), observed.astype(np.float32)
    np.testing.assert_allclose(metrics.crps(*float32), expected, atol=2e-6)
    norm = lambda a: np.sqrt((a**2).sum(-1))
    vectors = norm(ensemble - observed).mean(0) - norm(ensemble[:, None] - ensemble).sum((0, 1)) / (2 * 7 * 6)
    np.testing.assert_allclose(metrics.energy_score(*float32), vectors, atol=2e-6)
    with pytest.raises(ValueError, match=r"\(members, 3, 2\), not \(7, 2, 3\)"):
        metrics.crps(jnp.ones((7, 2, 3)), jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="at least two members"):
        metrics.crps(jnp.ones((1, 3)), jnp.ones(3))


def test_the_energy_score_has_a_derivative_at_equal_members():
    derivative = jax.grad(lambda e: metrics.energy_score(e, jnp.ones((1, 2))).sum())(jnp.zeros((3, 1, 2)))
    np.testing.assert_allclose(derivative, -1 / (3 * math.sqrt(2)), rtol=1e-6)
