"""Paths that end before t = 1: solves stay within their interval, and times outside of it are refused."""

import jax
import numpy as np
import pytest
from scipy import stats

from flowjax import likelihood, metrics, oracles, solvers
from flowjax.paths import GaussianPath
from flowjax.predictions import data, read
from flowjax.schedules import VP, CondOT, ddpm_linear
from flowjax.solvers import solve_ode
from flowjax.sources import Normal

pytestmark = pytest.mark.analytic
PATH = GaussianPath(VP())
ORACLE = oracles.gaussian(PATH, 1.0, 0.5)
X = jax.random.normal(jax.random.key(0), (8, 2))


def marginal(t):
    """Mean and standard deviation of p_t for data N(1, 0.5^2), in float64: B of the VP schedule by hand."""
    b = 0.5 * (1 - t) ** 2 * 19.9 + 0.1 * (1 - t)
    return np.exp(-b / 2), np.sqrt(0.25 * np.exp(-b) - np.expm1(-b))


def test_a_field_carries_its_interval():
    assert ORACLE.velocity.interval == (0.0, VP.t_max)
    condot = GaussianPath(CondOT())
    network = read(lambda t, x, cond: x, condot, data)
    assert network.velocity.interval == network.interval
    assert oracles.gaussian(GaussianPath(ddpm_linear(10)), 0.0, 1.0).velocity.interval == (0.0, 0.9)


@pytest.mark.parametrize("keywords", [{"rtol": 1e-6, "atol": 1e-6}, {"solver": "rk4", "steps": 400}])
def test_solves_run_over_the_interval_of_the_path(keywords):
    """The flow between normals is x -> m1 + s1 / s0 (x - m0). Both solves are within 1e-3 of it: RK4's error is
    dominated by its last steps of 1 / 400, over which sigma ~ sqrt(0.1 (1 - t)) falls to 0."""
    y, _ = solve_ode(ORACLE.velocity, X, **keywords)
    (m0, s0), (m1, s1) = marginal(0.0), marginal(VP.t_max)
    np.testing.assert_allclose(y, m1 + s1 / s0 * (np.asarray(X, np.float64) - m0), atol=1e-3)


def test_log_prob_runs_over_the_interval_of_the_path():
    """From the exact marginal at t = 0; stopping at t_max leaves noise of variance 1e-6, which moves log p by less than
    1e-4 for points within 4 standard deviations."""
    m0, s0 = marginal(0.0)
    x = 1 + 0.5 * X
    got, *_ = likelihood.log_prob(ORACLE.velocity, x, Normal((2,), m0, s0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(got, stats.norm(1, 0.5).logpdf(np.asarray(x, np.float64)).sum(1), atol=3e-4)


START = Normal((2,))
OUTSIDE = {
    "adaptive": lambda: solve_ode(ORACLE.velocity, X, t0=0.0, t1=1.0),
    "fixed grid": lambda: solve_ode(ORACLE.velocity, X, t1=1.0, solver="euler", steps=3),
    "multistep": lambda: solve_ode(ORACLE.velocity, X, t1=1.0, solver="leapfrogmidpoint", steps=3),
    "backwards": lambda: solve_ode(ORACLE.velocity, X, t0=1.0, t1=0.0),
    "before": lambda: solve_ode(ORACLE.velocity, X, t0=-0.1),
    "not a number": lambda: solve_ode(ORACLE.velocity, X, t0=float("nan")),
    "likelihood": lambda: likelihood.log_prob(ORACLE.velocity, X, START, t1=1.0),
    "path energy": lambda: metrics.path_energy(ORACLE.velocity, X, t1=1.0),
    "a grid": lambda: solvers.sample(ORACLE, X, solver="heun", grid=[0.5, 1.0]),
    **{
        name: lambda name=name: solvers.sample(
            ORACLE, X, solver=name, steps=None if name == "dopri5" else 3, t1=1.0, key=jax.random.key(0)
        )
        for name in ("dopri5", "heun", "ddim", "unipc", "ddpm", "sra1", "reversibleheun")
    },
    "times of a grid": lambda: solvers.grids.check_times(solvers.DDIM(PATH), np.array([0.5, 1.0])),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_times_outside_of_the_interval_are_refused(name):
    with pytest.raises(ValueError, match=r"\[0, 0\.99999\]"):
        OUTSIDE[name]()


def test_a_bare_function_that_is_not_finite_at_an_end_is_named():
    with pytest.raises(RuntimeError, match="not finite at t = 1"):
        solve_ode(lambda t, x, cond: ORACLE.velocity(t, x), X, t0=0.5, t1=1.0)


def test_an_interval_may_be_traced():
    y = jax.jit(lambda t1: solve_ode(ORACLE.velocity, X, t1=t1, solver="heun", steps=2)[0])(0.5)
    assert np.isfinite(y).all()


@pytest.mark.parametrize("solver", ["heun", "midpoint"])
def test_solvers_that_are_named_for_a_fixed_grid_need_steps(solver):
    for solve in (
        lambda: solve_ode(ORACLE.velocity, X, solver=solver),
        lambda: solvers.sample(ORACLE, X, solver=solver),
        lambda: likelihood.log_prob(ORACLE.velocity, X, START, solver=solver),
    ):
        with pytest.raises(ValueError, match=f"^{solver} needs a fixed number of steps: pass steps=N"):
            solve()
