"""Gradients of log p by each adjoint against central differences, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from flowjax import likelihood
from flowjax.likelihood import Exact, Hutchinson
from flowjax.sources import Normal

pytestmark = pytest.mark.analytic


def _given():
    """The parameters of a field, points, and conditions."""
    rng = np.random.default_rng(0)
    return {"w": rng.normal(size=(3, 3)), "x": rng.normal(size=(2, 3)), "c": rng.normal(size=(2, 3))}


def _value(z, divergence, **options):
    """The sum of both log-densities under v(t, x) = tanh(x w + t c)."""
    field = lambda t, x, cond: jnp.tanh(x @ z["w"] + t * cond)
    scored = likelihood.log_prob(
        field, z["x"], Normal((3,)), cond=z["c"], divergence=divergence, key=jax.random.key(0), **options
    )
    return scored.log_prob.sum()


@pytest.mark.parametrize(
    ("adjoint", "divergence"),
    [
        ("recursive", Exact()),
        pytest.param("recursive", Exact("reverse", at_once=2), marks=pytest.mark.slow),
        pytest.param("recursive", Hutchinson(2), marks=pytest.mark.slow),
        pytest.param("backsolve", Exact(), marks=pytest.mark.slow),
        ("forward", Exact()),
        ("direct", Exact()),
        pytest.param("direct", Hutchinson(2), marks=pytest.mark.slow),
    ],
)
def test_gradients_by_parameters_points_and_conditions(adjoint, divergence):
    """In a random direction, relative to central differences with step 1e-5, whose error is about 1e-10. The tolerance
    1e-9 of the solves, and of the adjoint ODE of "backsolve", leaves errors below 1e-7 of the value."""
    options = {"steps": 8, "solver": "rk4"} if adjoint == "direct" else {"rtol": 1e-9, "atol": 1e-9}
    with jax.enable_x64(True):
        z, unravel = ravel_pytree(jax.tree.map(jnp.asarray, _given()))
        value = lambda z, adjoint: _value(unravel(z), divergence, adjoint=adjoint, **options)
        plain = jax.jit(lambda z: value(z, None))
        if adjoint == "forward":
            slope = jax.jit(lambda z, along: jax.jvp(lambda z: value(z, adjoint), (z,), (along,))[1])
        else:
            slope = jax.jit(lambda z, along: jax.grad(lambda z: value(z, adjoint))(z) @ along)
        for name in ("w", "x", "c"):
            rng = np.random.default_rng(1)
            only = {k: rng.normal(size=a.shape) * (k == name) for k, a in _given().items()}
            direction = ravel_pytree(jax.tree.map(jnp.asarray, only))[0]
            expected = float(plain(z + 1e-5 * direction) - plain(z - 1e-5 * direction)) / 2e-5
            assert abs(expected) > 1e-2
            assert float(slope(z, direction)) == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.usefixtures("as_users_call")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adjoint": "direct"}, "adjoint='direct' is for fixed steps"),
        ({"adjoint": "backsolve", "steps": 4}, "adjoint='backsolve' is for adaptive steps"),
        ({"adjoint": "backsove"}, "did you mean 'backsolve'"),
    ],
)
def test_adjoints_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        _value(jax.tree.map(jnp.asarray, _given()), "exact", **options)
