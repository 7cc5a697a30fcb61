"""Which path a sampler is meant for, and what its steps are in the variables of others."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import oracles, predictions, solvers
from flowjax.paths import GaussianPath
from flowjax.schedules import EDM, VE, VP, CondOT, Shifted

pytestmark = pytest.mark.analytic


@pytest.mark.parametrize("schedule", [CondOT(), VP()])
def test_langevin_needs_a_constant_alpha(schedule):
    path = GaussianPath(schedule)
    for solver in ("langevin", solvers.AnnealedLangevin(path)):
        with pytest.raises(ValueError, match="alpha = 1 at all times: take the schedule 've'"):
            solvers.sample(predictions.model(lambda t, x, cond: 1 / 0, path), jnp.ones((1, 2)), solver=solver, steps=3)
    for fit in (VE(), EDM()):
        assert solvers.make_sampler("langevin", GaussianPath(fit)) is not None


@pytest.mark.parametrize(("spread", "expected"), [(0.02, 1.0004), (50.0, 2501.0)])
def test_the_correctors_step_against_the_papers(spread, expected):
    """(|z| / |score|)^2 / sigma^2 for data N(0, (spread sigma)^2 I) in 3,072 dimensions: 1 + spread^2. A norm deviates
    from its typical value by 1 / sqrt(2 D) = 1.3%, so the ratio of two squares by 3.6%: five times that is allowed."""
    sigma = 0.1
    path = GaussianPath(VE(0.1, 10.0))
    oracle = oracles.gaussian(path, 0.0, spread * sigma)
    x = oracle.sample(jax.random.key(0), 1.0, 1, (3072,))
    z = jax.random.normal(jax.random.key(1), x.shape)
    ratio = float((z**2).sum() / (oracle.score(1.0, x) ** 2).sum()) / sigma**2
    assert ratio == pytest.approx(expected, rel=0.18)


def test_the_sampler_of_sd3_is_ddim_on_the_shifted_path():
    """Its update x + (sigma' - sigma) v with v = E[x0 - x1 | x] and sigma = shift u / (1 + (shift - 1) u) for u from 1
    to 0 (Esser et al. 2024, eq. 23), in float64 NumPy, on N(1, 0.5^2). Float32 leaves a few roundings a step."""
    shift, steps = 3.0, 8
    path = GaussianPath(Shifted(CondOT(), shift))
    x0 = jax.random.normal(jax.random.key(0), (16, 2))
    u = np.linspace(1, 0, steps + 1)
    sigmas = shift * u / (1 + (shift - 1) * u)
    x = np.asarray(x0, np.float64)
    for sigma, after in itertools.pairwise(sigmas):
        alpha = 1 - sigma
        gap = (x - alpha) / (0.25 * alpha**2 + sigma**2)
        x = x + (after - sigma) * (sigma * gap - (1 + 0.25 * alpha * gap))
    oracle = oracles.gaussian(path, 1.0, 0.5)
    ours, _ = solvers.sample(oracle, x0, solver="ddim", steps=steps, grid="uniform")
    np.testing.assert_allclose(ours, x, atol=1e-5)
    euler, _ = solvers.sample(oracle, x0, solver="euler", steps=steps)
    assert np.abs(euler - x).max() > 0.01
