"""Transitions between two times of a Gaussian path, against DDPM's published formulas and against Bayes' rule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax.paths import GaussianPath
from flowjax.paths.transition import transition
from flowjax.schedules import EDM, CondOT, ddpm_linear

pytestmark = pytest.mark.analytic


def test_the_posterior_of_ddpm():
    """Ho et al. 2020, eq. 7, from the betas in float64, at a few levels of the chain; float32 to 1e-4 relative."""
    betas = np.linspace(1e-4, 0.02, 1000)
    bar = np.cumprod(1 - betas)
    for k in (1, 10, 500, 999):  # from level k + 1 to level k, counted from 1
        beta, before, now = betas[k], bar[k - 1], bar[k]
        q = transition(GaussianPath(ddpm_linear()), 1 - (k + 1) / 1000, 1 - k / 1000, jnp.zeros((1, 1)))
        np.testing.assert_allclose(q.from_x1, np.sqrt(before) * beta / (1 - now), rtol=1e-3)
        np.testing.assert_allclose(q.from_x, np.sqrt(1 - beta) * (1 - before) / (1 - now), rtol=1e-4)
        np.testing.assert_allclose(q.small, (1 - before) / (1 - now) * beta, rtol=1e-3)
        np.testing.assert_allclose(q.large, beta, rtol=1e-3)


@pytest.mark.parametrize("schedule", [CondOT(), EDM(0.02, 5.0)])
def test_the_posterior_by_bayes_rule(schedule):
    """Precisions add: x_t given x_s, and x_s given x1, both normal; float64."""
    with jax.enable_x64(True):
        t, s = jnp.asarray(0.4), jnp.asarray(0.7)
        at, st, as_, ss = (float(f(u)) for u in (t, s) for f in (schedule.alpha, schedule.sigma))
        a = at / as_
        b = st**2 - a**2 * ss**2
        precision = a**2 / b + 1 / ss**2
        q = transition(GaussianPath(schedule), t, s, jnp.zeros((1, 1)))
        np.testing.assert_allclose(q.small, 1 / precision, rtol=1e-9)
        np.testing.assert_allclose(q.from_x, a / b / precision, rtol=1e-9)
        np.testing.assert_allclose(q.from_x1, as_ / ss**2 / precision, rtol=1e-9)
        np.testing.assert_allclose(q.large, b, rtol=1e-9)
