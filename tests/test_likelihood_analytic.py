"""Exact log-densities in float64 against closed forms, on four schedules, with the velocities of the benchmark."""

import jax
import pytest
from likelihood_accuracy import DENSE, SCHEDULES, error, problem

pytestmark = pytest.mark.analytic

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("d", "schedule", "components"),
    [
        (2, "condot", 1),
        (2, "vp", 3),
        *(pytest.param(d, s, 1, marks=SLOW) for d in (1, 16, DENSE) for s in SCHEDULES),
        *(pytest.param(d, s, 3, marks=SLOW) for d in (2, 16) for s in SCHEDULES),
        pytest.param(3072, "cosine", 1, marks=SLOW),
    ],
)
def test_normals_and_mixtures(d, schedule, components):
    """|log p - true| <= 1e-5 max(1, |true|) at the tolerance 1e-7; the true density is SciPy's, from the covariance."""
    with jax.enable_x64(True):
        found = error(problem(schedule, d, components), 2, 1e-7)
    assert found["error"] <= 1e-5
    assert found["nfe"] > 20
