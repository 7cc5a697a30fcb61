"""Metrics against closed forms and brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import metrics, oracles
from flowjax.paths import GaussianPath
from flowjax.schedules import CondOT, Cosine

pytestmark = pytest.mark.analytic


def test_wasserstein_is_brute_force_on_few_points():
    x, y = np.random.default_rng(0).normal(size=(2, 6, 3))
    brute = min(((x - y[list(p)]) ** 2).sum(1).mean() for p in itertools.permutations(range(6)))
    assert metrics.wasserstein2_squared(x, y) == pytest.approx(brute, rel=1e-12)


def test_wasserstein_of_a_shift_is_the_shift():
    x = np.random.default_rng(0).normal(size=(200, 2))
    assert metrics.wasserstein2_squared(x, x + np.array([3.0, 4.0])) == pytest.approx(25.0, rel=1e-9)
    with pytest.raises(ValueError, match="the same size"):
        metrics.wasserstein2_squared(x, x[:10])


def test_wasserstein_on_the_line_sorts():
    x, y = np.random.default_rng(0).normal(size=(2, 300, 1))
    expected = ((np.sort(x[:, 0]) - np.sort(y[:, 0])) ** 2).mean()
    assert metrics.wasserstein2_squared_pairs(x, y, size=300, pairs=5) == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="at least 1000"):
        metrics.wasserstein2_squared_pairs(x, y)


def test_sliced_wasserstein_of_a_shift_and_on_the_line():
    """A shift by v moves the projection on u by u . v, so the squared distance is the mean of (u . v)^2: |v|^2 / d in
    expectation, with the variance 2 (d - 1) / (d^2 (d + 2)) |v|^4 for each u. On the line it is the exact distance.
    """
    x, v = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32), np.full(8, 3.0, np.float32)
    got = float(metrics.sliced_wasserstein2_squared(jax.random.key(0), x, x + v, projections=400))
    assert got == pytest.approx(9.0, abs=4 * 72 * np.sqrt(2 * 7 / (64 * 10) / 400))
    a, b = np.random.default_rng(1).normal(size=(2, 30, 1)).astype(np.float32)
    line = float(metrics.sliced_wasserstein2_squared(jax.random.key(0), a, b, projections=2))
    assert line == pytest.approx(metrics.wasserstein2_squared(a, b), rel=1e-5)


def test_mmd_against_the_plain_double_sum():
    x, y = np.random.default_rng(0).normal(size=(2, 12, 2))
    y = y[:9] + 1
    square = ((x[:, None] - y) ** 2).sum(-1)
    k = lambda a, b: sum(np.exp(-((a - b) ** 2).sum() / (2 * s**2 * np.median(square))) for s in (0.25, 0.5, 1, 2, 4))
    xx = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    yy = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    got = metrics.mmd(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32))
    assert float(got) == pytest.approx(xx + yy - 2 * xy, abs=1e-5)


def test_mmd_does_not_change_with_an_offset():
    """Rounding to float32 at 20,000 moves a coordinate by at most 2^-10 = 1e-3, independently for each point, and each
    kernel value by at most about that much; their mean moves by far less. Uncentred, a squared distance near 16 between
    points of squared norm 3e9 would be wrong by hundreds."""
    x, y = np.random.default_rng(0).normal(size=(2, 200, 8)) + np.array([0.0, 0.5])[:, None, None]
    near, far = (float(metrics.mmd(*(jnp.asarray(a + o, jnp.float32) for a in (x, y)))) for o in (0.0, 20_000.0))
    assert far == pytest.approx(near, abs=1e-3)
    assert near > 0.1
    shifted = [a + 1e9 for a in (x, y)]
    assert metrics.wasserstein2_squared(*shifted) == pytest.approx(metrics.wasserstein2_squared(x, y), rel=1e-5)


def test_mmd_of_equal_rows_is_a_number():
    """A median distance of 0. All rows equal: 0. Of 3 + 3 rows one differs: the plain double sum, by hand.

    With unit = mean squared distance = (1/3) d^2 the kernel of a pair at distance d is k = sum exp(-3 / (2 s^2)) and of
    an equal pair 5. x has one row of three at d: its mean over pairs is (2 * 5 + 4 k) / 6; y has (5 * 6) / 6, and of
    the 9 cross pairs 3 are at d.
    """
    assert float(metrics.mmd(jnp.ones((4, 8)), jnp.ones((4, 8)))) == 0.0
    x = jnp.zeros((3, 8)).at[0].set(2.0)
    k = sum(np.exp(-3 / (2 * s**2)) for s in (0.25, 0.5, 1, 2, 4))
    expected = (10 + 4 * k) / 6 + 5 - 2 * (6 * 5 + 3 * k) / 9
    assert float(metrics.mmd(x, jnp.zeros((3, 8)))) == pytest.approx(expected, abs=1e-5)


def test_mmd_is_zero_on_average_for_one_distribution():
    draws = jax.random.normal(jax.random.key(0), (40, 2, 100, 2))
    values = jax.vmap(lambda pair: metrics.mmd(pair[0], pair[1]))(draws)
    assert abs(float(values.mean())) < 4 * float(values.std()) / np.sqrt(40)
    assert float(metrics.mmd(draws[0, 0], draws[0, 1] + 2)) > 10 * float(values.std())


@pytest.mark.parametrize(("schedule", "known"), [(CondOT(), 0.4646), (Cosine(), 0.3084)])
def test_path_energy_of_the_marginal_field(schedule, known):
    """d = 1, data N(0, 0.5^2): known values, for the oracle's field; within 5 standard errors of 20,000 rows."""
    x0 = jax.random.normal(jax.random.key(0), (20_000, 1))
    energy = metrics.path_energy(oracles.gaussian(GaussianPath(schedule), 0.0, 0.5).velocity, x0)
    assert float(energy.mean()) == pytest.approx(known, abs=5 * float(energy.std()) / np.sqrt(20_000) + 5e-5)


def test_path_energy_of_a_straight_flow_is_the_transport_cost():
    energy = metrics.path_energy(lambda t, x, cond: jnp.full_like(x, 2.0), jnp.zeros((3, 2)), steps=3)
    np.testing.assert_allclose(energy, 8.0, rtol=1e-6)
    assert metrics.normalised_path_energy(8.0, 8.0) == 0.0
    assert metrics.normalised_path_energy(9.0, 8.0) == pytest.approx(0.125)
