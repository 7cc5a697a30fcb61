"""Spaces: Euclidean space is addition and changes no program; solvers and couplings ask the space they are given."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowjax import likelihood, methods, oracles, solvers
from flowjax.batch import Batch
from flowjax.couplings import MinibatchOT, Sinkhorn
from flowjax.names import COUPLINGS
from flowjax.paths import AffinePath, GaussianPath
from flowjax.paths.affine import is_standard_normal
from flowjax.schedules import VP, CondOT
from flowjax.solvers import SOLVERS, fixed_grid, samplers, solve_ode
from flowjax.sources import Normal, Uniform
from flowjax.spaces import EUCLIDEAN, Euclidean, Space
from flowjax.transport import pairwise_cost

pytestmark = pytest.mark.analytic
X, Y = jax.random.normal(jax.random.key(0), (2, 5, 3))


def test_euclidean_space_is_addition():
    """Every operation against NumPy; the squared distances of pairs against those of their rows."""
    space = Euclidean((3,))
    assert isinstance(space, Space)
    np.testing.assert_array_equal(space.exp(X, space.log(X, Y)), X + (Y - X))
    np.testing.assert_array_equal(space.project(X, Y), Y)
    np.testing.assert_allclose(space.inner(X, X, Y), np.einsum("bi,bi->b", X, Y), rtol=1e-5)
    rows = space.distance_squared(X, Y)
    np.testing.assert_allclose(rows, np.linalg.norm(np.asarray(X) - np.asarray(Y), axis=1) ** 2, rtol=1e-5)
    np.testing.assert_allclose(jnp.diagonal(space.pairwise_distance_squared(X, Y)), rows, rtol=1e-5)
    assert space.source() == EUCLIDEAN.source((3,)) == Normal((3,))
    assert space.is_standard(space.source())
    assert not space.is_standard(Normal((3,), 0.0, 2.0))
    assert not is_standard_normal(Uniform((3,)))
    with pytest.raises(ValueError, match="pass Euclidean"):
        EUCLIDEAN.source()


def test_the_program_of_a_step_is_that_of_plain_additions():
    """A step of Heun, and the cost of transport in three and in six dimensions, written out without a space."""
    field = lambda t, x, cond: jnp.sin(x) * t

    def heun(x, t, t_next):
        h = t_next - t
        k1 = field(t + 0.0 * h, x, None)
        k2 = field(t + 1.0 * h, (x + h * sum([1.0 * k1.astype(x.dtype)])).astype(x.dtype), None)
        slope = sum(w * k.astype(x.dtype) for w, k in ((0.5, k1), (0.5, k2)))
        return (x + h * slope).astype(x.dtype)

    times = (jnp.asarray(0.2), jnp.asarray(0.5))
    ours = jax.make_jaxpr(lambda x, t, s: fixed_grid.step(field, x, None, t, s, SOLVERS["heun"]))(X, *times)
    assert str(ours) == str(jax.make_jaxpr(heun)(X, *times))

    def cost(x0, x1):
        a, b = x1.reshape(5, -1).astype(jnp.float32), x0.reshape(5, -1).astype(jnp.float32)
        if a.shape[1] <= 4:
            return ((a[:, None] - b) ** 2).sum(-1).astype(jnp.float32)
        centre = (a.mean(0) + b.mean(0)) / 2
        centre = jnp.where(jnp.isfinite(centre), centre, 0.0)
        a, b = ((x - centre).astype(jnp.float32) for x in (a, b))
        cross = jnp.matmul(a, b.T, precision="highest")
        return jnp.maximum((a**2).sum(-1)[:, None] + (b**2).sum(-1) - 2 * cross, 0.0)

    for x0, x1 in ((X, Y), (jnp.tile(X, 2), jnp.tile(Y, 2))):
        assert str(jax.make_jaxpr(pairwise_cost)(x0, x1)) == str(jax.make_jaxpr(cost)(x0, x1))


@dataclass(frozen=True)
class Circle(Euclidean):
    """The unit circle in the plane, as far as solvers and couplings ask for it."""

    def exp(self, x, v):
        length = jnp.linalg.norm(v, axis=-1, keepdims=True)
        return jnp.cos(length) * x + jnp.where(length > 0, jnp.sin(length) / length, 1.0) * v

    def project(self, x, v):
        return v - jnp.sum(x * v, -1, keepdims=True) * x

    def pairwise_distance_squared(self, x, y):
        return jnp.arccos(jnp.clip(x @ y.T, -1, 1)) ** 2


@dataclass(frozen=True)
class Turn:
    """The rotation by one radian in unit time, with a part that points outwards and must be projected away."""

    space: Circle = Circle((2,))

    def __call__(self, t, x, cond=None):
        return jnp.stack([-x[:, 1], x[:, 0]], -1) + 0.3 * x


def test_a_solver_steps_and_a_coupling_pairs_in_the_space_that_it_is_given():
    """Four steps of Euler along geodesics turn by exactly one radian. On the circle the arc is the cost: the points at
    angles 0.1 and 1.8 are nearer to 0 and 2 in this order."""
    angles = jnp.array([0.1, 2.0])
    points = jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1)
    y, _ = solve_ode(Turn(), points, solver="euler", steps=4)
    np.testing.assert_allclose(y, jnp.stack([jnp.cos(angles + 1), jnp.sin(angles + 1)], -1), atol=1e-6)
    other = jnp.stack([jnp.cos(angles[::-1]), jnp.sin(angles[::-1])], -1)
    np.testing.assert_allclose(pairwise_cost(points, other, Circle((2,))), [[1.9**2, 0], [0, 1.9**2]], atol=1e-5)
    assert MinibatchOT("auction", space=Circle((2,)))(None, points, other).tolist() == [1, 0]
    with pytest.raises(ValueError, match="take 'auction'"):
        MinibatchOT(space=Circle((2,)))


@dataclass(frozen=True)
class Turning:
    """A model without a path whose velocity is `Turn`."""

    space: Circle = Circle((2,))

    def velocity(self, t, x, cond=None):
        return Turn()(t, x)


@dataclass(frozen=True)
class OnCircle:
    """What a coupling and a sampler read of a path on the circle."""

    space: Circle = Circle((2,))


@dataclass(frozen=True)
class Plain(solvers.BaseSampler):
    """A sampler that adds, without a step."""

    path: Any = OnCircle()


def test_a_sampler_steps_in_the_space_of_its_model():
    """As above, for a model: with and without saved states."""
    angles = jnp.array([0.1, 2.0])
    points = jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1)
    turned = jnp.stack([jnp.cos(angles + 1), jnp.sin(angles + 1)], -1)
    for how in ({"save": False}, {"save": True}):
        y, _ = solvers.sample(Turning(), points, solver="euler", steps=4, **how)
        np.testing.assert_allclose(y[-1] if how["save"] else y, turned, atol=1e-6)


@pytest.mark.usefixtures("as_users_call")
def test_what_adds_refuses_another_space():
    for solver, steps in (("dopri5", None), ("ab2", 3), ("reversibleheun", 3), ("reversibleheun", None)):
        with pytest.raises(ValueError, match=r"needs Euclidean space, not Circle.*: use a Runge-Kutta") as error:
            solvers.sample(Turning(), X[:, :2], solver=solver, steps=steps)
        assert "\n" not in str(error.value)
    for solver, steps in (("dopri5", None), ("leapfrogmidpoint", 3)):
        with pytest.raises(ValueError, match="needs Euclidean space, not Circle"):
            solve_ode(Turn(), X[:, :2], solver=solver, steps=steps)
    with pytest.raises(ValueError, match=r"^Plain adds points as vectors"):
        samplers.check(Plain())
    with pytest.raises(ValueError, match=r"^log_prob adds points as vectors"):
        likelihood.log_prob(Turning(), X[:, :2], Normal((2,)), solver="rk4", steps=2)
    for path in (AffinePath, GaussianPath):
        with pytest.raises(ValueError, match=f"^{path.__name__} adds points as vectors"):
            path(CondOT(), space=Circle((2,)))


def test_couplings_of_configs_have_the_space_of_the_path():
    assert COUPLINGS["auction"](OnCircle()).space == Circle((2,))
    assert COUPLINGS["unbalanced"](OnCircle(), 1, 1).space == Circle((2,))
    assert COUPLINGS["sinkhorn"](AffinePath(CondOT()), 1.0) == Sinkhorn(1.0)
    for name, arguments in (("ot", ()), ("class_ot", ()), ("conditional_ot", (1.0,))):
        assert COUPLINGS[name](AffinePath(CondOT()), *arguments).space == EUCLIDEAN
        with pytest.raises(ValueError, match="take 'auction'"):
            COUPLINGS[name](OnCircle(), *arguments)


def test_a_path_asks_its_space_for_the_prior():
    assert AffinePath(CondOT()) == AffinePath(CondOT(), space=Euclidean())
    assert repr(AffinePath(CondOT())) == "AffinePath(schedule=CondOT(sigma_min=0.0), noise=None)"
    assert oracles.gaussian(GaussianPath(CondOT()), 0.0, 1.0).velocity.space == EUCLIDEAN
    assert GaussianPath(VP()).prior(Normal((2,))) == Normal((2,), 0.0, float(VP().sigma(0.0)))


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8])
def test_integers_are_refused(dtype):
    path, floats, integers = AffinePath(CondOT()), jnp.ones((2, 3)), jnp.ones((2, 3), dtype)
    with pytest.raises(ValueError, match=rf"^x1 holds integers \({jnp.dtype(dtype)}\): convert them to floats"):
        path.sample(None, 0.5, floats, integers)
    with pytest.raises(ValueError, match=r"^x0 holds integers"):
        path.sample(None, 0.5, integers, floats)
    loss = methods.conditional(lambda params, t, x, cond: params * x, path, Normal((3,)))
    with pytest.raises(ValueError, match=r"^x1 holds integers"):
        loss(jnp.ones(()), jax.random.key(0), Batch(integers))
