"""The kernel distance against the plain double sum and its expectation."""

import numpy as np
import pytest

from flowjax.metrics import kernel_distance

pytestmark = pytest.mark.analytic


def test_one_subset_of_all_rows_is_the_plain_double_sum():
    """The kernel's values are about 3 and float32 rounds each by some 1e-7, of random sign: 1e-6 is ample."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 20, 6)).astype(np.float32)
    y += 0.5
    k = lambda a, b: (float(a.astype(float) @ b) / 6 + 1) ** 3
    off = lambda rows: np.mean([k(a, b) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j])
    known = off(x) + off(y) - 2 * np.mean([k(a, b) for a in x for b in y])
    value, stderr = kernel_distance(x, y, subsets=7, size=1000)
    assert value == pytest.approx(known, abs=1e-6)
    assert np.isnan(stderr)


def test_its_expectation_for_a_shift():
    """k expands to 1 + 3 u + 3 u^2 + u^3 with u = a.b / D. In one dimension the squared distance of N(0, 1) and N(m, 1)
    is 3 (E x - E y)^2 + 3 (E x^2 - E y^2)^2 + (E x^3 - E y^3)^2 = 3 m^2 + 3 m^4 + (m^3 + 3 m)^2."""
    rng = np.random.default_rng(0)
    m = 0.7
    x, y = rng.normal(size=(20_000, 1)).astype(np.float32), m + rng.normal(size=(20_000, 1)).astype(np.float32)
    value, stderr = kernel_distance(x, y, subsets=50, size=400, seed=1)
    assert value == pytest.approx(3 * m**2 + 3 * m**4 + (m**3 + 3 * m) ** 2, abs=5 * stderr)


def test_it_is_zero_on_average_for_one_distribution():
    """Subsets of 100 out of 10,000 rows hardly meet, so the standard error is that of independent ones."""
    x, y = np.random.default_rng(0).normal(size=(2, 10_000, 8)).astype(np.float32)
    value, stderr = kernel_distance(x, y, subsets=80, size=100)
    assert abs(value) < 4 * stderr
    assert kernel_distance(x, y, subsets=80, size=100) == (value, stderr)
    assert kernel_distance(x, y + 1, subsets=20, size=100).value > 50 * stderr


def test_it_says_what_it_needs(as_users_call):
    x = np.zeros((5, 3), np.float32)
    with pytest.raises(ValueError, match="at least two"):
        kernel_distance(x[:1], x)
    with pytest.raises(ValueError, match="the same dimension"):
        kernel_distance(x, x[:, :2])
