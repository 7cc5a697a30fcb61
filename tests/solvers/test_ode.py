"""`solve_ode`: order of convergence, honest counts, both directions, derivatives, and what it refuses."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowjax import oracles
from flowjax.paths import GaussianPath
from flowjax.schedules import CondOT, Cosine
from flowjax.solvers import ADAPTIVE_SOLVERS, SOLVERS, solve_ode
from flowjax.solvers.ode import MULTISTEP_SOLVERS
from flowjax.sources import GaussianMixture

pytestmark = pytest.mark.analytic
GAUSSIAN = oracles.gaussian(GaussianPath(CondOT()), 1.0, 0.5)
ORDERS = {
    "euler": 1,
    "heun": 2,
    "midpoint": 2,
    "ralston": 2,
    "bosh3": 3,
    "rk4": 4,
    "tsit5": 5,
    "dopri5": 5,
    "leapfrogmidpoint": 2,
    "reversibleheun": 2,
}
LONG = ("tsit5", "leapfrogmidpoint", "reversibleheun")


def exact(x):
    """The flow of a normal source to N(1, 0.5^2) is the affine map that carries one to the other."""
    return 1.0 + 0.5 * x


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in ORDERS])
def test_order_of_convergence(name):
    """Errors at n and 2n steps on a mixture, float64, against RK4 with 50 times the steps: order within 0.2 of
    nominal."""
    with jax.enable_x64(True):
        mixture = GaussianMixture(jnp.array([[1.5, 0.0], [-1.0, 1.0]], jnp.float64), jnp.array([0.7, 0.9], jnp.float64))
        field = oracles.mixture(GaussianPath(Cosine()), mixture).velocity
        x = jax.random.normal(jax.random.key(0), (16, 2), jnp.float64)
        end = lambda name, steps: solve_ode(field, x, t0=0.05, t1=0.95, solver=name, steps=steps)[0]
        reference = end("rk4", 4000)
        n = 40 if ORDERS[name] <= 4 else 20
        errors = [float(jnp.sqrt(jnp.mean((end(name, k) - reference) ** 2))) for k in (n, 2 * n)]
        order = np.log2(errors[0] / errors[1])
        assert order > ORDERS[name] - 0.2
        # Tsit5's leading coefficient is so small that the next one still shows where rounding has not yet taken over.
        assert order < ORDERS[name] + (0.2 if ORDERS[name] < 5 else 0.6)


def counted(name, **keywords):
    calls = []

    def count(t):
        calls.append(1)
        return np.zeros((), np.float32)

    def field(t, x, cond):
        zero = jax.pure_callback(count, jax.ShapeDtypeStruct((), np.float32), t, vmap_method="sequential")
        return GAUSSIAN.velocity(t, x) + zero

    y, stats = solve_ode(field, jnp.ones((1, 2)), solver=name, **keywords)
    jax.block_until_ready(y)
    return len(calls), int(stats.nfe[0])


@pytest.mark.parametrize("name", sorted(SOLVERS | MULTISTEP_SOLVERS))
def test_nfe_of_a_fixed_grid_is_what_a_counter_counts(name):
    calls, nfe = counted(name, steps=7)
    assert calls == nfe
    documented = {"euler": 7, "heun": 14, "midpoint": 14, "rk4": 28}
    assert nfe == documented.get(name, nfe)


@pytest.mark.parametrize("name", ["ralston", "dopri5", "reversibleheun"])
def test_nfe_of_an_adaptive_solve_is_what_a_counter_counts(name):
    calls, nfe = counted(name, rtol=1e-3, atol=1e-3)
    assert calls == nfe


@pytest.mark.parametrize("name", sorted(ADAPTIVE_SOLVERS))
def test_adaptive_solvers_reach_the_closed_form(name):
    x = jax.random.normal(jax.random.key(0), (8, 2))
    y, stats = solve_ode(GAUSSIAN.velocity, x, solver=name, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(y, exact(x), atol=1e-3)  # at most a hundred local errors of 1e-5
    assert stats.converged.all()


def test_encode_undoes_decode():
    x = jax.random.normal(jax.random.key(0), (8, 3, 3, 1))
    y, _ = solve_ode(GAUSSIAN.velocity, x, rtol=1e-6, atol=1e-6)
    back, _ = solve_ode(GAUSSIAN.velocity, y, t0=1.0, t1=0.0, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(back, x, atol=5e-5)
    back, _ = solve_ode(GAUSSIAN.velocity, y, t0=1.0, t1=0.0, solver="rk4", steps=60)
    np.testing.assert_allclose(back, x, atol=5e-5)


def test_a_row_does_not_depend_on_its_neighbours():
    x = jax.random.normal(jax.random.key(0), (6, 2))
    _, alone = solve_ode(GAUSSIAN.velocity, x[:2])
    both, stats = solve_ode(GAUSSIAN.velocity, x.at[2:].multiply(100.0))
    np.testing.assert_array_equal(stats.nfe[:2], alone.nfe)
    np.testing.assert_allclose(both[:2], solve_ode(GAUSSIAN.velocity, x[:2])[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "keywords",
    [{"rtol": 1e-6, "atol": 1e-6}, {"solver": "rk4", "steps": 20}, {"solver": "reversibleheun", "steps": 1000}],
)
def test_save_at_gives_the_flow_at_those_times(keywords):
    """The flow of N(0, 1) to N(1, 1/4) at time t: t + sqrt(t^2 / 4 + (1 - t)^2) x."""
    x, times = jax.random.normal(jax.random.key(0), (5, 2)), np.array([0.0, 0.25, 0.5, 1.0])
    ys, _ = solve_ode(GAUSSIAN.velocity, x, save_at=times, **keywords)
    expected = times[:, None, None] + np.sqrt(times**2 / 4 + (1 - times) ** 2)[:, None, None] * np.asarray(x)
    np.testing.assert_allclose(ys, expected, atol=2e-4)


@pytest.mark.parametrize("keywords", [{"rtol": 1e-6, "atol": 1e-6}, {"solver": "rk4", "steps": 20}])
def test_reverse_mode_derivative(keywords):
    """d x(1) / d x(0) = 0.5 exactly, also through a condition."""

    def end(x, shift):
        field = lambda t, x, cond: GAUSSIAN.velocity(t, x) + cond
        return solve_ode(field, x, cond=shift, **keywords)[0].sum()

    gx, gc = jax.grad(end, (0, 1))(jnp.ones((3, 1)), jnp.zeros((3, 1)))
    np.testing.assert_allclose(gx, 0.5, atol=1e-4)
    # dx(1)/dc = integral of the flow's derivative from t to 1, std(1) / std(t): by quadrature
    t = np.linspace(0, 1, 20_001)
    np.testing.assert_allclose(gc, np.trapezoid(0.5 / np.sqrt(t**2 / 4 + (1 - t) ** 2), t), atol=1e-3)


def linear_end(rate, label, adjoint):
    """x(1) of dx/dt = (rate + label) x from x(0) = 1 and 2, with the rate in a closure and integer labels."""
    field = lambda t, x, cond: (rate + cond[:, None]) * x
    x = jnp.array([[1.0], [2.0]])
    return solve_ode(field, x, cond=jnp.asarray(label), rtol=1e-6, atol=1e-6, adjoint=adjoint)[0].sum()


@pytest.mark.parametrize("adjoint", [None, diffrax.RecursiveCheckpointAdjoint(), diffrax.BacksolveAdjoint()], ids=str)
def test_adjoints_in_reverse_mode(adjoint):
    """d/da of e^a + 2 e^(a + 1) at a = 0.3, by its closed form; tolerances of 1e-6 leave less than 1e-4 of it."""
    slope = jax.grad(linear_end)(0.3, [0, 1], adjoint)
    assert float(slope) == pytest.approx(np.exp(0.3) + 2 * np.exp(1.3), rel=1e-4)


def test_an_adjoint_in_forward_mode():
    end, slope = jax.jvp(lambda a: linear_end(a, [0, 1], diffrax.ForwardMode()), (0.3,), (1.0,))
    exact = np.exp(0.3) + 2 * np.exp(1.3)
    assert float(end) == pytest.approx(exact, rel=1e-4)
    assert float(slope) == pytest.approx(exact, rel=1e-4)


def test_an_adjoint_of_a_fixed_grid_is_refused():
    with pytest.raises(ValueError, match="adjoint is for adaptive solves: leave it out"):
        solve_ode(GAUSSIAN.velocity, jnp.ones((1, 1)), steps=3, solver="rk4", adjoint=diffrax.BacksolveAdjoint())


def test_forward_mode_on_a_fixed_grid():
    end = lambda x: solve_ode(GAUSSIAN.velocity, x, solver="rk4", steps=20)[0]
    np.testing.assert_allclose(jax.jvp(end, (jnp.ones((2, 1)),), (jnp.ones((2, 1)),))[1], 0.5, atol=1e-5)


def test_a_pytree_state_and_a_condition_are_carried():
    field = lambda t, state, cond: (state[1], cond["push"])
    x = (jnp.zeros((3, 2)), jnp.ones((3, 2)))
    (position, speed), _ = solve_ode(field, x, cond={"push": jnp.full((3, 2), 2.0)}, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(position, 2.0, rtol=1e-5)  # 1 t + t^2 at t = 1
    np.testing.assert_allclose(speed, 3.0, rtol=1e-5)


@given(
    batch=st.integers(1, 3),
    event=st.lists(st.integers(1, 3), max_size=3).map(tuple),
    name=st.sampled_from(["euler", "heun"]),
)
def test_any_event_shape(batch, event, name):
    y, stats = solve_ode(lambda t, x, cond: jnp.ones_like(x), jnp.zeros((batch, *event)), solver=name, steps=3)
    np.testing.assert_allclose(y, 1.0, rtol=1e-6)
    assert stats.nfe.shape == (batch,)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"solver": "dopry5"}, "did you mean 'dopri5'"),
        ({"solver": "euler"}, "no error estimate"),
        ({"solver": "rk4"}, "no error estimate"),
        ({"steps": 0}, "at least 1"),
        ({"steps": 4, "save_at": [0.3]}, "grid"),
    ],
)
def test_refusals(keywords, message):
    with pytest.raises(ValueError, match=message):
        solve_ode(GAUSSIAN.velocity, jnp.zeros((2, 1)), **keywords)


def test_empty_batch_and_a_solve_that_does_not_arrive():
    with pytest.raises(ValueError, match="empty"):
        solve_ode(GAUSSIAN.velocity, jnp.zeros((0, 2)))
    with pytest.raises(RuntimeError, match="did not reach"):
        solve_ode(lambda t, x, cond: x * jnp.nan, jnp.ones((2, 1)))


@pytest.mark.parametrize(("name", "steps"), [("dopri5", None), ("reversibleheun", 4)])
def test_programs_call_nothing_on_the_host(name, steps):
    """JAX does not keep a program with a callback in its compilation cache, and waits for its result."""
    solve = lambda x: solve_ode(GAUSSIAN.velocity, x, solver=name, steps=steps)
    assert "callback" not in str(jax.make_jaxpr(solve)(jnp.ones((2, 2))))
