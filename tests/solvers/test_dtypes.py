"""States of half precision: they are float32 inside every solver, and so is what is returned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import likelihood, oracles, solvers
from flowjax.paths import GaussianPath
from flowjax.precision import at_least_float32
from flowjax.schedules import VE, CondOT
from flowjax.solvers import diffusions, solve_ode
from flowjax.solvers.sde import solve_sde
from flowjax.sources import Normal

pytestmark = pytest.mark.analytic
HALF = [jnp.bfloat16, jnp.float16]
X = jax.random.normal(jax.random.key(0), (4, 2))
PATH = GaussianPath(CondOT())
ORACLE = oracles.gaussian(PATH, 1.0, 0.5)


def decay(t, x, cond):
    return 1 - x


@pytest.mark.parametrize("dtype", HALF)
def test_the_error_does_not_grow_with_the_steps(dtype):
    """dx/dt = 1 - x has the flow 1 + (x - 1) / e. Euler's error at n steps is (1 - 1/n)^n - 1/e = 1 / (2 e n) to first
    order, times |x - 1|; and 2,000 roundings of a state below 4 in float32 add up to at most 2,000 * 2^-23 = 2.4e-4.
    In half precision a step of 1 / 2,000 would be lost in the rounding of the state."""
    x = X.astype(dtype)
    exact = 1 + (np.asarray(x, np.float64) - 1) / np.e
    for steps in (20, 2000):
        y, _ = solve_ode(decay, x, solver="euler", steps=steps)
        assert y.dtype == jnp.float32
        bound = 1.1 * np.abs(np.asarray(x, np.float64) - 1) / (2 * np.e * steps) + 2.4e-4
        assert np.all(np.abs(np.asarray(y, np.float64) - exact) <= bound)


@pytest.mark.parametrize(
    "keywords", [{"solver": "dopri5"}, {"solver": "rk4", "steps": 8}, {"solver": "reversibleheun", "steps": 4}]
)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.int32, marks=pytest.mark.slow)])
def test_a_solve_is_that_of_the_widened_state(dtype, keywords):
    """To the bit; also where the field itself answers in half precision, and on integers."""
    x = (3 * X).astype(dtype)
    half = lambda t, x, cond: (1 - x).astype(jnp.bfloat16)
    for field in (decay, half):
        got, _ = solve_ode(field, x, **keywords)
        assert got.dtype == jnp.float32
        np.testing.assert_array_equal(got, solve_ode(field, x.astype(jnp.float32), **keywords)[0])


@pytest.mark.parametrize(
    "name",
    [
        *(n for n in solvers.SAMPLERS if n not in ("flow_map", "consistency")),
        "dopri5",
        "heun",
        "leapfrogmidpoint",
        pytest.param("sra1", marks=pytest.mark.slow),
    ],
)
def test_every_sampler_widens_its_state(name):
    path = GaussianPath(VE(0.1, 10)) if name == "langevin" else PATH
    model = oracles.gaussian(path, 1.0, 0.5)
    half = X.astype(jnp.bfloat16)
    draw = lambda x: solvers.sample(
        model, x, solver=name, steps=None if name == "dopri5" else 3, key=jax.random.key(1)
    )[0]
    y = draw(half)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, draw(half.astype(jnp.float32)))


TIMES = jnp.linspace(0.0, 0.9, 4)


def test_the_loop_of_samplers_widens_its_state():
    half = X.astype(jnp.float16)
    walk = lambda x: solvers.run(solvers.DDIM(PATH), ORACLE, x, TIMES, save=True)
    assert walk(half).dtype == jnp.float32
    np.testing.assert_array_equal(walk(half), walk(half.astype(jnp.float32)))


@pytest.mark.slow
def test_solve_sde_widens_its_state():
    half = X.astype(jnp.float16)
    keys = jax.random.split(jax.random.key(0), 4)
    sde = lambda x: solve_sde(ORACLE, x, TIMES, keys, g=diffusions.Constant(1.0), name="sra1")
    assert sde(half).dtype == jnp.float32
    np.testing.assert_array_equal(sde(half), sde(half.astype(jnp.float32)))


@pytest.mark.parametrize("keywords", [{}, {"divergence": "hutchinson", "key": jax.random.key(0)}])
def test_a_log_density_is_wide(keywords):
    """A log-density in bfloat16 would have two decimal digits."""
    half = X.astype(jnp.bfloat16)
    score = lambda x: likelihood.log_prob(ORACLE.velocity, x, Normal((2,)), solver="rk4", steps=5, **keywords)[0]
    assert score(half).dtype == jnp.float32
    np.testing.assert_array_equal(score(half), score(half.astype(jnp.float32)))


def test_float64_stays():
    with jax.enable_x64(True):
        x = jnp.ones((2, 1), jnp.float64)
        assert at_least_float32(x).dtype == jnp.float64
        assert solve_ode(decay, x, solver="euler", steps=2)[0].dtype == jnp.float64
