"""Points mapped to the source and back, samples with their densities, and the error of the prior."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from flowjax import load
from flowjax.config import changed, defaults
from flowjax.errors import ConfigError
from flowjax.inference import scoring
from flowjax.inference.choose import SolverSettings
from flowjax.inference.encoding import decode, encode
from flowjax.inference.prior_error import prior_kl_bound
from flowjax.inference.sampling import sample
from flowjax.runs import train

FINE = SolverSettings("rk4", steps=40)
X = np.array([[1.0, 0.5], [-2.0, 3.0], [4.0, -0.5], [0.0, 0.0]], np.float32)


@pytest.fixture(scope="module")
def run(tiny_run):
    return load(tiny_run)


@pytest.fixture(scope="module")
def spline(tmp_path_factory):
    """A normalizing flow after two steps."""
    config = changed(defaults("mlp", "normalizing_flow"), {"data.name": "moons", "train.steps": 2})
    return train(config, tmp_path_factory.mktemp("spline") / "run", plots=False)


@pytest.mark.parametrize("which", ["run", "spline"])
def test_decode_is_the_inverse_of_encode(which, request):
    """Up to the error of 40 steps of order 4, or of the bijection in float32."""
    made = request.getfixturevalue(which)
    coded = encode(made, X, solver=FINE, batch=4)
    np.testing.assert_allclose(decode(made, coded.points, solver=FINE, batch=4).points, X, atol=1e-4)


def test_encode_solves_the_ode_backwards_in_time(run):
    """Against SciPy's solver with small tolerances, on the velocity of the run in model space."""
    velocity = run.model().velocity
    field = lambda t, x: np.asarray(velocity(jnp.float32(t), jnp.asarray(x, jnp.float32)[None], None))[0]
    start = run.spec.to_model(X[1:2])[0]
    true = solve_ivp(field, (1.0, 0.0), start, rtol=1e-5, atol=1e-5).y[:, -1]
    coded = encode(run, X, solver=FINE, batch=4)
    np.testing.assert_allclose(coded.points[1], true, atol=1e-3)


@pytest.mark.parametrize("which", ["run", "spline"])
def test_samples_with_densities_are_the_samples(which, request):
    """The density from the forward solve is that of a solve from the sample back to the source."""
    made, solver = request.getfixturevalue(which), FINE if which == "run" else SolverSettings()
    plain = sample(made, 6, seed=3, solver=solver, batch=4)
    drawn = sample(made, 6, seed=3, solver=solver, batch=4, log_prob=True)
    np.testing.assert_allclose(drawn.samples, plain.samples, atol=1e-5)
    assert plain.log_prob is None
    assert drawn.log_prob is not None
    scored = scoring.log_prob(made, drawn.samples, solver=solver, batch=4)
    np.testing.assert_allclose(drawn.log_prob, scored.log_prob, atol=1e-3)


def test_only_samples_of_an_ode_have_densities(run):
    with pytest.raises(ConfigError, match="needs those of an ODE, such as solver 'dopri5', not 'euler_maruyama'"):
        sample(run, 4, solver=SolverSettings("euler_maruyama", steps=4), log_prob=True)
    with pytest.raises(ConfigError, match="points z must have the shape"):
        decode(run, np.zeros((3, 5)))
    with pytest.raises(ConfigError, match=r"points z have NaN or infinite values in row 1"):
        decode(run, np.array([[0.0, 0.0], [np.nan, 0.0]]))


def test_the_bound_of_the_prior_is_exact_for_one_point(tmp_path, run):
    """With all data at x1 the path starts from N(alpha x1, sigma^2 I): the KL of two Gaussians in closed form."""
    assert prior_kl_bound(run, X) == 0
    config = changed(defaults("mlp"), {"data.name": "moons", "path.schedule": "vp", "train.steps": 1})
    made = train(config, tmp_path / "vp", plots=False)
    schedule = made.path.schedule
    alpha, sigma = float(schedule.alpha(0.0)), float(schedule.sigma(0.0))
    mean = alpha * made.spec.to_model(X[:1]).astype(np.float64)[0]
    true = np.sum(mean**2) / (2 * sigma**2)
    assert prior_kl_bound(made, X[:1]) == pytest.approx(true, rel=1e-6)
    assert 0 < true < 1e-3
